// Package logtest gives the tests of projections a real log on a database of
// their own, and short words for what happens in it.
package logtest

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"keyledger/domain"
	"keyledger/eventstore"
	"keyledger/internal/postgres"
	"keyledger/internal/testkit"
)

// Log is a real log. Its store runs until the test ends.
type Log struct {
	*eventstore.Store
	Pool *pgxpool.Pool // the service's
	DB   testkit.DB
	t    testing.TB
	boot domain.ID
	// flushed is the version of the usage stream.
	flushed uint64
}

// New makes an empty log.
func New(t testing.TB) *Log {
	t.Helper()
	return on(t, testkit.Database(t))
}

// NewDurable makes one on a Postgres of its own with all its guarantees, for
// measurements.
func NewDurable(t testing.TB) *Log {
	t.Helper()
	cluster := testkit.Postgres(t, postgres.Options{Logger: slog.New(slog.DiscardHandler)})
	return on(t, testkit.DB{AdminURL: cluster.AdminURL(), URL: cluster.URL()})
}

func on(t testing.TB, db testkit.DB) *Log {
	t.Helper()
	l := &Log{t: t, DB: db, boot: NewID(t)}
	l.Pool = Pool(t, l.DB.URL)
	l.Store = Open(t, l.Pool)
	Background(t, "the log", func(ctx context.Context) error {
		err := l.Store.Run(ctx)
		if errors.Is(err, eventstore.ErrEpochChanged) {
			return nil // the test has raised it
		}
		return err
	})
	return l
}

// Pool connects as the service does.
func Pool(t testing.TB, url string) *pgxpool.Pool {
	t.Helper()
	pool, err := eventstore.Connect(t.Context(), url, eventstore.ConnectOptions{MaxConns: 24})
	Must(t, err)
	t.Cleanup(pool.Close)
	return pool
}

// Open opens a second store on the same log, as another node would.
func Open(t testing.TB, pool *pgxpool.Pool) *eventstore.Store {
	t.Helper()
	store, err := eventstore.Open(t.Context(), eventstore.Options{Pool: pool, MasterKey: make([]byte, 32), Logger: testkit.Logger(t)})
	Must(t, err)
	return store
}

// Owner connects as the database's owner.
func (l *Log) Owner() *pgxpool.Pool {
	l.t.Helper()
	pool, err := pgxpool.New(l.t.Context(), l.DB.AdminURL)
	Must(l.t, err)
	l.t.Cleanup(pool.Close)
	return pool
}

// Background runs something until the test ends, and then waits for it.
func Background(t testing.TB, what string, run func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("%s: %v", what, err)
		}
	})
}

// Create makes a key of an organization.
func (l *Log) Create(organization domain.OrganizationID, name string) domain.Key {
	l.t.Helper()
	return l.CreateAt(organization, name, time.Now())
}

// CreateAt makes a key with a time of creation of its own, as an import does.
func (l *Log) CreateAt(organization domain.OrganizationID, name string, at time.Time) domain.Key {
	l.t.Helper()
	key, err := l.TryCreate(organization, name, at)
	Must(l.t, err)
	return key
}

// CreateQuota makes a key that has a quota, and no limit a minute.
func (l *Log) CreateQuota(organization domain.OrganizationID, name string, quota domain.Quota) domain.Key {
	l.t.Helper()
	key, err := l.tryCreate(organization, name, time.Now(), func(c *domain.CreateKey) { c.RateLimit, c.Quota = 0, quota })
	Must(l.t, err)
	return key
}

// TryCreate is CreateAt for other goroutines than the test's.
func (l *Log) TryCreate(organization domain.OrganizationID, name string, at time.Time) (domain.Key, error) {
	return l.tryCreate(organization, name, at, func(*domain.CreateKey) {})
}

func (l *Log) tryCreate(organization domain.OrganizationID, name string, at time.Time, change func(*domain.CreateKey)) (domain.Key, error) {
	secret, err := domain.NewSecret(domain.DefaultKeyFormat, false, rand.Reader)
	if err != nil {
		return domain.Key{}, err
	}
	id, err := domain.NewID(time.Now(), rand.Reader)
	if err != nil {
		return domain.Key{}, err
	}
	at = at.UTC().Truncate(time.Microsecond)
	command := domain.CreateKey{
		Now: at, Key: domain.KeyID(id), Organization: organization, Digest: secret.Digest(), Prefix: secret.VisiblePrefix(domain.DefaultKeyFormat),
		Name: name, Scopes: domain.Scopes{domain.ScopeRead, domain.ScopeWrite}, RateLimit: domain.DefaultRateLimit,
		CreatedBy: "usr_1", Granter: domain.Scopes{domain.ScopeAll},
	}
	change(&command)
	key, _, err := l.ChangeKey(l.t.Context(), domain.Request{Metadata: metadata()}, domain.KeyID(id), command)
	return key, err
}

// Revoke revokes a key.
func (l *Log) Revoke(key domain.Key) domain.Receipt {
	l.t.Helper()
	receipt, err := l.TryRevoke(key)
	Must(l.t, err)
	return receipt
}

// TryRevoke is Revoke for other goroutines than the test's.
func (l *Log) TryRevoke(key domain.Key) (domain.Receipt, error) {
	_, receipt, err := l.ChangeKey(l.t.Context(), domain.Request{Metadata: metadata()}, key.ID,
		domain.RevokeKey{Now: time.Now().UTC().Truncate(time.Microsecond), Organization: key.Organization, Reason: "test"})
	return receipt, err
}

// AddMember makes a user a member.
func (l *Log) AddMember(organization domain.OrganizationID, user domain.UserID) {
	l.t.Helper()
	_, _, err := l.ChangeOrganization(l.t.Context(), domain.Request{Metadata: metadata()}, organization,
		domain.AddMember{Now: time.Now().UTC().Truncate(time.Microsecond), Organization: organization, User: user, Role: domain.DefaultRole})
	Must(l.t, err)
}

// Use records uses, one event for all of them.
func (l *Log) Use(organization domain.OrganizationID, uses ...domain.Use) {
	l.t.Helper()
	l.UseAll(domain.KeyUsed{Organization: organization, Uses: uses})
}

// UseAll records several events in one flush.
func (l *Log) UseAll(events ...domain.KeyUsed) {
	l.t.Helper()
	for i := range events {
		events[i].Boot, events[i].Flush, events[i].At = l.boot, l.flushed+1, time.Now().UTC().Truncate(time.Microsecond)
	}
	_, err := l.AppendUsage(l.t.Context(), eventstore.UsageFlush{Boot: l.boot, Flush: l.flushed + 1, Expected: l.flushed, Events: events})
	Must(l.t, err)
	l.flushed += uint64(len(events))
}

// End gives a lane's head.
func (l *Log) End(lane domain.Lane) domain.Position {
	l.t.Helper()
	head, err := l.Head(l.t.Context(), lane)
	Must(l.t, err)
	return head.Position
}

// Keys folds the whole lane with domain.EvolveKey alone, newest first: what every
// list is held against.
func (l *Log) Keys(organization domain.OrganizationID) []domain.Key {
	l.t.Helper()
	keys := map[domain.KeyID]domain.Key{}
	for r, err := range l.Read(l.t.Context(), domain.Lifecycle, 0) {
		Must(l.t, err)
		id, ok := r.Stream.Key()
		if !ok || r.Organization != organization {
			continue
		}
		e, err := l.Decode(l.t.Context(), r)
		Must(l.t, err)
		keys[id], err = domain.EvolveKey(keys[id], e.Event)
		Must(l.t, err)
	}
	return newestFirst(keys)
}

// AwaitLock waits until somebody holds a lock on a table. Postgres tells nobody of
// locks, so it is asked again and again.
func AwaitLock(t testing.TB, l *Log, table, mode string) {
	t.Helper()
	for held := false; !held; {
		// The databases of tests are clones, so a table has the same oid in all of them.
		err := l.Pool.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_locks l JOIN pg_database d ON d.oid = l.database
			WHERE d.datname = current_database() AND l.relation = $1::regclass AND l.mode = $2 AND l.granted)`, table, mode).Scan(&held)
		Must(t, err)
	}
}

// NewID draws an id.
func NewID(t testing.TB) domain.ID {
	t.Helper()
	id, err := domain.NewID(time.Now(), rand.Reader)
	Must(t, err)
	return id
}

// Must ends the test at an error.
func Must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func metadata() domain.Metadata {
	return domain.Metadata{Actor: domain.Actor{Kind: domain.ActorConsole}, RequestID: "req_test"}
}
