package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"keyledger/domain"
	"keyledger/eventstore"
	"keyledger/internal/postgres"
	"keyledger/migrations"
)

const organization domain.OrganizationID = "org_bench"

// benchAppend measures the log without HTTP: 64 callers, every check on.
func benchAppend(ctx context.Context, b *bench) error {
	db, err := startDatabase(ctx)
	if err != nil {
		return err
	}
	defer db.stop()
	l, err := openLog(ctx, db.url)
	if err != nil {
		return err
	}
	defer l.stop()
	appends := func(callers int) measurement {
		return func() (float64, error) { return l.appendFor(ctx, callers, b.duration) }
	}
	insert := func() (float64, error) { return db.pgbench(ctx, insertScript, 64, b.duration) }
	transaction := func() (float64, error) { return db.pgbench(ctx, transactionScript, 64, b.duration) }
	if err := b.pair("append, 64 callers", "pgbench single insert, 64 clients", 1.3, 2.5, appends(64), insert); err != nil {
		return err
	}
	if err := b.pair("append, 64 callers", "one transaction per command, 64 clients", 3, 6, appends(64), transaction); err != nil {
		return err
	}
	if err := b.rate("append, 1 caller", appends(1)); err != nil {
		return err
	}
	return b.rate("append, 1,024 callers", appends(1024))
}

// database is a private Postgres with the settings of keyledger serve.
type database struct {
	server   *postgres.Server // nil when it is somebody else's
	dir      string
	url      string // of the service's login
	adminURL string
}

func startDatabase(ctx context.Context) (*database, error) {
	dir, err := os.MkdirTemp("", "keyledger-bench-")
	if err != nil {
		return nil, err
	}
	// The unprivileged user that Postgres runs as must be able to pass.
	if err := os.Chmod(dir, 0o711); err != nil {
		return nil, err
	}
	server, err := postgres.Start(ctx, postgres.Options{Dir: filepath.Join(dir, "postgres")})
	if err != nil {
		return nil, err
	}
	db := &database{server, dir, server.URL(), server.AdminURL()}
	if err := migrations.Apply(ctx, server.AdminURL(), slog.New(slog.DiscardHandler)); err != nil {
		db.stop()
		return nil, err
	}
	return db, db.prepareBaselines(ctx)
}

func (d *database) stop() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := d.server.Stop(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench: stop postgres:", err)
	}
	_ = os.RemoveAll(d.dir)
}

// eventLog is a store with its appenders running.
type eventLog struct {
	*eventstore.Store
	pool  *pgxpool.Pool
	stop  func()
	guard domain.Guard
}

func openLog(ctx context.Context, url string) (*eventLog, error) {
	pool, err := eventstore.Connect(ctx, url, eventstore.ConnectOptions{})
	if err != nil {
		return nil, err
	}
	store, err := eventstore.Open(ctx, eventstore.Options{Pool: pool, MasterKey: make([]byte, eventstore.MasterKeySize)})
	if err != nil {
		return nil, err
	}
	running, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { defer close(done); _ = store.Run(running) }()
	l := &eventLog{Store: store, pool: pool, stop: func() { cancel(); <-done; pool.Close() }}
	// Every measured command is authorised by this key, and the log checks it each time.
	admin, err := l.create(ctx)
	if err != nil {
		l.stop()
		return nil, err
	}
	l.guard = domain.Guard{Key: admin, Version: 1}
	return l, nil
}

func (l *eventLog) create(ctx context.Context) (domain.KeyID, error) {
	now := time.Now().UTC()
	id, err := domain.NewID(now, rand.Reader)
	if err != nil {
		return domain.KeyID{}, err
	}
	secret, err := domain.NewSecret(domain.DefaultKeyFormat, false, rand.Reader)
	if err != nil {
		return domain.KeyID{}, err
	}
	request := domain.Request{
		Guard:    l.guard,
		Metadata: domain.Metadata{Actor: domain.Actor{Kind: domain.ActorKey, Key: l.guard.Key}, RequestID: "req_0123456789abcdef"},
	}
	_, _, err = l.ChangeKey(ctx, request, domain.KeyID(id), domain.CreateKey{
		Now: now, Key: domain.KeyID(id), Organization: organization, Digest: secret.Digest(), Prefix: secret.VisiblePrefix(domain.DefaultKeyFormat),
		Name: "Production Server", Scopes: domain.Scopes{domain.ScopeRead, domain.ScopeWrite}, RateLimit: 1000, Granter: domain.Scopes{domain.ScopeAll},
	})
	return domain.KeyID(id), err
}

// appendFor counts how many creates a number of callers get through in a second.
func (l *eventLog) appendFor(ctx context.Context, callers int, duration time.Duration) (float64, error) {
	var done atomic.Int64
	var failed atomic.Pointer[error]
	var wg sync.WaitGroup
	started := time.Now()
	for range callers {
		wg.Go(func() {
			for time.Since(started) < duration {
				if _, err := l.create(ctx); err != nil {
					failed.Store(&err)
					return
				}
				done.Add(1)
			}
		})
	}
	wg.Wait()
	if err := failed.Load(); err != nil {
		return 0, *err
	}
	return float64(done.Load()) / time.Since(started).Seconds(), nil
}
