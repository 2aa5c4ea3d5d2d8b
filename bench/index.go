package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"strings"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"keyledger/domain"
	"keyledger/eventstore"
	"keyledger/index"
	"keyledger/projections/verification"
)

// indexFigures is what a process with nothing but an index finds out.
type indexFigures struct {
	Keys        int
	Load        float64   // seconds until ready from the snapshot
	Bytes       float64   // a key, as growth of resident memory
	BytesInUse  float64   // when every key was used lately
	Allocations float64   // a verification
	Verify      []float64 // nanoseconds of processor time, by round
	Hash        []float64 // the same for a bare SHA-256
	Two         float64   // verifications of two goroutines, as a multiple of one's
	TwoHashes   float64   // the same for a bare SHA-256
	Collections int       // during two seconds of verifications with garbage beside them
	Pause       float64   // the longest of their stops, seconds
	Share       float64   // of the processor time that was used, for the collector
}

// measureIndex loads the keys of a database and prints figures about them.
func measureIndex(ctx context.Context, arguments []string) error {
	n, err := strconv.Atoi(arguments[0])
	if err != nil {
		return err
	}
	rounds, err := strconv.Atoi(arguments[1])
	if err != nil {
		return err
	}
	t := &indexTest{plain: make([]byte, n*plainSize), order: shuffled(n)}
	for i := range n {
		plainKey(t.plain[i*plainSize:], i)
	}
	pool, err := eventstore.Connect(ctx, os.Getenv(databaseVariable), eventstore.ConnectOptions{MaxConns: 1})
	if err != nil {
		return err
	}
	defer pool.Close()
	t.index = index.New(index.Options{TuneCollector: true})

	f := indexFigures{Keys: n}
	before := resident()
	began := time.Now()
	if err := verification.New(t.index, verification.Options{Pool: pool}).Load(ctx, pool); err != nil {
		return err
	}
	f.Load = time.Since(began).Seconds()
	if !t.index.Ready() || t.index.Len() != n {
		return fmt.Errorf("the index has %d keys of %d", t.index.Len(), n)
	}
	f.Bytes = (resident() - before) / float64(n)
	t.verify(0, n)
	f.BytesInUse = (resident() - before) / float64(n)

	// Long enough for the clock, and no longer than a pass over a million keys.
	turn := min(max(n, 200_000), 1_000_000)
	t.compare(&f, rounds, turn)
	f.Allocations = t.allocations(turn)
	f.Two = t.together(turn, t.verify)
	f.TwoHashes = t.together(turn, t.hash)
	t.collector(&f)
	return json.NewEncoder(os.Stdout).Encode(f)
}

type indexTest struct {
	index *index.Index
	plain []byte   // all keys, as their clients present them
	order []uint32 // in which they come
}

func (t *indexTest) key(i int) string {
	at := int(t.order[i%len(t.order)]) * plainSize
	return unsafe.String(&t.plain[at], plainSize)
}

// verify is what a server does between a request and its answer: the digest of what was
// presented, the clock, and the verdict with scopes, limit and use.
func (t *indexTest) verify(from, to int) {
	required := domain.Scopes{domain.ScopeRead}
	for i := from; i < to; i++ {
		secret, err := domain.ParseSecret(t.key(i))
		if err != nil {
			panic(err)
		}
		verdict, err := t.index.Verify(domain.Verification{Digest: secret.Digest(), Required: required, Now: time.Now()})
		if err != nil || verdict.Outcome != domain.OutcomeValid {
			panic(fmt.Sprint("a good key is refused: ", verdict.Outcome, err))
		}
	}
}

// hash is the SHA-256 of the same keys in the same order, and nothing else.
func (t *indexTest) hash(from, to int) {
	var last [sha256.Size]byte
	for i := from; i < to; i++ {
		text := t.key(i)
		last = sha256.Sum256(unsafe.Slice(unsafe.StringData(text), len(text)))
	}
	runtime.KeepAlive(&last)
}

func (t *indexTest) compare(f *indexFigures, rounds, turn int) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	measure := func(do func(from, to int), round int) float64 {
		began := processorTime(unix.CLOCK_THREAD_CPUTIME_ID)
		do(round*turn, (round+1)*turn)
		return float64(processorTime(unix.CLOCK_THREAD_CPUTIME_ID)-began) / float64(turn)
	}
	for round := range rounds {
		f.Hash = append(f.Hash, measure(t.hash, round))
		f.Verify = append(f.Verify, measure(t.verify, round))
	}
}

// processorTime is what was used of it, so that a busy machine does not count.
func processorTime(clock int32) time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(clock, &t); err != nil {
		panic(err)
	}
	return time.Duration(t.Nano())
}

func (t *indexTest) allocations(turn int) float64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	t.verify(0, turn)
	runtime.ReadMemStats(&after)
	return float64(after.Mallocs-before.Mallocs) / float64(turn)
}

// together says how many times as many two goroutines do as one does, in the
// best of three attempts.
func (t *indexTest) together(turn int, do func(from, to int)) float64 {
	var best float64
	for range 3 {
		began := time.Now()
		do(0, turn)
		alone := time.Since(began)
		var wg sync.WaitGroup
		began = time.Now()
		wg.Go(func() { do(0, turn/2) })
		wg.Go(func() { do(turn/2, turn) })
		wg.Wait()
		best = max(best, alone.Seconds()/time.Since(began).Seconds())
	}
	return best
}

// collector makes garbage beside verifications, as serving requests would, and
// looks at what the garbage collector does.
func (t *indexTest) collector(f *indexFigures) {
	var garbage []byte
	read := func() (cycles uint64, collector float64, pauses *metrics.Float64Histogram) {
		samples := []metrics.Sample{{Name: "/gc/cycles/total:gc-cycles"}, {Name: "/cpu/classes/gc/total:cpu-seconds"}, {Name: "/sched/pauses/total/gc:seconds"}}
		metrics.Read(samples)
		return samples[0].Value.Uint64(), samples[1].Value.Float64() - idle(), samples[2].Value.Float64Histogram()
	}
	runtime.GC() // the figures are brought up to date by each collection
	cycles, collector, pauses := read()
	used := processorTime(unix.CLOCK_PROCESS_CPUTIME_ID)
	const step = 1000
	for began, i := time.Now(), 0; time.Since(began) < 2*time.Second; i += step {
		t.verify(i, i+step)
		for range step {
			garbage = make([]byte, 1024)
		}
	}
	runtime.KeepAlive(garbage)
	runtime.GC()
	used = processorTime(unix.CLOCK_PROCESS_CPUTIME_ID) - used
	cyclesAfter, collectorAfter, pausesAfter := read()
	f.Collections = int(cyclesAfter - cycles)
	f.Share = (collectorAfter - collector) / used.Seconds()
	for i, count := range pausesAfter.Counts {
		if count > pauses.Counts[i] {
			f.Pause = pausesAfter.Buckets[i+1]
		}
	}
}

// idle is what the collector did with processors that nobody else wanted.
func idle() float64 {
	samples := []metrics.Sample{{Name: "/cpu/classes/gc/mark/idle:cpu-seconds"}}
	metrics.Read(samples)
	return samples[0].Value.Float64()
}

// resident is the memory that this process has, in bytes, when it has given back
// what it does not need.
func resident() float64 {
	debug.FreeOSMemory()
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		panic(err)
	}
	pages, err := strconv.Atoi(strings.Fields(string(text))[1])
	if err != nil {
		panic(err)
	}
	return float64(pages * os.Getpagesize())
}

// indexAt measures the index of a ledger's keys in a process of its own.
func (b *bench) indexAt(ctx context.Context, l *ledger, rounds int) (f indexFigures, err error) {
	fmt.Fprintf(os.Stderr, "\rthe index of %s keys\033[K", thousands(float64(l.keys)))
	defer fmt.Fprint(os.Stderr, "\r\033[K")
	c, err := child(ctx, l.url, "index", strconv.Itoa(l.keys), strconv.Itoa(rounds))
	if err != nil {
		return f, err
	}
	output, err := c.Output()
	if err != nil {
		return f, err
	}
	return f, json.Unmarshal(output, &f)
}
