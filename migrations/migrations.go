// Package migrations holds the database's schema as a sequence of SQL files and
// applies it.
//
// Any number of processes may apply it at once: one does the work under an
// advisory lock, the others wait and find it done. Every file runs in a
// transaction of its own, so a file is either applied or it is not.
package migrations

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"log/slog"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
)

//go:embed *.sql
var files embed.FS

// LockID is the advisory lock under which migrations are applied.
const LockID int64 = 0x6b65796c_00000001 // "keyl", 1

// A process that waits for the lock asks for it once a second, for as long as a
// large migration may take.
const (
	lockPeriod   = 1
	lockAttempts = 3600
)

// Apply brings the database up to date. The URL's role must own the database.
func Apply(ctx context.Context, adminURL string, logger *slog.Logger) error {
	return with(adminURL, func(provider *goose.Provider) error {
		results, err := provider.Up(ctx)
		if err != nil {
			return fmt.Errorf("apply the migrations: %w", err)
		}
		for _, result := range results {
			logger.Info("migration applied", "file", result.Source.Path, "took", result.Duration)
		}
		return nil
	})
}

// Pending tells whether the database lacks migrations that this program has.
func Pending(ctx context.Context, adminURL string) (bool, error) {
	var pending bool
	err := with(adminURL, func(provider *goose.Provider) (err error) {
		pending, err = provider.HasPending(ctx)
		return err
	})
	if err != nil {
		return false, fmt.Errorf("look for pending migrations: %w", err)
	}
	return pending, nil
}

// Version returns the database's version and the one this program brings.
func Version(ctx context.Context, adminURL string) (current, latest int64, err error) {
	err = with(adminURL, func(provider *goose.Provider) (err error) {
		current, latest, err = provider.GetVersions(ctx)
		return err
	})
	if err != nil {
		return 0, 0, fmt.Errorf("look for the schema's version: %w", err)
	}
	return current, latest, nil
}

func with(adminURL string, do func(*goose.Provider) error) (err error) {
	config, err := pgx.ParseConfig(adminURL)
	if err != nil {
		return fmt.Errorf("parse the database URL: %w", err)
	}
	// A session lock belongs to one connection: no pooler, no second one.
	db := stdlib.OpenDB(*config)
	defer func() { err = errors.Join(err, db.Close()) }()
	locker, err := lock.NewPostgresSessionLocker(
		lock.WithLockID(LockID),
		lock.WithLockTimeout(lockPeriod, lockAttempts),
	)
	if err != nil {
		return fmt.Errorf("make the migration lock: %w", err)
	}
	provider, err := newProvider(db, locker)
	if err != nil {
		return fmt.Errorf("read the migrations: %w", err)
	}
	return do(provider)
}

func newProvider(db *sql.DB, locker lock.SessionLocker) (*goose.Provider, error) {
	return goose.NewProvider(goose.DialectPostgres, db, files,
		goose.WithSessionLocker(locker),
		goose.WithDisableGlobalRegistry(true),
		goose.WithSlog(slog.New(slog.DiscardHandler)),
	)
}
