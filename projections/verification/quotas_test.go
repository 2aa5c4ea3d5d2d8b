package verification_test

import (
	"testing"
	"time"

	"keyledger/domain"
	"keyledger/index"
	"keyledger/internal/testkit"
	"keyledger/projections"
	"keyledger/projections/internal/logtest"
	"keyledger/projections/usage"
	"keyledger/projections/verification"
)

// Every moment of these tests is told, so that no midnight comes in between.
var someNoon = time.Date(2026, 3, 31, 12, 0, 0, 0, time.UTC)

func countsOf(log *logtest.Log) *projections.Follower {
	return projections.NewFollower(log, usage.New(log.Pool), projections.FollowerOptions{})
}

// spending is a node with an index that follows the log.
type spending struct {
	t     *testing.T
	log   *logtest.Log
	boot  domain.ID
	index *index.Index
	p     *verification.Projection
}

func spendingOn(t *testing.T, log *logtest.Log) *spending {
	t.Helper()
	x := index.New(index.Options{Clock: func() time.Time { return someNoon }})
	return &spending{t, log, logtest.NewID(t), x, verification.New(x, verification.Options{Pool: log.Pool, Log: log, Logger: testkit.Logger(t)})}
}

func (s *spending) load() *spending {
	s.t.Helper()
	logtest.Must(s.t, s.p.Load(s.t.Context(), s.log.Pool))
	return s
}

// listen lets it hear what is spent.
func (s *spending) listen() *spending {
	s.t.Helper()
	q := verification.NewQuotas(s.index, verification.QuotaOptions{Boot: s.boot, Pool: s.log.Pool, Log: s.log, Logger: testkit.Logger(s.t), Clock: func() time.Time { return someNoon }})
	logtest.Background(s.t, "quotas", q.Run)
	return s
}

// remain waits until so many uses are left.
func (s *spending) remain(key domain.Key, want uint64) {
	s.t.Helper()
	poll, over := time.NewTicker(time.Millisecond), time.After(patience)
	defer poll.Stop()
	for {
		got, ok := s.index.Quota(key.ID, someNoon)
		if ok && got.Remaining == want {
			return
		}
		select {
		case <-poll.C:
		case <-over:
			s.t.Fatalf("%d uses of %q remain (known: %v), want %d", got.Remaining, key.Name, ok, want)
		}
	}
}

func accepted(key domain.Key, at time.Time, n uint64) domain.Use {
	return domain.Use{Key: key.ID, Outcome: domain.OutcomeValid, Count: n, First: at, Last: at}
}

func TestWhatWasSpentBeforeANodeStartedIsSpent(t *testing.T) {
	t.Parallel()
	log := logtest.New(t)
	key := log.CreateQuota("org_a", "day", domain.Quota{Limit: 100, Refill: domain.RefillDay})
	monthly := log.CreateQuota("org_a", "month", domain.Quota{Limit: 100, Refill: domain.RefillMonth})
	ever := log.CreateQuota("org_b", "ever", domain.Quota{Limit: 100, Refill: domain.RefillNone})
	logtest.Must(t, listOf(log).CatchUp(patient(t), 3))
	stale := accepted(key, someNoon, 2)
	stale.Outcome = domain.OutcomeValidStale
	refused := accepted(key, someNoon, 50)
	refused.Outcome = domain.OutcomeQuotaExceeded
	for _, k := range []domain.Key{key, monthly, ever} {
		log.Use(k.Organization,
			accepted(k, time.Date(2025, 12, 31, 23, 59, 59, 0, time.UTC), 1),
			accepted(k, time.Date(2026, 2, 28, 23, 59, 59, 0, time.UTC), 2),
			accepted(k, time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC), 4),
			accepted(k, time.Date(2026, 3, 30, 23, 59, 59, 0, time.UTC), 8),
			accepted(k, time.Date(2026, 3, 31, 0, 0, 0, 0, time.UTC), 16))
	}
	log.Use("org_a", stale, refused)
	logtest.Must(t, countsOf(log).CatchUp(patient(t), 3))
	log.Use("org_a", accepted(key, someNoon, 3), accepted(monthly, someNoon.AddDate(0, 0, -31), 20)) // nobody has counted them yet
	log.Use("org_b", accepted(ever, someNoon, 1))

	s := spendingOn(t, log).load()
	if _, err := s.index.Verify(domain.Verification{Digest: key.Digest, Now: someNoon}); domain.CodeOf(err) != domain.CodeUnavailable || s.index.Ready() {
		t.Errorf("before anything is known: %v, ready %v", err, s.index.Ready())
	}
	s.listen()
	s.remain(key, 100-16-2-3)
	s.remain(monthly, 100-4-8-16)
	s.remain(ever, 100-1-2-4-8-16-1)
	if !s.index.Ready() {
		t.Error("not ready")
	}
	log.Use("org_a", accepted(key, someNoon.Add(time.Hour), 5), refused)
	s.remain(key, 100-16-2-3-5)
}

// What this run has accepted it has counted by then: its own events add nothing.
func TestANodesOwnUsesAreSpentOnce(t *testing.T) {
	t.Parallel()
	log := logtest.New(t)
	key := log.CreateQuota("org_a", "a key", domain.Quota{Limit: 10, Refill: domain.RefillMonth})
	logtest.Must(t, listOf(log).CatchUp(patient(t), 1))
	s := spendingOn(t, log).load().listen()
	s.remain(key, 10)
	a, err := verification.NewAccountant(s.index, log, verification.AccountantOptions{Boot: s.boot})
	logtest.Must(t, err)
	logtest.Background(t, "the accountant", a.Run)
	for range 4 {
		v, err := a.VerifyDurable(patient(t), domain.Verification{Digest: key.Digest, Now: someNoon})
		if err != nil || v.Outcome != domain.OutcomeValid {
			t.Fatalf("%+v, %v", v, err)
		}
	}
	log.Use("org_a", accepted(key, someNoon, 1)) // behind them in the lane
	s.remain(key, 5)

	// Another run finds all of it in the log, counted or not.
	logtest.Must(t, countsOf(log).CatchUp(patient(t), 2))
	spendingOn(t, log).load().listen().remain(key, 5)
}

// A key that is created while nobody follows the usage lane yet may be used elsewhere before
// this node knows it; and those uses may be counted by then, too.
func TestUsesOfAKeyThatIsNewHereAreHeard(t *testing.T) {
	t.Parallel()
	log := logtest.New(t)
	plain := log.Create("org_a", "a key without a quota")
	logtest.Must(t, listOf(log).CatchUp(patient(t), 1))
	log.Use("org_a", accepted(plain, someNoon, 1))
	s := spendingOn(t, log)
	logtest.Background(t, "the index", s.p.Run)
	logtest.Must(t, s.index.WaitFor(patient(t), 1))
	key := log.CreateQuota("org_a", "a key", domain.Quota{Limit: 10, Refill: domain.RefillNone})
	log.Use("org_a", accepted(key, someNoon, 3))
	logtest.Must(t, countsOf(log).CatchUp(patient(t), log.End(domain.Usage)))
	logtest.Must(t, s.index.WaitFor(patient(t), log.End(domain.Lifecycle)))
	// It is answered for at once: this node cannot have spent anything.
	if v, err := s.index.Verify(domain.Verification{Digest: key.Digest, Now: someNoon}); err != nil || v.Outcome != domain.OutcomeValid {
		t.Fatalf("%+v, %v", v, err)
	}
	s.listen()
	s.remain(key, 6)

	// Now that the lane is followed, a use may be read before the key that it is of is known.
	next := log.CreateQuota("org_a", "the next key", domain.Quota{Limit: 10, Refill: domain.RefillNone})
	use := accepted(next, someNoon, 4)
	use.DecidedAt = log.End(domain.Lifecycle)
	log.Use("org_a", use)
	s.remain(next, 6)
	s.remain(key, 6)
}

// Keys that come when the keys are loaded anew join those that are followed already.
func TestLoadingAnewForgetsNothingThatWasSpent(t *testing.T) {
	t.Parallel()
	log := logtest.New(t)
	key := log.CreateQuota("org_a", "a key", domain.Quota{Limit: 100, Refill: domain.RefillNone})
	logtest.Must(t, listOf(log).CatchUp(patient(t), 1))
	s := spendingOn(t, log).load().listen()
	log.Use("org_a", accepted(key, someNoon, 1))
	s.remain(key, 99)
	if v, err := s.index.Verify(domain.Verification{Digest: key.Digest, Now: someNoon}); err != nil || v.Quota.Remaining != 98 { // in no log yet
		t.Fatalf("%+v, %v", v, err)
	}
	next := log.CreateQuota("org_a", "the next key", domain.Quota{Limit: 100, Refill: domain.RefillNone})
	logtest.Must(t, listOf(log).CatchUp(patient(t), 2))
	log.Use("org_a", accepted(key, someNoon, 2), accepted(next, someNoon, 3))
	logtest.Must(t, countsOf(log).CatchUp(patient(t), 2))
	log.Use("org_a", accepted(key, someNoon, 4), accepted(next, someNoon, 5))
	s.remain(key, 92) // it has read all of that, and knows nothing of the next key
	s.load()
	s.remain(next, 92)
	log.Use("org_a", accepted(key, someNoon, 10), accepted(next, someNoon, 20))
	s.remain(next, 72)
	s.remain(key, 82)
}

// Counts of another history say nothing. Keys with a quota are not answered for then, and all others are.
func TestWithoutCountsOnlyKeysWithAQuotaAreUnavailable(t *testing.T) {
	t.Parallel()
	log := logtest.New(t)
	key, plain := log.CreateQuota("org_a", "a key", domain.Quota{Limit: 10, Refill: domain.RefillNone}), log.Create("org_a", "a plain key")
	logtest.Must(t, listOf(log).CatchUp(patient(t), 2))
	log.Use("org_a", accepted(key, someNoon, 1))
	logtest.Must(t, countsOf(log).CatchUp(patient(t), 1))
	if _, err := log.Owner().Exec(t.Context(), `UPDATE projection_checkpoints SET epoch = 7 WHERE name = 'usage'`); err != nil {
		t.Fatal(err)
	}
	s := spendingOn(t, log).load().listen()
	poll := time.NewTicker(time.Millisecond)
	defer poll.Stop()
	for !s.index.Ready() {
		<-poll.C
	}
	if _, err := s.index.Verify(domain.Verification{Digest: key.Digest, Now: someNoon}); domain.CodeOf(err) != domain.CodeUnavailable {
		t.Errorf("%v", err)
	}
	expect(t, s.index, plain, domain.OutcomeValid, 1)
	if _, err := log.Owner().Exec(t.Context(), `UPDATE projection_checkpoints SET epoch = 1 WHERE name = 'usage'`); err != nil {
		t.Fatal(err)
	}
	s.remain(key, 9)
}
