package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"keyledger/eventstore"
	"keyledger/internal/postgres"
	"keyledger/migrations"
)

// masterKey is the one of every ledger that the bench makes and throws away.
func masterKey() []byte { return make([]byte, eventstore.MasterKeySize) }

// database is a private Postgres with the settings of keyledger serve.
type database struct {
	server   *postgres.Server // nil when it is somebody else's
	dir      string
	url      string // of the service's login
	adminURL string
}

func startDatabase(ctx context.Context) (_ *database, err error) {
	dir, err := os.MkdirTemp("", "keyledger-bench-")
	if err != nil {
		return nil, err
	}
	db := &database{dir: dir}
	defer func() {
		if err != nil {
			db.stop()
		}
	}()
	// The unprivileged user that Postgres runs as must be able to pass.
	if err := os.Chmod(dir, 0o711); err != nil {
		return nil, err
	}
	if db.server, err = postgres.Start(ctx, postgres.Options{Dir: filepath.Join(dir, "postgres")}); err != nil {
		return nil, err
	}
	db.url, db.adminURL = db.server.URL(), db.server.AdminURL()
	if err := migrations.Apply(ctx, db.adminURL, slog.New(slog.DiscardHandler)); err != nil {
		return nil, err
	}
	return db, db.prepareBaselines(ctx)
}

func (d *database) stop() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if d.server != nil {
		if err := d.server.Stop(ctx); err != nil {
			fmt.Fprintln(os.Stderr, "bench: stop postgres:", err)
		}
	}
	_ = os.RemoveAll(d.dir)
}
