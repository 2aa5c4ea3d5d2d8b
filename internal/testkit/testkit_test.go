package testkit_test

import (
	"testing"

	"github.com/jackc/pgx/v5"

	"keyledger/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

func TestEveryTestHasItsOwnDatabase(t *testing.T) {
	t.Parallel()
	for range 2 {
		db := testkit.Database(t)
		conn := connect(t, db.AdminURL)
		if _, err := conn.Exec(t.Context(), "CREATE TABLE mine (id int)"); err != nil {
			t.Fatal(err)
		}
	}
}

func connect(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(t.Context()) })
	return conn
}
