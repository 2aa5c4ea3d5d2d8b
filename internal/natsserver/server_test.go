package natsserver_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"keyledger/internal/datadir"
	"keyledger/internal/natsserver"
	"keyledger/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

func TestARestartKeepsStreamsAndAddress(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	// One that nobody else is given meanwhile.
	if err := datadir.At(dir).WriteFile("port", []byte(strconv.Itoa(testkit.Port(t)))); err != nil {
		t.Fatal(err)
	}
	server := start(t, natsserver.Options{StoreDir: dir})
	address := server.ClientURL()
	js := jetStream(t, connect(t, server))
	createStream(t, js, 1)
	for i := range 3 {
		if _, err := js.Publish(t.Context(), "kept.subject", []byte(strconv.Itoa(i))); err != nil {
			t.Fatal(err)
		}
	}
	if err := server.Shutdown(); err != nil {
		t.Fatal(err)
	}
	server = start(t, natsserver.Options{StoreDir: dir})
	if server.ClientURL() != address {
		t.Errorf("the address changed from %s to %s", address, server.ClientURL())
	}
	stream, err := jetStream(t, connect(t, server)).Stream(t.Context(), "KEPT")
	if err != nil {
		t.Fatal(err)
	}
	if last := stream.CachedInfo().State.LastSeq; last != 3 {
		t.Errorf("the stream ends at %d, want 3", last)
	}
}

func TestNobodyConnectsWithoutThePassword(t *testing.T) {
	t.Parallel()
	server := start(t, natsserver.Options{StoreDir: t.TempDir()})
	bare := fmt.Sprintf("nats://127.0.0.1:%d", server.Port())
	for _, options := range [][]nats.Option{nil, {nats.UserInfo("keyledger", "wrong")}} {
		conn, err := nats.Connect(bare, options...)
		if !errors.Is(err, nats.ErrAuthorization) {
			t.Errorf("got %v, want a refusal", err)
		}
		if err == nil {
			conn.Close()
		}
	}
	conn, err := nats.Connect(server.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	_, err = natsserver.Start(t.Context(), natsserver.Options{StoreDir: t.TempDir()})
	if err == nil {
		t.Error("a server without a password was started")
	}
}

func TestASecondServerOnTheSameStoreIsRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	start(t, natsserver.Options{StoreDir: dir})
	_, err := natsserver.Start(t.Context(), natsserver.Options{StoreDir: dir, User: "u", Password: "p"})
	if !errors.Is(err, datadir.ErrLocked) {
		t.Errorf("got %v, want that the store is in use", err)
	}
}

func TestATakenPortIsReplacedUnlessItWasAskedFor(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	squatter, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = squatter.Close() }()
	taken := squatter.Addr().(*net.TCPAddr).Port
	if err := datadir.At(dir).WriteFile("port", []byte(strconv.Itoa(taken)+"\n")); err != nil {
		t.Fatal(err)
	}
	server := start(t, natsserver.Options{StoreDir: dir})
	if server.Port() == taken || server.Port() == 0 {
		t.Errorf("it listens on %d", server.Port())
	}
	connect(t, server)
	_, err = natsserver.Start(t.Context(), natsserver.Options{StoreDir: t.TempDir(), User: "u", Password: "p", Port: taken})
	if err == nil || !strings.Contains(err.Error(), strconv.Itoa(taken)) {
		t.Errorf("got %v, want an error about port %d", err, taken)
	}
}

func TestTheStoreIsClosedToOthers(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "nats")
	server := start(t, natsserver.Options{StoreDir: dir})
	createStream(t, jetStream(t, connect(t, server)), 1)
	info, err := os.Stat(dir)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o700 {
		t.Errorf("the store has mode %v", info.Mode())
	}
}

func TestThreeServersInOneProcessKeepAReplicatedStream(t *testing.T) {
	t.Parallel()
	var ports [3]int
	var routes []string
	for i := range ports {
		ports[i] = testkit.Port(t)
		routes = append(routes, fmt.Sprintf("nats://127.0.0.1:%d", ports[i]))
	}
	var servers []*natsserver.Server
	for i, port := range ports {
		servers = append(servers, start(t, natsserver.Options{
			StoreDir: t.TempDir(), Name: fmt.Sprintf("n%d", i), ClusterName: "test", RoutePort: port, Routes: routes,
		}))
	}
	js := jetStream(t, connect(t, servers[0]))
	createStream(t, js, 3)
	publish := func(ctx context.Context) error {
		_, err := js.Publish(ctx, "kept.subject", []byte("x"))
		return err
	}
	insist(t, publish)
	// Two of three go on without the third.
	if err := servers[2].Shutdown(); err != nil {
		t.Fatal(err)
	}
	insist(t, publish)
}

func start(t *testing.T, opts natsserver.Options) *natsserver.Server {
	t.Helper()
	opts.User, opts.Password, opts.Logger = "keyledger", "sesame", testkit.Logger(t)
	server, err := natsserver.Start(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Shutdown() })
	return server
}

func connect(t *testing.T, server *natsserver.Server) *nats.Conn {
	t.Helper()
	conn, err := server.Connect()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	return conn
}

func jetStream(t *testing.T, conn *nats.Conn) jetstream.JetStream {
	t.Helper()
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	return js
}

// createStream asks until somebody answers: a cluster without a leader does not.
func createStream(t *testing.T, js jetstream.JetStream, replicas int) {
	t.Helper()
	insist(t, func(ctx context.Context) error {
		_, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: "KEPT", Subjects: []string{"kept.>"}, Replicas: replicas})
		return err
	})
}

func insist(t *testing.T, do func(context.Context) error) {
	t.Helper()
	for range 120 {
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		err := do(ctx)
		cancel()
		if err == nil {
			return
		}
		t.Log(err)
	}
	t.Fatal("nobody answers")
}
