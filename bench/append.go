package main

import (
	"context"
	"crypto/rand"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"keyledger/domain"
	"keyledger/eventstore"
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
	appends := func(callers int) func() (sample, error) {
		return func() (sample, error) { return l.appendFor(ctx, callers, b.duration) }
	}
	_, err = b.compare(b.rounds, perSecond, []contender{
		{"append, 64 callers", appends(64)},
		{"pgbench, one insert, 64 clients", func() (sample, error) { return db.pgbench(ctx, insertScript, 64, b.duration) }},
		{"pgbench, a transaction per command, 64 clients", func() (sample, error) { return db.pgbench(ctx, transactionScript, 64, b.duration) }},
	}, comparison{0, 1, ">= 1.3, aim 2.5"}, comparison{0, 2, ">= 3, aim 6"})
	if err != nil {
		return err
	}
	if err := b.rate("append, 1 caller", appends(1)); err != nil {
		return err
	}
	return b.rate("append, 1,024 callers", appends(1024))
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
	store, err := eventstore.Open(ctx, eventstore.Options{Pool: pool, MasterKey: masterKey()})
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

// appendFor measures how many creates a number of callers get through in a second.
func (l *eventLog) appendFor(ctx context.Context, callers int, duration time.Duration) (sample, error) {
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
		return sample{}, *err
	}
	return sample{value: float64(done.Load()) / time.Since(started).Seconds()}, nil
}
