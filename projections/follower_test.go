package projections_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"iter"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"keyledger/domain"
	"keyledger/eventstore"
	"keyledger/projections"
	"keyledger/projections/internal/logtest"
	"keyledger/projections/keylist"
	"keyledger/projections/usage"
)

// patience bounds what must not block. It is far more than any step takes, on however busy a machine.
const patience = 3 * time.Minute

func patient(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

func follow(log projections.Log, p projections.Projection) *projections.Follower {
	return projections.NewFollower(log, p, projections.FollowerOptions{})
}

func TestAFollowerAppliesWhatIsAppended(t *testing.T) {
	t.Parallel()
	log := logtest.New(t)
	projection := keylist.New(log.Pool)
	follower := follow(log, projection)
	log.Create("org_a", "before it runs")
	logtest.Background(t, "the follower", follower.Run)
	log.Create("org_a", "while it runs")

	logtest.Must(t, follower.CatchUp(patient(t), 2))
	at, err := projection.Checkpoint(t.Context())
	logtest.Must(t, err)
	if head, _ := log.Head(t.Context(), domain.Lifecycle); at != projections.Checkpoint(head) {
		t.Errorf("the checkpoint is %+v, the head is %+v", at, head)
	}
}

func TestDriversAtTheSameTimeCountEveryUseOnce(t *testing.T) {
	t.Parallel()
	log := logtest.New(t)
	other := logtest.Open(t, logtest.Pool(t, log.DB.URL)) // another node
	keys := []domain.KeyID{domain.KeyID(logtest.NewID(t)), domain.KeyID(logtest.NewID(t)), domain.KeyID(logtest.NewID(t))}
	followers := []*projections.Follower{
		follow(log, usage.New(log.Pool)), follow(log, usage.New(log.Pool)), follow(other, usage.New(logtest.Pool(t, log.DB.URL))),
	}
	logtest.Background(t, "a node", followers[0].Run)
	logtest.Background(t, "another one", other.Run)
	logtest.Background(t, "its follower", followers[2].Run)

	const rounds = 60
	var group errgroup.Group
	for i := range rounds {
		now := time.Now().UTC().Truncate(time.Microsecond)
		var uses []domain.Use
		for k, key := range keys {
			uses = append(uses, domain.Use{Key: key, Outcome: domain.OutcomeValid, Count: uint64(k + 1), First: now, Last: now},
				domain.Use{Key: key, Outcome: domain.OutcomeRevoked, Count: 1, First: now, Last: now})
		}
		log.Use("org_a", uses...)
		for _, follower := range followers {
			group.Go(func() error { return follower.CatchUp(patient(t), domain.Position(i+1)) })
		}
	}
	logtest.Must(t, group.Wait())
	for k, key := range keys {
		var accepted, refused, spread int64
		err := log.Pool.QueryRow(t.Context(), `SELECT accepted, refused, (SELECT sum(count) FROM usage_hours h WHERE h.key_id = k.key_id)
			FROM usage_keys k WHERE key_id = $1`, [16]byte(key)).Scan(&accepted, &refused, &spread)
		logtest.Must(t, err)
		if accepted != int64(rounds*(k+1)) || refused != rounds || spread != accepted+refused {
			t.Errorf("key %d: counted %d accepted, %d refused, %d by hour, want %d, %d and their sum", k, accepted, refused, spread, rounds*(k+1), rounds)
		}
	}
}

// A client that is stopped, at whichever byte of its statement, blocks nobody, and
// what it does when it continues changes nothing.
func TestAPausedDriverBlocksNobody(t *testing.T) {
	t.Parallel()
	cuts := map[string]func(int) int{
		"before the first byte":    func(int) int { return 0 },
		"in the middle":            func(n int) int { return n / 2 },
		"five bytes from the end":  func(n int) int { return n - 5 },
		"before the last byte":     func(n int) int { return n - 1 },
		"in the message's own tag": func(int) int { return 1 },
	}
	for name, cut := range cuts {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			log := logtest.New(t)
			key, now := domain.KeyID(logtest.NewID(t)), time.Now().UTC().Truncate(time.Microsecond)
			log.Use("org_a", domain.Use{Key: key, Outcome: domain.OutcomeValid, Count: 7, First: now, Last: now})

			// The message that holds the statement's arguments, in whichever protocol.
			effect := func(message []byte) bool {
				return bytes.Contains(message, hex.AppendEncode(nil, key[:])) || bytes.Contains(message, key[:])
			}
			pool, pause := logtest.PausePool(t, log.DB.URL, effect, cut)
			paused := make(chan error, 1)
			go func() { paused <- follow(log, usage.New(pool)).CatchUp(patient(t), 1) }()
			<-pause.Paused

			logtest.Must(t, follow(log, usage.New(log.Pool)).CatchUp(patient(t), 1))
			pause.Continue()
			logtest.Must(t, <-paused)
			var accepted int64
			logtest.Must(t, log.Pool.QueryRow(t.Context(), `SELECT accepted FROM usage_keys WHERE key_id = $1`, [16]byte(key)).Scan(&accepted))
			if accepted != 7 {
				t.Errorf("7 uses were counted as %d", accepted)
			}
		})
	}
}

// gappy leaves out one position.
type gappy struct {
	projections.Log
	missing domain.Position
}

func (g gappy) Read(ctx context.Context, lane domain.Lane, after domain.Position) iter.Seq2[eventstore.Recorded, error] {
	return func(yield func(eventstore.Recorded, error) bool) {
		for r, err := range g.Log.Read(ctx, lane, after) {
			if r.Position != g.missing && !yield(r, err) {
				return
			}
		}
	}
}

func (g gappy) Follow(ctx context.Context, lane domain.Lane, after domain.Position) iter.Seq2[[]eventstore.Recorded, error] {
	return func(yield func([]eventstore.Recorded, error) bool) {
		for batch, err := range g.Log.Follow(ctx, lane, after) {
			for _, r := range batch {
				if r.Position != g.missing && !yield([]eventstore.Recorded{r}, err) {
					return
				}
			}
		}
	}
}

func TestAGapStopsTheProjectionLoudly(t *testing.T) {
	t.Parallel()
	log := logtest.New(t)
	for range 5 {
		log.Create("org_a", "a key")
	}
	projection := keylist.New(log.Pool)
	var logged bytes.Buffer
	follower := projections.NewFollower(gappy{log, 3}, projection, projections.FollowerOptions{Logger: slog.New(slog.NewTextHandler(&logged, nil))})

	if err := follower.Run(patient(t)); !errors.Is(err, projections.ErrGap) {
		t.Errorf("Run ended with %v", err)
	}
	if !strings.Contains(logged.String(), "level=ERROR") || !strings.Contains(logged.String(), "position 4 follows 2") {
		t.Errorf("the log says %s", logged.String())
	}
	if err := follower.CatchUp(patient(t), 5); !errors.Is(err, projections.ErrGap) {
		t.Errorf("CatchUp ended with %v", err)
	}
	at, err := projection.Checkpoint(t.Context())
	logtest.Must(t, err)
	if at.Position != 2 {
		t.Errorf("the projection stands at %d, behind the gap", at.Position)
	}
	logtest.Must(t, follow(log, projection).CatchUp(patient(t), 5))
}

func TestAnotherHistoryStopsTheProjection(t *testing.T) {
	t.Parallel()
	plants := map[string]string{
		"another ledger":         `UPDATE projection_checkpoints SET ledger_id = gen_random_uuid()`,
		"another epoch":          `UPDATE projection_checkpoints SET epoch = 7`,
		"more than the log has":  `UPDATE projection_checkpoints SET position = 100`,
		"a log in another epoch": `SELECT raise_epoch('a backup was restored')`,
	}
	for name, plant := range plants {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			log := logtest.New(t)
			log.Create("org_a", "a key")
			logtest.Must(t, follow(log, keylist.New(log.Pool)).CatchUp(patient(t), 1))
			_, err := log.Owner().Exec(t.Context(), plant)
			logtest.Must(t, err)

			follower := follow(logtest.Open(t, log.Pool), keylist.New(log.Pool)) // as after a restart
			if err := follower.Run(patient(t)); !errors.Is(err, projections.ErrForeign) {
				t.Errorf("Run ended with %v", err)
			}
			_, err = keylist.NewList(log.Pool, follower).List(patient(t), domain.KeyQuery{Organization: "org_a"})
			if domain.CodeOf(err) != domain.CodeUnavailable || !errors.Is(err, projections.ErrForeign) {
				t.Errorf("the list answers with %v", err)
			}
		})
	}
}

// What was read before a restore must not be applied after it.
func TestACheckpointNeverRunsAheadOfTheLog(t *testing.T) {
	t.Parallel()
	log := logtest.New(t)
	projection := keylist.New(log.Pool)
	log.Create("org_a", "a key")
	head, err := log.Head(t.Context(), domain.Lifecycle)
	logtest.Must(t, err)
	for name, to := range map[string]projections.Checkpoint{
		"ahead":          {Ledger: head.Ledger, Epoch: head.Epoch, Position: 2},
		"another epoch":  {Ledger: head.Ledger, Epoch: head.Epoch + 1, Position: 1},
		"another ledger": {Ledger: logtest.NewID(t), Epoch: head.Epoch, Position: 1},
	} {
		moved, err := projection.Apply(t.Context(), projections.Checkpoint{}, to, nil)
		if moved || err != nil {
			t.Errorf("%s: moved %v, error %v", name, moved, err)
		}
	}
}

// spy tells of what is applied, and can be told to fail.
type spy struct {
	projections.Projection
	applied chan int // how many events, each time that the checkpoint moved
	tried   chan struct{}

	mu     sync.Mutex
	broken error
}

func newSpy(p projections.Projection, broken error) *spy {
	return &spy{Projection: p, applied: make(chan int, 1000), tried: make(chan struct{}, 1000), broken: broken}
}

func (s *spy) heal() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.broken = nil
}

func (s *spy) Apply(ctx context.Context, from, to projections.Checkpoint, events []eventstore.Event) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tried <- struct{}{}
	if s.broken != nil {
		return false, s.broken
	}
	moved, err := s.Projection.Apply(ctx, from, to, events)
	if moved {
		s.applied <- len(events)
	}
	return moved, err
}

func await[T any](t *testing.T, what string, signal <-chan T) T {
	t.Helper()
	select {
	case v := <-signal:
		return v
	case <-time.After(patience):
		t.Fatalf("waited in vain for %s", what)
		panic("unreachable")
	}
}

func TestAFollowerWaitsForADatabaseThatIsAway(t *testing.T) {
	t.Parallel()
	log := logtest.New(t)
	away := newSpy(keylist.New(log.Pool), domain.Unavailable(errors.New("connection refused")))
	logtest.Background(t, "the follower", follow(log, away).Run)
	log.Create("org_a", "a key")
	await(t, "a first try", away.tried)
	await(t, "a second one", away.tried)
	away.heal()
	await(t, "the event to be applied", away.applied)
}

func TestAnotherFollowerTakesOver(t *testing.T) {
	t.Parallel()
	log := logtest.New(t)
	first, second := newSpy(keylist.New(log.Pool), nil), newSpy(keylist.New(log.Pool), nil)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- follow(log, first).Run(ctx) }()
	log.Create("org_a", "a key")
	await(t, "the first follower", first.applied)

	logtest.Background(t, "the second follower", follow(log, second).Run)
	stop()
	logtest.Must(t, await(t, "the first one's end", ended))
	log.Create("org_a", "a key")
	await(t, "the second follower", second.applied)
}

func TestAStatementAppliesABoundedNumberOfBytes(t *testing.T) {
	t.Parallel()
	log := logtest.New(t)
	now := time.Now().UTC().Truncate(time.Microsecond)
	uses := make([]domain.Use, 32_000)
	for i := range uses {
		uses[i] = domain.Use{Key: domain.KeyID(logtest.NewID(t)), Count: 1, First: now, Last: now}
	}
	for range 3 {
		log.Use("org_a", uses...)
	}
	for range 20 {
		log.Use("org_a", uses[0])
	}
	projection := newSpy(usage.New(log.Pool), nil)
	follower := projections.NewFollower(log, projection, projections.FollowerOptions{ApplyTimeout: patience}) // 32,000 rows at once take a busy machine some seconds
	logtest.Must(t, follower.CatchUp(patient(t), 23))
	close(projection.applied)
	var batches []int
	for n := range projection.applied {
		batches = append(batches, n)
	}
	if want := []int{1, 1, 21}; !slices.Equal(batches, want) {
		t.Errorf("the batches were %v, want %v", batches, want)
	}
}

func TestTheLagIsPublished(t *testing.T) {
	t.Parallel()
	log := logtest.New(t)
	for range 3 {
		log.Create("org_a", "a key")
	}
	registry := prometheus.NewRegistry()
	now := time.Now()
	projection := newSpy(keylist.New(log.Pool), errors.New("planted"))
	follower := projections.NewFollower(log, projection, projections.FollowerOptions{
		Registerer: registry, Clock: func() time.Time { return now },
	})
	lag := func() (positions, seconds float64) {
		families, err := registry.Gather()
		logtest.Must(t, err)
		return families[0].Metric[0].Gauge.GetValue(), families[1].Metric[0].Gauge.GetValue()
	}
	if err := follower.CatchUp(patient(t), 3); err == nil {
		t.Fatal("a broken projection caught up")
	}
	now = now.Add(time.Hour)
	if positions, seconds := lag(); positions != 3 || seconds < 3600 || seconds > 3660 {
		t.Errorf("an hour later the lag is %v positions and %v seconds", positions, seconds)
	}
	projection.heal()
	logtest.Must(t, follower.CatchUp(patient(t), 3))
	if positions, seconds := lag(); positions != 0 || seconds != 0 {
		t.Errorf("with everything applied the lag is %v positions and %v seconds", positions, seconds)
	}
}
