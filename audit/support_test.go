package audit_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"keyledger/audit"
	"keyledger/domain"
	"keyledger/eventstore"
	"keyledger/internal/testkit"
	"keyledger/projections/transparency"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// ledger is a real log with trees.
type ledger struct {
	*eventstore.Store
	t       testing.TB
	pool    *pgxpool.Pool
	db      testkit.DB
	keys    []ed25519.PrivateKey
	boot    domain.ID
	flushed uint64
}

func newLedger(t testing.TB) *ledger {
	t.Helper()
	return on(t, testkit.Database(t))
}

func on(t testing.TB, db testkit.DB) *ledger {
	t.Helper()
	l := &ledger{t: t, db: db, keys: []ed25519.PrivateKey{ed25519.NewKeyFromSeed([]byte("32 bytes of which a key is made.."[:32]))}}
	var err error
	l.pool, err = eventstore.Connect(t.Context(), db.URL, eventstore.ConnectOptions{MaxConns: 8})
	must(t, err)
	t.Cleanup(l.pool.Close)
	l.Store, err = eventstore.Open(t.Context(), eventstore.Options{Pool: l.pool, MasterKey: make([]byte, 32), Logger: testkit.Logger(t)})
	must(t, err)
	l.boot, err = domain.NewID(time.Now(), rand.Reader)
	must(t, err)
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- l.Store.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil && !errors.Is(err, eventstore.ErrEpochChanged) {
			t.Error(err)
		}
	})
	return l
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (l *ledger) Owner() *pgxpool.Pool {
	l.t.Helper()
	pool, err := pgxpool.New(l.t.Context(), l.db.AdminURL)
	must(l.t, err)
	l.t.Cleanup(pool.Close)
	return pool
}

func (l *ledger) public() transparency.Keys { return transparency.Public(l.keys) }

// sign brings both trees up to the heads, and gives the lifecycle's checkpoint.
func (l *ledger) sign() []byte {
	l.t.Helper()
	for _, lane := range domain.Lanes() {
		tree, err := transparency.New(transparency.Options{Pool: l.pool, Log: l.Store, Lane: lane, Keys: l.keys})
		must(l.t, err)
		must(l.t, tree.Advance(l.t.Context()))
	}
	note, err := transparency.NewReader(l.pool, l.Store).Checkpoint(l.t.Context(), domain.Lifecycle)
	must(l.t, err)
	return note
}

func (l *ledger) verify(o audit.Options) *audit.Report {
	l.t.Helper()
	report, err := audit.VerifyDatabase(l.t.Context(), l.pool, o)
	must(l.t, err)
	return report
}

func (l *ledger) End(lane domain.Lane) domain.Position {
	l.t.Helper()
	head, err := l.Head(l.t.Context(), lane)
	must(l.t, err)
	return head.Position
}

var person = domain.Metadata{Actor: domain.Actor{Kind: domain.ActorConsole, User: "ada"}, RequestID: "req_test"}

func now() time.Time { return time.Now().UTC().Truncate(time.Microsecond) }

func (l *ledger) Create(organization domain.OrganizationID, name string) domain.Key {
	l.t.Helper()
	secret, err := domain.NewSecret(domain.DefaultKeyFormat, false, rand.Reader)
	must(l.t, err)
	id, err := domain.NewID(time.Now(), rand.Reader)
	must(l.t, err)
	key, _, err := l.ChangeKey(l.t.Context(), domain.Request{Metadata: person}, domain.KeyID(id), domain.CreateKey{
		Now: now(), Key: domain.KeyID(id), Organization: organization, Digest: secret.Digest(), Prefix: secret.VisiblePrefix(domain.DefaultKeyFormat),
		Name: name, Scopes: domain.Scopes{domain.ScopeRead}, RateLimit: 10, CreatedBy: "ada", Granter: domain.Scopes{domain.ScopeAll},
	})
	must(l.t, err)
	return key
}

func (l *ledger) Revoke(key domain.Key) {
	l.t.Helper()
	_, _, err := l.ChangeKey(l.t.Context(), domain.Request{Metadata: person}, key.ID, domain.RevokeKey{Now: now(), Organization: key.Organization, Reason: "leaked"})
	must(l.t, err)
}

func (l *ledger) Use(key domain.Key) {
	l.t.Helper()
	at := now()
	_, err := l.AppendUsage(l.t.Context(), eventstore.UsageFlush{Boot: l.boot, Flush: l.flushed + 1, Expected: l.flushed, Events: []domain.KeyUsed{{
		Organization: key.Organization, Boot: l.boot, Flush: l.flushed + 1, At: at,
		Uses: []domain.Use{{Key: key.ID, Outcome: domain.OutcomeValid, Count: 3, First: at, Last: at, DecidedAt: 1}},
	}}})
	must(l.t, err)
	l.flushed++
}

// fill makes about so many events: keys, of which some are used and some revoked,
// and members.
func (l *ledger) fill(n int) {
	l.t.Helper()
	for i := range n / 2 {
		key := l.Create(domain.OrganizationID(fmt.Sprint("org_", string(rune('a'+i%3)))), fmt.Sprint("key ", i))
		switch i % 3 {
		case 0:
			l.Use(key)
		case 1:
			l.Revoke(key)
		}
	}
}
