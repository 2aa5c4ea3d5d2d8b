package faults_test

import (
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"keyledger/domain"
	"keyledger/eventstore"
	"keyledger/internal/audit"
	"keyledger/internal/postgres"
	"keyledger/internal/servertest"
	"keyledger/internal/testkit"
	"keyledger/publisher"
)

func TestMain(m *testing.M) {
	if database := os.Getenv(childDatabase); database != "" {
		if err := useKeys(database); err != nil {
			fmt.Fprintln(os.Stderr, "the process of uses:", err)
			os.Exit(1)
		}
		return
	}
	testkit.Main(m)
}

// rounds is how often each fault strikes.
func rounds(t *testing.T) int {
	t.Helper()
	text, ok := os.LookupEnv("KEYLEDGER_SOAK")
	if !ok {
		return 5
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("KEYLEDGER_SOAK is no number: %v", err)
	}
	return n
}

// someCommands is how many acknowledgements a fault waits for.
func someCommands() int { return 1 + rand.IntN(40) }

func TestNothingIsLostWhenTheServerIsKilled(t *testing.T) {
	t.Parallel()
	killServer(t, func(string) {})
}

func TestNothingIsLostWhenTheServerIsKilledAndItsStreamsAreWiped(t *testing.T) {
	t.Parallel()
	killServer(t, func(dataDir string) {
		if err := os.RemoveAll(filepath.Join(dataDir, "nats", "jetstream")); err != nil {
			t.Error(err)
		}
	})
}

func killServer(t *testing.T, meanwhile func(dataDir string)) {
	t.Helper()
	server := servertest.Start(t, servertest.Options{})
	l := startLoad(t, server.Bootstrap(organization, "--rate-limit", "0"), server.URL())
	for range rounds(t) {
		l.await(0, someCommands())
		server.Kill()
		l.drain()
		meanwhile(server.DataDir())
		server = servertest.Start(t, servertest.Options{DataDir: server.DataDir()})
		l.moved(0, server.URL())
	}
	l.await(0, someCommands())
	l.stop()
	l.audit(server)
}

func TestNothingIsLostWhenPostgresIsKilled(t *testing.T) {
	t.Parallel()
	server := servertest.Start(t, servertest.Options{})
	l := startLoad(t, server.Bootstrap(organization, "--rate-limit", "0"), server.URL())
	for range rounds(t) {
		l.await(0, someCommands())
		// Answers of the time before the last kill may have come late.
		await(t, "Postgres", func() bool { return server.PostgresPid() != 0 })
		server.KillPostgres()
		l.drain()
	}
	l.await(0, someCommands())
	l.stop()
	l.audit(server)
}

// A node that is paused wherever it happens to be must not stop the other one:
// it may hold no lock over the pause.
func TestAPausedNodeStopsNobody(t *testing.T) {
	t.Parallel()
	cluster := testkit.Postgres(t, postgres.Options{})
	broker := testkit.NATS(t)
	env := []string{
		"DATABASE_URL=" + cluster.URL(), "KEYLEDGER_DATABASE_ADMIN_URL=" + cluster.AdminURL(), "NATS_URL=" + broker.URL,
		"KEYLEDGER_MASTER_KEY=" + hex.EncodeToString(make([]byte, eventstore.MasterKeySize)),
		"KEYLEDGER_JWT_SECRET=a secret of both nodes, for their tokens",
	}
	nodes := []*servertest.Server{servertest.Start(t, servertest.Options{Env: env}), servertest.Start(t, servertest.Options{Env: env})}
	key := nodes[0].Bootstrap(organization, "--rate-limit", "0")
	second := client{t: t, base: nodes[1].URL(), key: key}
	await(t, "the new key on the second node", func() bool {
		_, _, body := second.verify()
		return strings.Contains(body, `"VALID"`)
	})
	l := startLoad(t, key, nodes[0].URL(), nodes[1].URL())
	for round := range rounds(t) {
		paused, other := round%2, 1-round%2
		l.await(paused, someCommands())
		nodes[paused].Pause()
		l.drain()
		l.await(other, 25)
		nodes[paused].Resume()
	}
	l.await(0, someCommands())
	l.stop()
	l.audit(nodes[0])
}

// audit waits until the streams have caught up, audits everything, and holds what was
// acknowledged against it.
func (l *load) audit(server *servertest.Server) {
	l.t.Helper()
	endpoints := server.Endpoints()
	report, err := audit.Run(l.t.Context(), audit.Ledger{DatabaseURL: endpoints.DatabaseAdmin})
	if err != nil {
		l.t.Fatal(err)
	}
	for _, fault := range report.Faults {
		l.t.Error(fault)
	}
	awaitStream(l.t, endpoints.NATS, report.Events[domain.Lifecycle])
	streams, err := audit.Run(l.t.Context(), audit.Ledger{DatabaseURL: endpoints.DatabaseAdmin, NATSURL: endpoints.NATS})
	if err != nil {
		l.t.Fatal(err)
	}
	for _, fault := range streams.Faults {
		if fault.Lane == domain.Lifecycle { // uses are still being flushed
			l.t.Error(fault)
		}
	}
	for id := range l.created {
		if !report.Keys[id].Exists() {
			l.t.Errorf("the creation of %s was acknowledged and is lost", id)
		}
	}
	for id := range l.revoked {
		if !report.Keys[id].Revoked {
			l.t.Errorf("the revocation of %s was acknowledged and is lost", id)
		}
	}
	if result := server.Run("replay"); result.Code != 0 {
		l.t.Errorf("the projections differ from a fresh replay:\n%s%s", result.Stdout, result.Stderr)
	}
	l.t.Logf("%d creations and %d revocations were acknowledged; the log has %d events", len(l.created), len(l.revoked), report.Events[domain.Lifecycle])
}

// awaitStream returns when the lifecycle stream has reached a position.
func awaitStream(t testing.TB, url string, position domain.Position) {
	t.Helper()
	nc, err := nats.Connect(url)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	poll := time.NewTicker(10 * time.Millisecond)
	defer poll.Stop()
	deadline := time.After(time.Minute)
	for {
		stream, err := js.Stream(t.Context(), publisher.LifecycleStream)
		if err == nil && domain.Position(stream.CachedInfo().State.LastSeq) >= position {
			return
		}
		select {
		case <-poll.C:
		case <-deadline:
			t.Fatalf("the stream does not reach position %d: %v", position, err)
		}
	}
}
