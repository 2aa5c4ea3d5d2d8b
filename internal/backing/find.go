package backing

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/jackc/pgx/v5"

	"keyledger/internal/config"
	"keyledger/internal/datadir"
)

// Needs are what a command needs beside the database.
type Needs struct {
	NATS bool
	// Create makes a ledger where there is none. Without it, that is an error: most
	// likely the data directory was misspelt.
	Create bool
}

// Found is what a command works on.
type Found struct {
	Dir      *datadir.Dir
	Database *Database
	NATS     *NATS  // nil unless it is needed
	HTTP     string // of the server that runs on the data directory; empty: none does

	locked bool
}

const serverStartsWithin = time.Minute

// Find gives the services that a command works on, in this order: what is
// configured, what the server uses that runs on the data directory, and the embedded ones, started
// until Close.
func Find(ctx context.Context, c config.Config, needs Needs, logger *slog.Logger) (_ *Found, err error) {
	f := &Found{Dir: datadir.At(c.DataDir)}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close(ctx))
		}
	}()
	ownNATS := needs.NATS && !c.NATSURL.IsSet()
	running, err := f.running(ctx, c.DatabaseURL.IsSet() && !ownNATS, logger)
	if err != nil {
		return nil, err
	}
	if running != (datadir.Endpoints{}) {
		// With a database of its own, the command may be about another ledger than the
		// server's.
		if !c.DatabaseURL.IsSet() || sameDatabase(c.DatabaseURL.Reveal(), running.Database) {
			f.HTTP = running.HTTP
		}
		if !c.DatabaseURL.IsSet() {
			f.Database = &Database{URL: running.Database, Endpoint: running.Database, AdminURL: running.DatabaseAdmin}
		}
		if ownNATS {
			f.NATS = &NATS{Endpoint: running.NATS, creds: c.NATSCreds}
		}
	}
	if c.DatabaseURL.IsSet() {
		f.Database = configured(c)
		if err := f.Database.await(ctx, 0, logger); err != nil {
			return nil, err
		}
	}
	if f.Database == nil || ownNATS && f.NATS == nil {
		if err := f.own(needs); err != nil {
			return nil, err
		}
	}
	if f.Database == nil {
		logger.Info("no server runs on the data directory: starting its Postgres for this command", "data", f.Dir.Path())
		if f.Database, err = StartDatabase(ctx, f.Dir, c, logger); err != nil {
			return nil, err
		}
	}
	if needs.NATS && f.NATS == nil {
		if f.NATS, err = StartNATS(ctx, f.Dir, c, logger); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// sameDatabase says whether two URLs lead to one database, whoever logs in.
func sameDatabase(a, b string) bool {
	x, errX := pgx.ParseConfig(a)
	y, errY := pgx.ParseConfig(b)
	return errX == nil && errY == nil && x.Host == y.Host && x.Port == y.Port && x.Database == y.Database
}

// running gives the endpoints of the server that runs on the data directory,
// none when there is no server. One that is starting is waited for, unless it
// does not matter.
func (f *Found) running(ctx context.Context, optional bool, logger *slog.Logger) (datadir.Endpoints, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, serverStartsWithin, errors.New("it has not become ready in a minute"))
	defer cancel()
	poll := time.NewTicker(50 * time.Millisecond)
	defer poll.Stop()
	for said := false; ; {
		endpoints, err := f.Dir.ReadEndpoints()
		if err == nil || !errors.Is(err, datadir.ErrNotRunning) {
			return endpoints, err
		}
		pid, held, err := f.Dir.Holder()
		if err != nil || !held || optional {
			return datadir.Endpoints{}, err
		}
		if !said {
			logger.Info("waiting for the server that is starting on the data directory", "data", f.Dir.Path(), "pid", pid)
			said = true
		}
		select {
		case <-poll.C:
		case <-ctx.Done():
			return datadir.Endpoints{}, fmt.Errorf("wait for process %d, which works on %s: %w", pid, f.Dir.Path(), context.Cause(ctx))
		}
	}
}

// own locks the data directory for the embedded parts that are about to start.
func (f *Found) own(needs Needs) error {
	part := f.Dir.Path("postgres", "data")
	if f.Database != nil {
		part = f.Dir.Path("nats")
	}
	if _, err := os.Stat(part); err != nil && !needs.Create {
		return fmt.Errorf("there is no ledger in %s: name its data directory with --data-dir, or its services with DATABASE_URL and NATS_URL, "+
			"or start one with keyledger serve", f.Dir.Path())
	}
	dir, err := datadir.Open(f.Dir.Path())
	if err != nil {
		return err
	}
	f.Dir, f.locked = dir, true
	return nil
}

// Close stops what Find has started.
func (f *Found) Close(ctx context.Context) error {
	// What was begun is ended, whatever has become of the command.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	err := errors.Join(f.NATS.Stop(), f.Database.Stop(ctx))
	if f.locked {
		err = errors.Join(err, f.Dir.Close())
	}
	return err
}

// Owned says that the command works on services that it has started itself.
func (f *Found) Owned() bool { return f.locked && f.Database != nil && f.Database.Embedded }
