package eventstore_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"keyledger/domain"
	"keyledger/eventstore"
	"keyledger/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// node is one process's view of a log: a pool, a store, and its appenders.
type node struct {
	*eventstore.Store
	pool *pgxpool.Pool
	stop func()
}

// open runs a node on a database until the test ends, or until stop.
func open(t testing.TB, url string) *node {
	t.Helper()
	pool := connect(t, url)
	store, err := eventstore.Open(t.Context(), eventstore.Options{Pool: pool, MasterKey: masterKey, Logger: testkit.Logger(t)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- store.Run(ctx) }()
	var stopped atomic.Bool
	n := &node{Store: store, pool: pool, stop: func() {
		if stopped.CompareAndSwap(false, true) {
			cancel()
			<-done
		}
	}}
	t.Cleanup(n.stop)
	return n
}

var masterKey = []byte("0123456789abcdef0123456789abcdef")

func connect(t testing.TB, url string) *pgxpool.Pool {
	t.Helper()
	pool, err := eventstore.Connect(t.Context(), url, eventstore.ConnectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// log runs one node on a database of its own.
func log(t testing.TB) *node {
	t.Helper()
	return open(t, testkit.Database(t).URL)
}

const acme domain.OrganizationID = "org_acme"

func newKeyID(t testing.TB) domain.KeyID {
	t.Helper()
	id, err := domain.NewID(time.Now(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return domain.KeyID(id)
}

func createCommand(t testing.TB, id domain.KeyID) domain.CreateKey {
	t.Helper()
	secret, err := domain.NewSecret(domain.DefaultKeyFormat, false, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return domain.CreateKey{
		Now: now(), Key: id, Organization: acme, Digest: secret.Digest(), Prefix: secret.VisiblePrefix(domain.DefaultKeyFormat),
		Name: "Production Server", Scopes: domain.Scopes{domain.ScopeRead, domain.ScopeWrite}, RateLimit: 1000,
		CreatedBy: "user_ada", Granter: domain.Scopes{domain.ScopeAll},
	}
}

func now() time.Time { return time.Now().UTC().Truncate(time.Microsecond) }

// create makes a key, without any guard unless one is given.
func (n *node) create(t testing.TB, request domain.Request) (domain.Key, domain.Receipt, error) {
	t.Helper()
	id := newKeyID(t)
	return n.ChangeKey(t.Context(), request, id, createCommand(t, id))
}

func (n *node) mustCreate(t testing.TB) (domain.Key, domain.Receipt) {
	t.Helper()
	key, receipt, err := n.create(t, domain.Request{})
	if err != nil {
		t.Fatal(err)
	}
	return key, receipt
}

func (n *node) revoke(t testing.TB, request domain.Request, id domain.KeyID) (domain.Key, domain.Receipt, error) {
	t.Helper()
	return n.ChangeKey(t.Context(), request, id, domain.RevokeKey{Now: now(), Organization: acme, Reason: "left the company"})
}

// lifecycle reads the whole lifecycle lane.
func (n *node) lifecycle(t testing.TB) []eventstore.Recorded {
	t.Helper()
	var all []eventstore.Recorded
	for r, err := range n.Read(t.Context(), domain.Lifecycle, 0) {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, r)
	}
	return all
}

// audit fails the test when positions are not 1..N, times run backwards, or a
// stream's versions are not 1..n.
func audit(t testing.TB, events []eventstore.Recorded) {
	t.Helper()
	if err := check(events); err != nil {
		t.Error(err)
	}
}

func check(events []eventstore.Recorded) error {
	versions := map[eventstore.Stream]uint64{}
	ids := map[domain.ID]bool{}
	for i, r := range events {
		switch {
		case r.Position != domain.Position(i+1):
			return fmt.Errorf("position %d stands at place %d", r.Position, i+1)
		case r.Version != versions[r.Stream]+1:
			return fmt.Errorf("position %d: version %d of %s follows %d", r.Position, r.Version, r.Stream, versions[r.Stream])
		case ids[r.ID]:
			return fmt.Errorf("position %d: event %s stands there twice", r.Position, r.ID.UUID())
		case i > 0 && r.RecordedAt.Before(events[i-1].RecordedAt):
			return fmt.Errorf("position %d: time runs backwards", r.Position)
		}
		versions[r.Stream], ids[r.ID] = r.Version, true
	}
	return nil
}
