package testkit_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"keyledger/internal/postgres"
	"keyledger/internal/testkit"
	"keyledger/migrations"
)

func TestMain(m *testing.M) { testkit.Main(m) }

func TestEveryDatabaseIsMigratedAndItsOwn(t *testing.T) {
	t.Parallel()
	for range 2 {
		db := testkit.Database(t)
		pending, err := migrations.Pending(t.Context(), db.AdminURL)
		if err != nil || pending {
			t.Errorf("migrations are pending: %v (%v)", pending, err)
		}
		exec(t, connect(t, db.AdminURL), "CREATE TABLE mine (id int)")
	}
}

func TestTheServiceLoginSeesWhatTheMigrationsGranted(t *testing.T) {
	t.Parallel()
	conn := connect(t, testkit.Database(t).URL)
	_, err := conn.Exec(t.Context(), "SELECT FROM log_head")
	if denied, ok := errors.AsType[*pgconn.PgError](err); !ok || denied.Code != "42501" {
		t.Errorf("got %v before SET ROLE, want that it is denied", err)
	}
	exec(t, conn, "SET ROLE keyledger_service")
	exec(t, conn, "SELECT FROM log_head")
}

func TestADatabaseIsDroppedAlthoughATestLeftAConnection(t *testing.T) {
	t.Parallel()
	var left *pgx.Conn
	t.Run("careless", func(t *testing.T) {
		var err error
		if left, err = pgx.Connect(t.Context(), testkit.Database(t).AdminURL); err != nil {
			t.Fatal(err)
		}
	})
	if err := left.Ping(t.Context()); err == nil {
		t.Error("the database is still there")
	}
}

func TestAClusterIsKilledPausedAndStopped(t *testing.T) {
	t.Parallel()
	cluster := testkit.Postgres(t, postgres.Options{})
	var durable string
	if err := connect(t, cluster.AdminURL()).QueryRow(t.Context(), "SHOW fsync").Scan(&durable); err != nil || durable != "on" {
		t.Errorf("fsync is %q (%v)", durable, err)
	}
	cluster.Kill()
	cluster.AwaitRestart()
	conn := connect(t, cluster.AdminURL())

	cluster.Pause()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if paused, err := pgx.Connect(ctx, cluster.URL()); err == nil {
		_ = paused.Close(t.Context())
		t.Error("a paused cluster answers")
	}
	cluster.Resume()
	exec(t, conn, "SELECT 1")

	url := cluster.URL()
	cluster.Stop()
	if stopped, err := pgx.Connect(t.Context(), url); err == nil {
		_ = stopped.Close(t.Context())
		t.Error("a stopped cluster answers")
	}
	cluster.Start()
	connect(t, url)
}

func TestAStoppedNATSServerKeepsItsStreamsUnlessTheyAreWiped(t *testing.T) {
	t.Parallel()
	server := testkit.NATS(t)
	client, err := nats.Connect(server.URL, nats.ReconnectWait(time.Millisecond), nats.MaxReconnects(-1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	reconnected := make(chan struct{}, 2)
	client.SetReconnectHandler(func(*nats.Conn) { reconnected <- struct{}{} })
	js, err := jetstream.New(client)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}}); err != nil {
		t.Fatal(err)
	}
	server.Stop()
	server.Start()
	<-reconnected
	if _, err := js.Stream(t.Context(), "S"); err != nil {
		t.Error(err)
	}
	server.Stop()
	if err := os.RemoveAll(server.StoreDir + "/jetstream"); err != nil {
		t.Fatal(err)
	}
	server.Start()
	<-reconnected
	if _, err := js.Stream(t.Context(), "S"); !errors.Is(err, jetstream.ErrStreamNotFound) {
		t.Errorf("got %v, want that the stream is gone", err)
	}
}

func connect(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
	return conn
}

func exec(t *testing.T, conn *pgx.Conn, sql string) {
	t.Helper()
	if _, err := conn.Exec(t.Context(), sql); err != nil {
		t.Fatal(err)
	}
}

func TestAPortIsGivenToOneTestAtATime(t *testing.T) {
	t.Parallel()
	given := map[int]bool{}
	for range 50 {
		port := testkit.Port(t)
		listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			t.Fatal(err)
		}
		_ = listener.Close() // it stays ours
		if given[port] {
			t.Errorf("port %d is given twice", port)
		}
		given[port] = true
	}
}
