package testkit

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"keyledger/internal/postgres"
	"keyledger/migrations"
)

// DB is one test's own database, migrated and empty.
type DB struct {
	AdminURL string // the superuser and owner
	URL      string // the service's restricted login
}

// Database clones a migrated database for one test and drops it afterwards.
func Database(t testing.TB) DB {
	t.Helper()
	return database(t, "keyledger")
}

// EmptyDatabase is Database without the migrations.
func EmptyDatabase(t testing.TB) DB {
	t.Helper()
	return database(t, "template0")
}

func database(t testing.TB, template string) DB {
	t.Helper()
	source, err := sharedTemplate()
	if err != nil {
		t.Fatal(err)
	}
	name, err := source.clone(t.Context(), template)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx := context.WithoutCancel(t.Context())
		// Connections that a test left open must not keep its database.
		if _, err := source.pool.Exec(ctx, "DROP DATABASE "+name+" WITH (FORCE)"); err != nil {
			t.Errorf("testkit: drop the test's database: %v", err)
		}
	})
	return DB{AdminURL: withDatabase(source.server.AdminURL(), name), URL: withDatabase(source.server.URL(), name)}
}

// template is the test process's Postgres. Its database keyledger is migrated
// once, never connected to again, and copied.
type template struct {
	server *postgres.Server
	pool   *pgxpool.Pool // of the superuser, on the database postgres
	clones atomic.Int64
}

// quick are settings for data that nobody will miss.
var quick = map[string]string{
	"fsync":              "off",
	"synchronous_commit": "off",
	"full_page_writes":   "off",
	"wal_compression":    "off",
	"wal_level":          "minimal",
	"max_wal_senders":    "0",
	"shared_buffers":     "64MB",
	"max_connections":    "400",
	"autovacuum":         "on",
}

func sharedTemplate() (*template, error) {
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.database != nil || shared.failed != nil {
		return shared.database, shared.failed
	}
	root, err := sharedRootLocked()
	if err == nil {
		shared.database, err = startTemplate(filepath.Join(root.path, "shared"))
	}
	if err != nil {
		shared.failed = fmt.Errorf("testkit: %w", err)
	}
	return shared.database, shared.failed
}

func startTemplate(dir string) (_ *template, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), startWithin)
	defer cancel()
	server, err := postgres.Start(ctx, postgres.Options{Dir: dir, Settings: quick})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = server.Stop(ctx)
		}
	}()
	if err := migrations.Apply(ctx, server.AdminURL(), slog.New(slog.DiscardHandler)); err != nil {
		return nil, err
	}
	config, err := pgxpool.ParseConfig(withDatabase(server.AdminURL(), "postgres"))
	if err != nil {
		return nil, fmt.Errorf("parse the database's URL: %w", err)
	}
	config.MaxConns = 4
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("connect to the tests' database server: %w", err)
	}
	// A database can only be copied while nobody is connected to it.
	if _, err := pool.Exec(ctx, "ALTER DATABASE keyledger WITH ALLOW_CONNECTIONS false"); err != nil {
		pool.Close()
		return nil, fmt.Errorf("close the template to connections: %w", err)
	}
	return &template{server: server, pool: pool}, nil
}

func (t *template) clone(ctx context.Context, template string) (string, error) {
	name := fmt.Sprintf("test_%d", t.clones.Add(1))
	if _, err := t.pool.Exec(ctx, "CREATE DATABASE "+name+" TEMPLATE "+template); err != nil {
		return "", fmt.Errorf("testkit: clone the template: %w", err)
	}
	return name, nil
}

func (t *template) stop(ctx context.Context) error {
	t.pool.Close()
	return t.server.Stop(ctx)
}

// withDatabase names a database of the server, for clients that are patient: many who connect
// at once to a busy machine, where passwords are hashed under the race detector, take seconds.
func withDatabase(address, name string) string {
	u, err := url.Parse(address)
	if err != nil {
		panic(err) // our own URL
	}
	u.Path = "/" + name
	query := u.Query()
	query.Set("connect_timeout", "60")
	u.RawQuery = query.Encode()
	return u.String()
}
