package main

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5/pgxpool"

	"keyledger/eventstore"
	"keyledger/internal/backing"
)

// ledger is what a command works on: the log, and the services below it.
type ledger struct {
	*backing.Found
	pool  *pgxpool.Pool
	store *eventstore.Store

	stopStore context.CancelFunc
	storeDone chan error
}

// openLedger opens the log that the settings name. Close it.
func (p *program) openLedger(ctx context.Context, needs backing.Needs) (_ *ledger, err error) {
	l := &ledger{}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.close(ctx))
		}
	}()
	if l.Found, err = backing.Find(ctx, p.config, needs, p.logger); err != nil {
		return nil, err
	}
	// A command that started the database itself finds it as an older program may
	// have left it, or empty.
	if l.Owned() || needs.Create && l.HTTP == "" && p.config.Migrate {
		if err := l.Database.Migrate(ctx, p.logger); err != nil {
			return nil, err
		}
	}
	masterKey, _, err := backing.MasterKey(l.Dir, p.config, l.Owned())
	if err != nil {
		return nil, err
	}
	if l.pool, err = eventstore.Connect(ctx, l.Database.URL, eventstore.ConnectOptions{MaxConns: 4}); err != nil {
		return nil, err
	}
	if l.store, err = eventstore.Open(ctx, eventstore.Options{Pool: l.pool, MasterKey: masterKey, Logger: p.logger}); err != nil {
		return nil, err
	}
	// It ends after what was asked of it is answered, and not with the command's context.
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	l.stopStore, l.storeDone = stop, make(chan error, 1)
	go func() { l.storeDone <- l.store.Run(running) }()
	return l, nil
}

func (l *ledger) close(ctx context.Context) error {
	var err error
	if l.stopStore != nil {
		l.stopStore()
		err = <-l.storeDone
	}
	if l.pool != nil {
		l.pool.Close()
	}
	if l.Found != nil {
		err = errors.Join(err, l.Close(ctx))
	}
	return err
}
