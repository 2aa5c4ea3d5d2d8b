package index

import (
	"crypto/sha256"
	"encoding/hex"
	"flag"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sort"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"keyledger/domain"
)

var manyKeys = flag.Int("keys", 1_000_000, "keys in the index for benchmarks and the memory test")

var sink uint64

// plainKeys are keys as they are presented, in one piece of memory.
func plainKeys(n int) [][]byte {
	random := rand.New(rand.NewPCG(1, 2))
	const size = 41
	all := make([]byte, n*size)
	keys := make([][]byte, n)
	for i := range keys {
		key := all[i*size : (i+1)*size]
		copy(key, "bsk_live_")
		var b [16]byte
		for j := range 2 {
			for k, r := 0, random.Uint64(); k < 8; k++ {
				b[j*8+k] = byte(r >> (8 * k))
			}
		}
		hex.Encode(key[9:], b[:])
		keys[i] = key
	}
	return keys
}

func created(position int, plain []byte, at time.Time) Event {
	var id domain.KeyID
	copy(id[:], plain[9:25])
	e := domain.KeyCreated{
		Key: id, Organization: domain.OrganizationID(fmt.Sprintf("org_%05d", position%5000)), Digest: sha256.Sum256(plain),
		Prefix: string(plain[:13]), Scopes: domain.Scopes{"read", "write"}, RateLimit: domain.DefaultRateLimit, At: at,
		Name: fmt.Sprintf("the key %08d", position),
	}
	return Event{Position: domain.Position(position), Version: 1, Event: e}
}

// filled is an index of keys that were applied, without a database.
func filled(tb testing.TB, keys [][]byte) *Index {
	tb.Helper()
	x := empty(Options{})
	x.contents.Load().reserve(len(keys))
	now := time.Now()
	var batch []Event
	for i, key := range keys {
		batch = append(batch, created(i+1, key, now))
		if len(batch) == 1000 || i == len(keys)-1 {
			if err := x.Apply(batch); err != nil {
				tb.Fatal(err)
			}
			batch = batch[:0]
		}
	}
	return x
}

// empty is an index that has loaded an empty list.
func empty(o Options) *Index {
	x := New(o)
	x.Replace(Begin(History{}, 0, 0), 0, 0)
	return x
}

func digestOf(plain []byte) domain.Digest { return sha256.Sum256(plain) }

func verifyPlain(x *Index, key []byte, required domain.Scopes) domain.Outcome {
	verdict, err := x.Verify(domain.Verification{Digest: sha256.Sum256(key), Required: required, Now: time.Now()})
	if err != nil {
		panic(err)
	}
	return verdict.Outcome
}

// BenchmarkVerify compares, in turns, a verification with its clock, scopes, limit and
// count to the bare SHA-256 of the same keys in the same order.
func BenchmarkVerify(b *testing.B) {
	keys := plainKeys(*manyKeys)
	x := filled(b, keys)
	rand.Shuffle(len(keys), func(i, j int) { keys[i], keys[j] = keys[j], keys[i] })
	runtime.GC()
	required := domain.Scopes{domain.ScopeRead}
	for _, key := range keys { // a tally for each
		verifyPlain(x, key, required)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var bare, ours, ratios []float64
	at := 0
	const turn = 20_000
	b.ReportAllocs()
	b.ResetTimer()
	for b.Loop() {
		began := processorTime()
		for i := range turn {
			s := sha256.Sum256(keys[(at+i)%len(keys)])
			sink += uint64(s[0])
		}
		middle := processorTime()
		for i := range turn {
			sink += uint64(verifyPlain(x, keys[(at+turn+i)%len(keys)], required))
		}
		at += 2 * turn
		bare = append(bare, float64(middle-began)/turn)
		ours = append(ours, float64(processorTime()-middle)/turn)
		ratios = append(ratios, ours[len(ours)-1]/bare[len(bare)-1])
	}
	b.ReportMetric(median(bare), "ns/sha256")
	b.ReportMetric(median(ours), "ns/verify")
	b.ReportMetric(median(ratios), "ratio")
}

// BenchmarkVerifyOnAllCores is the same without the hashing; it should fall with -cpu.
func BenchmarkVerifyOnAllCores(b *testing.B) {
	keys := plainKeys(*manyKeys)
	x := filled(b, keys)
	digests := make([]domain.Digest, len(keys))
	for i, at := range rand.Perm(len(keys)) {
		digests[i] = digestOf(keys[at])
	}
	required := domain.Scopes{domain.ScopeRead}
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(p *testing.PB) {
		for at := rand.IntN(len(keys)); p.Next(); at++ {
			if _, err := x.Verify(domain.Verification{Digest: digests[at%len(keys)], Required: required, Now: time.Now()}); err != nil {
				b.Error(err)
			}
		}
	})
}

// BenchmarkApply creates keys one batch after the other, while a reader verifies
// the whole time, and tells how long the reader ever had to wait.
func BenchmarkApply(b *testing.B) {
	keys := plainKeys(*manyKeys)
	now := time.Now()
	events := make([]Event, len(keys))
	for i, key := range keys {
		events[i] = created(i+1, key, now)
	}
	var took time.Duration
	var longest time.Duration
	for b.Loop() {
		x := empty(Options{})
		if err := x.Apply(events[:1000]); err != nil {
			b.Fatal(err)
		}
		stop, stopped := make(chan struct{}), make(chan time.Duration)
		go func() {
			runtime.LockOSThread()
			var longest time.Duration
			digest := digestOf(keys[0])
			for last := processorTime(); ; {
				select {
				case <-stop:
					stopped <- longest
					return
				default:
				}
				if _, err := x.Verify(domain.Verification{Digest: digest, Now: now, Free: true}); err != nil {
					panic(err)
				}
				is := processorTime()
				longest, last = max(longest, is-last), is
			}
		}()
		began := time.Now()
		for at := 1000; at < len(events); at += 1000 {
			if err := x.Apply(events[at:min(at+1000, len(events))]); err != nil {
				b.Fatal(err)
			}
		}
		took += time.Since(began)
		close(stop)
		longest = max(longest, <-stopped)
	}
	b.ReportMetric(float64(len(keys)*b.N)/took.Seconds(), "keys/s")
	b.ReportMetric(float64(longest.Microseconds()), "us-longest-wait")
}

// processorTime is what this thread has used, so that a busy machine does not
// count.
func processorTime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t); err != nil {
		panic(err)
	}
	return time.Duration(t.Nano())
}

func median(values []float64) float64 {
	sort.Float64s(values)
	return values[len(values)/2]
}
