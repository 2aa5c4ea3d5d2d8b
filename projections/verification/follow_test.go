package verification_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"keyledger/domain"
	"keyledger/eventstore"
	"keyledger/index"
	"keyledger/internal/postgres"
	"keyledger/internal/testkit"
	"keyledger/projections"
	"keyledger/projections/internal/logtest"
	"keyledger/projections/keylist"
	"keyledger/projections/verification"
)

// patience bounds what must not block. It is far more than any step takes.
const patience = 30 * time.Second

func patient(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

func listOf(log *logtest.Log) *projections.Follower {
	return projections.NewFollower(log, keylist.New(log.Pool), projections.FollowerOptions{})
}

func verdict(t *testing.T, x *index.Index, key domain.Key) domain.Verdict {
	t.Helper()
	v, err := x.Verify(domain.Verification{Digest: key.Digest, Now: time.Now()})
	logtest.Must(t, err)
	return v
}

func expect(t *testing.T, x *index.Index, key domain.Key, outcome domain.Outcome, version uint64) {
	t.Helper()
	v := verdict(t, x, key)
	if v.Outcome != outcome || v.Version != version || v.Key != key.ID || v.Organization != key.Organization || v.Name != key.Name || v.Limit.PerMinute != key.RateLimit {
		t.Errorf("%+v, want %v at version %d of %+v", v, outcome, version, key)
	}
}

func TestTheIndexLoadsTheListAndFollowsTheLog(t *testing.T) {
	t.Parallel()
	log := logtest.New(t)
	first, second := log.Create("org_a", "first"), log.Create("org_b", "second ü")
	log.Revoke(second)
	logtest.Must(t, listOf(log).CatchUp(patient(t), 3))
	third := log.Create("org_a", "third") // the list does not know it
	log.AddMember("org_a", "usr_1")

	x := index.New(index.Options{})
	p := verification.New(x, verification.Options{Pool: log.Pool, Log: log, Logger: testkit.Logger(t)})
	if x.Ready() {
		t.Error("ready before it has loaded anything")
	}
	logtest.Background(t, "the index", p.Run)
	logtest.Must(t, x.WaitFor(patient(t), 5))
	if !x.Ready() || x.Len() != 3 {
		t.Errorf("at the head: ready %v, %d keys", x.Ready(), x.Len())
	}
	expect(t, x, first, domain.OutcomeValid, 1)
	expect(t, x, second, domain.OutcomeRevoked, 2)
	expect(t, x, third, domain.OutcomeValid, 1)

	logtest.Must(t, x.WaitFor(patient(t), log.Revoke(first).Position))
	expect(t, x, first, domain.OutcomeRevoked, 2)
}

func TestALoadedListAtTheEndOfTheLogIsReadyAtOnce(t *testing.T) {
	t.Parallel()
	log := logtest.New(t)
	key := log.Create("org_a", "a key")
	logtest.Must(t, listOf(log).CatchUp(patient(t), 1))
	x := index.New(index.Options{})
	p := verification.New(x, verification.Options{})
	logtest.Must(t, p.Load(t.Context(), log.Pool))
	if !x.Ready() {
		t.Fatal("not ready")
	}
	expect(t, x, key, domain.OutcomeValid, 1)

	// Behind the end it is not: what was acknowledged since would not be known.
	log.Revoke(key)
	logtest.Must(t, p.Load(t.Context(), log.Pool))
	if x.Ready() {
		t.Error("ready though a revocation is missing")
	}
}

func TestAListOfAnotherHistoryIsNotLoaded(t *testing.T) {
	t.Parallel()
	log := logtest.New(t)
	key := log.Create("org_a", "a key")
	logtest.Must(t, listOf(log).CatchUp(patient(t), 1))
	x := index.New(index.Options{})
	p := verification.New(x, verification.Options{})
	logtest.Must(t, p.Load(t.Context(), log.Pool))
	if _, err := log.Owner().Exec(t.Context(), `SELECT raise_epoch('a backup was restored')`); err != nil {
		t.Fatal(err)
	}
	if err := p.Load(t.Context(), log.Pool); !errors.Is(err, index.ErrForeign) {
		t.Errorf("loaded: %v", err)
	}
	expect(t, x, key, domain.OutcomeValid, 1) // what was there stays until there is something better
}

// signals tells when something is logged.
type signals struct {
	slog.Handler
	text string
	seen chan struct{}
}

func (s *signals) Handle(ctx context.Context, r slog.Record) error {
	if strings.Contains(r.Message, s.text) {
		select {
		case s.seen <- struct{}{}:
		default:
		}
	}
	return s.Handler.Handle(ctx, r)
}

func newSignals(t *testing.T, text string) *signals {
	return &signals{Handler: testkit.Logger(t).Handler(), text: text, seen: make(chan struct{}, 1)}
}

func (s *signals) await(t *testing.T) {
	t.Helper()
	select {
	case <-s.seen:
	case <-patient(t).Done():
		t.Fatalf("nobody said %q", s.text)
	}
}

func TestARaisedEpochStopsTheIndex(t *testing.T) {
	t.Parallel()
	log := logtest.New(t)
	key := log.Create("org_a", "a key")
	logtest.Must(t, listOf(log).CatchUp(patient(t), 1))
	stopped := newSignals(t, "DOES NOT ANSWER")
	x := index.New(index.Options{})
	p := verification.New(x, verification.Options{Pool: log.Pool, Log: log, Logger: slog.New(stopped)})
	logtest.Background(t, "the index", p.Run)
	logtest.Must(t, x.WaitFor(patient(t), 1))

	owner := log.Owner()
	if _, err := owner.Exec(t.Context(), `SELECT raise_epoch('a backup was restored')`); err != nil {
		t.Fatal(err)
	}
	// The next event bears the new epoch, and another process has appended it.
	next := logtest.Open(t, logtest.Pool(t, log.DB.URL))
	logtest.Background(t, "the next store", next.Run)
	_, _, err := next.ChangeKey(t.Context(), domain.Request{}, key.ID, domain.RevokeKey{Now: time.Now(), Organization: key.Organization})
	logtest.Must(t, err)
	log.Wake(domain.Lifecycle, 2)
	stopped.await(t)
	if _, err := x.Verify(domain.Verification{Digest: key.Digest, Now: time.Now()}); domain.CodeOf(err) != domain.CodeUnavailable || x.Ready() {
		t.Errorf("it answers: %v", err)
	}
}

func TestVerificationGoesOnWhilePostgresIsAway(t *testing.T) {
	t.Parallel()
	cluster := testkit.Postgres(t, postgres.Options{})
	pool := logtest.Pool(t, cluster.URL())
	store := logtest.Open(t, pool)
	logtest.Background(t, "the log", store.Run)
	create := func(name string) (domain.Key, domain.Receipt) {
		id, err := domain.NewID(time.Now(), strings.NewReader(name+"0123456789"))
		logtest.Must(t, err)
		c := domain.CreateKey{
			Now: time.Now(), Key: domain.KeyID(id), Organization: "org_a", Digest: domain.Digest{name[0], 1}, Prefix: "bsk_live_abcd",
			Name: name, Scopes: domain.Scopes{"read"}, RateLimit: 7, Granter: domain.Scopes{"*"},
		}
		key, receipt, err := store.ChangeKey(patient(t), domain.Request{}, c.Key, c)
		logtest.Must(t, err)
		return key, receipt
	}
	x := index.New(index.Options{})
	p := verification.New(x, verification.Options{Pool: pool, Log: store, Logger: testkit.Logger(t)})
	logtest.Background(t, "the index", p.Run)
	before, receipt := create("before")
	logtest.Must(t, x.WaitFor(patient(t), receipt.Position))
	accountant, err := verification.NewAccountant(x, store, verification.AccountantOptions{})
	logtest.Must(t, err)

	cluster.Stop()
	expect(t, x, before, domain.OutcomeValid, 1)
	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := accountant.Flush(short); domain.CodeOf(err) != domain.CodeUnavailable {
		t.Errorf("a flush without a database: %v", err)
	}
	expect(t, x, before, domain.OutcomeValid, 1)
	if !x.Ready() {
		t.Error("not ready")
	}
	cluster.Start()

	for created := false; !created; {
		// The first connections of the pool may still be those to the server that went.
		_, err := store.Head(patient(t), domain.Lifecycle)
		created = err == nil
	}
	after, receipt := create("after")
	logtest.Must(t, x.WaitFor(patient(t), receipt.Position))
	expect(t, x, after, domain.OutcomeValid, 1)
	logtest.Must(t, accountant.Flush(patient(t)))
	if n := recorded(t, store)[domain.OutcomeValid]; n != 3 {
		t.Errorf("%d uses are recorded of 3", n)
	}
}

func TestUsesAreRecordedInTheLog(t *testing.T) {
	t.Parallel()
	log := logtest.New(t)
	key, other := log.Create("org_a", "a key"), log.Create("org_b", "another")
	x := index.New(index.Options{})
	p := verification.New(x, verification.Options{Pool: log.Pool, Log: log})
	logtest.Background(t, "the index", p.Run)
	logtest.Must(t, x.WaitFor(patient(t), 2))
	accountant, err := verification.NewAccountant(x, log, verification.AccountantOptions{Window: time.Hour})
	logtest.Must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- accountant.Run(ctx) }()

	for range 10 {
		expect(t, x, key, domain.OutcomeValid, 1)
		expect(t, x, other, domain.OutcomeValid, 1)
	}
	logtest.Must(t, accountant.Flush(patient(t)))
	_, err = accountant.VerifyDurable(patient(t), domain.Verification{Digest: key.Digest, Required: domain.Scopes{"admin"}, Now: time.Now()})
	logtest.Must(t, err)
	if n := recorded(t, log.Store); n[domain.OutcomeValid] != 20 || n[domain.OutcomeInsufficientScope] != 1 {
		t.Errorf("recorded %v", n)
	}
	expect(t, x, other, domain.OutcomeValid, 1)
	cancel()
	logtest.Must(t, <-ended)
	if n := recorded(t, log.Store); n[domain.OutcomeValid] != 21 {
		t.Errorf("after the end: %v", n)
	}
}

// recorded adds up the usage lane.
func recorded(t *testing.T, store *eventstore.Store) (counts [domain.Outcomes]uint64) {
	t.Helper()
	for r, err := range store.Read(patient(t), domain.Usage, 0) {
		logtest.Must(t, err)
		e, err := eventstore.DecodeData(r)
		logtest.Must(t, err)
		for _, u := range e.(domain.KeyUsed).Uses {
			counts[u.Outcome] += u.Count
		}
	}
	return counts
}
