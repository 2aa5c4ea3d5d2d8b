package migrations_test

import (
	"log/slog"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"keyledger/internal/testkit"
	"keyledger/migrations"
)

func TestMain(m *testing.M) { testkit.Main(m) }

func TestRacingProcessesApplyEveryMigrationOnce(t *testing.T) {
	t.Parallel()
	db := testkit.EmptyDatabase(t)
	pending, err := migrations.Pending(t.Context(), db.AdminURL)
	if err != nil || !pending {
		t.Fatalf("an empty database has migrations pending: %v (%v)", pending, err)
	}
	var racers errgroup.Group
	for range 4 {
		racers.Go(func() error {
			return migrations.Apply(t.Context(), db.AdminURL, slog.New(slog.DiscardHandler))
		})
	}
	if err := racers.Wait(); err != nil {
		t.Fatal(err)
	}
	current, latest, err := migrations.Version(t.Context(), db.AdminURL)
	if err != nil || current != latest || latest == 0 {
		t.Errorf("the schema has version %d of %d (%v)", current, latest, err)
	}
	pending, err = migrations.Pending(t.Context(), db.AdminURL)
	if err != nil || pending {
		t.Errorf("migrations are pending afterwards: %v (%v)", pending, err)
	}
	conn, err := pgx.Connect(t.Context(), db.AdminURL)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	var twice, locks int
	err = conn.QueryRow(t.Context(), `
		SELECT (SELECT count(*) - count(DISTINCT version_id) FROM goose_db_version),
		       (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))
		`).Scan(&twice, &locks)
	if err != nil {
		t.Fatal(err)
	}
	if twice != 0 || locks != 0 {
		t.Errorf("%d migrations were applied twice, %d locks are left", twice, locks)
	}
}

func TestTwoDatabasesOfOneServerAreMigratedAtOnce(t *testing.T) {
	t.Parallel()
	var both errgroup.Group
	for range 2 {
		db := testkit.EmptyDatabase(t)
		both.Go(func() error {
			return migrations.Apply(t.Context(), db.AdminURL, slog.New(slog.DiscardHandler))
		})
	}
	if err := both.Wait(); err != nil {
		t.Fatal(err)
	}
}

func TestAMalformedURLIsNotShown(t *testing.T) {
	t.Parallel()
	err := migrations.Apply(t.Context(), "postgres://user:sesame@127.0.0.1:x/db", slog.New(slog.DiscardHandler))
	if err == nil {
		t.Fatal("a malformed URL was accepted")
	}
	if text := err.Error(); strings.Contains(text, "sesame") {
		t.Errorf("the error shows the password: %s", text)
	}
}
