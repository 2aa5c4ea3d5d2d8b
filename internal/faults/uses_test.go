package faults_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"keyledger/domain"
	"keyledger/eventstore"
	"keyledger/index"
	"keyledger/internal/testkit"
	"keyledger/projections/verification"
)

// Uses in process, as many as a server could be asked for: 100,000 a second over 5,000 keys. What is
// accepted is counted in memory that outlives the process, so that it can be held against the log
// whatever happened to it.
const (
	usedKeys       = 5_000
	usesPerSecond  = 100_000
	exactWaiters   = 256
	childDatabase  = "USES_DATABASE"
	childCounts    = "USES_COUNTS"
	childExact     = "USES_EXACT"
	mostSoakRounds = 20
)

// counts are shared with a process of uses.
type counts struct {
	ready    atomic.Uint64
	asked    atomic.Uint64 // before it is verified
	accepted atomic.Uint64 // after it is answered
	flushes  atomic.Uint64 // that the log has acknowledged
	flushed  atomic.Uint64 // uses in them
	due      atomic.Uint64 // what was accepted before the last of them was collected, at least
}

// witness is the log, and counts what it has acknowledged.
type witness struct {
	*eventstore.Store
	*counts
	before uint64 // what was accepted before the next flush is collected, at least
}

// AppendUsage is called by one goroutine at a time, and here once for all that was collected:
// what is accepted after it has returned belongs to the next flush.
func (w *witness) AppendUsage(ctx context.Context, flush eventstore.UsageFlush) (domain.Receipt, error) {
	receipt, err := w.Store.AppendUsage(ctx, flush)
	if err != nil {
		return receipt, err
	}
	for _, e := range flush.Events {
		for _, u := range e.Uses {
			w.flushed.Add(u.Count)
		}
	}
	w.due.Store(w.before)
	w.flushes.Add(1)
	w.before = w.accepted.Load()
	return receipt, nil
}

func mapCounts(path string) (*counts, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	if err := file.Truncate(4096); err != nil {
		return nil, err
	}
	memory, err := syscall.Mmap(int(file.Fd()), 0, 4096, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	return (*counts)(unsafe.Pointer(&memory[0])), nil
}

// useKeys is what a process of uses does until it gets SIGTERM, or SIGKILL.
func useKeys(database string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	c, err := mapCounts(os.Getenv(childCounts))
	if err != nil {
		return err
	}
	pool, err := eventstore.Connect(ctx, database, eventstore.ConnectOptions{})
	if err != nil {
		return err
	}
	defer pool.Close()
	store, err := eventstore.Open(ctx, eventstore.Options{Pool: pool, MasterKey: make([]byte, eventstore.MasterKeySize)})
	if err != nil {
		return err
	}
	running, end := context.WithCancel(context.Background())
	var others sync.WaitGroup
	defer others.Wait()
	defer end()
	others.Go(func() { _ = store.Run(running) })

	x := index.New(index.Options{})
	x.Replace(index.Begin(index.History{}, 0, usedKeys), 0, 0)
	digests := make([]domain.Digest, usedKeys)
	for i := range digests {
		binary.BigEndian.PutUint64(digests[i][:], uint64(i)*0x9e3779b97f4a7c15)
		digests[i][31] = 1
		created := domain.KeyCreated{
			Key: domain.KeyID{1, byte(i >> 8), byte(i)}, Organization: domain.OrganizationID(fmt.Sprint("org_", i%50)), Digest: digests[i], Scopes: domain.Scopes{"read"}, Name: "n",
		}
		if err := x.Apply([]index.Event{{Position: domain.Position(i + 1), Version: 1, Event: created}}); err != nil {
			return err
		}
	}
	accountant, err := verification.NewAccountant(x, &witness{Store: store, counts: c}, verification.AccountantOptions{})
	if err != nil {
		return err
	}
	accounting, finish := context.WithCancel(running)
	flushed := make(chan error, 1)
	go func() { flushed <- accountant.Run(accounting) }()

	verify, workers := x.Verify, 2
	if os.Getenv(childExact) != "" {
		verify, workers = func(v domain.Verification) (domain.Verdict, error) { return accountant.VerifyDurable(running, v) }, exactWaiters
	}
	var users sync.WaitGroup
	for w := range workers {
		users.Go(func() {
			random := rand.New(rand.NewPCG(uint64(w), 20))
			began, done := time.Now(), 0
			for ctx.Err() == nil {
				// As many as are due by now, and no more.
				due := int(time.Since(began).Seconds() * usesPerSecond / float64(workers))
				for ; done < due && ctx.Err() == nil; done++ {
					c.asked.Add(1)
					verdict, err := verify(domain.Verification{Digest: digests[min(random.IntN(usedKeys), random.IntN(usedKeys))], Now: time.Now()})
					if err != nil || verdict.Outcome != domain.OutcomeValid {
						return // the sums will not agree
					}
					c.accepted.Add(1)
				}
				select {
				case <-ctx.Done():
				case <-time.After(time.Millisecond):
				}
			}
		})
	}
	c.ready.Store(1)
	users.Wait()
	finish()
	return <-flushed
}

// A round lets a process of uses run for a while, ends it with a signal, and says what the log holds
// of it. Flushed is what the log had acknowledged by then, due what it must have had.
type round struct {
	asked, accepted, flushed, due, recorded uint64
}

func runUses(t *testing.T, database testkit.DB, exact bool, lasts time.Duration, end syscall.Signal) round {
	t.Helper()
	counted := recordedUses(t, database)
	path := filepath.Join(t.TempDir(), "counts")
	c, err := mapCounts(path)
	if err != nil {
		t.Fatal(err)
	}
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), childDatabase+"="+database.URL, childCounts+"="+path)
	if exact {
		child.Env = append(child.Env, childExact+"=1")
	}
	child.Stderr = os.Stderr
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	await(t, "the process of uses", func() bool { return c.ready.Load() == 1 })
	<-time.After(lasts)
	await(t, "a second flush", func() bool { return c.flushes.Load() > 1 })
	if err := child.Process.Signal(end); err != nil {
		t.Fatal(err)
	}
	if err := child.Wait(); err != nil && end == syscall.SIGTERM {
		t.Fatalf("the process of uses ended: %v", err)
	}
	// What was under way when it was killed is committed, or rolled back, once its connections are gone.
	await(t, "the end of its connections", func() bool { return connections(t, database) == 0 })
	return round{
		asked: c.asked.Load(), accepted: c.accepted.Load(), flushed: c.flushed.Load(), due: c.due.Load(), recorded: recordedUses(t, database) - counted,
	}
}

// connections counts those of the service.
func connections(t *testing.T, database testkit.DB) (n int) {
	t.Helper()
	pool, err := eventstore.Connect(t.Context(), database.AdminURL, eventstore.ConnectOptions{MaxConns: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	if err := pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'`).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// recordedUses adds up all accepted uses in the log.
func recordedUses(t *testing.T, database testkit.DB) (n uint64) {
	t.Helper()
	pool, err := eventstore.Connect(t.Context(), database.URL, eventstore.ConnectOptions{MaxConns: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	store, err := eventstore.Open(t.Context(), eventstore.Options{Pool: pool, MasterKey: make([]byte, eventstore.MasterKeySize)})
	if err != nil {
		t.Fatal(err)
	}
	for r, err := range store.Read(t.Context(), domain.Usage, 0) {
		if err != nil {
			t.Fatal(err)
		}
		e, err := store.Decode(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		used, ok := e.Event.(domain.KeyUsed)
		if !ok {
			t.Fatalf("%s stands among the uses", r.Type)
		}
		for _, u := range used.Uses {
			if u.Outcome == domain.OutcomeValid {
				n += u.Count
			}
		}
	}
	return n
}

// usesRounds is how often, and for how long each time.
func usesRounds(t *testing.T) (n int, lasts time.Duration) {
	t.Helper()
	if text, ok := os.LookupEnv("KEYLEDGER_SOAK"); ok {
		n, err := strconv.Atoi(text)
		if err != nil {
			t.Fatalf("KEYLEDGER_SOAK is no number: %v", err)
		}
		return min(n, mostSoakRounds), time.Minute
	}
	return 1, 3 * time.Second
}

func TestEveryUseIsRecordedOnceWhenTheServerStops(t *testing.T) {
	t.Parallel()
	rounds, lasts := usesRounds(t)
	for range rounds {
		r := runUses(t, testkit.Database(t), false, lasts, syscall.SIGTERM)
		if r.recorded != r.accepted || r.accepted == 0 {
			t.Errorf("%d uses were accepted, and %d are recorded", r.accepted, r.recorded)
		}
		t.Logf("%d uses were accepted in %v, and are recorded", r.accepted, lasts)
	}
}

// What it had counted since its last flush is lost with it, and nothing else. How often that
// is, TestUsesAreRecordedOnceAWindow says, on a clock that no load delays.
func TestOnlyUsesSinceTheLastFlushAreLostWhenTheServerIsKilled(t *testing.T) {
	t.Parallel()
	rounds, lasts := usesRounds(t)
	for range rounds {
		r := runUses(t, testkit.Database(t), false, lasts, syscall.SIGKILL)
		if r.recorded > r.asked || r.recorded < r.flushed || r.flushed < r.due || r.due == 0 {
			t.Errorf("%d uses were accepted, %d of them before the last flush, which made %d, and %d are recorded", r.accepted, r.due, r.flushed, r.recorded)
		}
		t.Logf("%d uses were accepted in %v, %d of them were flushed, and %d are recorded", r.accepted, lasts, r.flushed, r.recorded)
	}
}

func TestNoExactUseIsLostWhenTheServerIsKilled(t *testing.T) {
	t.Parallel()
	rounds, lasts := usesRounds(t)
	for range rounds {
		r := runUses(t, testkit.Database(t), true, lasts, syscall.SIGKILL)
		if r.recorded > r.asked || r.recorded < r.accepted || r.accepted == 0 {
			t.Errorf("%d uses were asked for, %d answered, and %d are recorded", r.asked, r.accepted, r.recorded)
		}
		t.Logf("%d uses were answered in %v, and %d are recorded of %d that were asked for", r.accepted, lasts, r.recorded, r.asked)
	}
}
