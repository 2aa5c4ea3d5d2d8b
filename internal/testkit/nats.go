package testkit

import (
	"context"
	"testing"

	"github.com/nats-io/nats.go"

	"keyledger/internal/natsserver"
)

// NATSServer is one test's own NATS server with JetStream.
type NATSServer struct {
	*natsserver.Server
	URL      string     // with credentials
	Conn     *nats.Conn // in process: it ends with the server
	StoreDir string
	t        testing.TB
	port     int
}

// NATS starts a NATS server for one test and stops it afterwards.
func NATS(t testing.TB) *NATSServer {
	t.Helper()
	n := &NATSServer{t: t, StoreDir: t.TempDir(), port: Port(t)}
	n.Start()
	return n
}

// Start brings the server back after Stop with what is in StoreDir, on the same
// port, so that connections to URL come back by themselves.
func (n *NATSServer) Start() {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.t.Context(), startWithin)
	defer cancel()
	server, err := natsserver.Start(ctx, natsserver.Options{
		StoreDir: n.StoreDir, User: "test", Password: "test", Port: n.port, Logger: Logger(n.t),
	})
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { stopNATS(n.t, server) })
	conn, err := server.Connect()
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(conn.Close)
	n.Server, n.Conn, n.URL = server, conn, server.ClientURL()
}

// Stop ends the server. Its streams stay in StoreDir, to be kept or wiped.
func (n *NATSServer) Stop() {
	n.t.Helper()
	n.Conn.Close()
	stopNATS(n.t, n.Server)
}

func stopNATS(t testing.TB, server *natsserver.Server) {
	t.Helper()
	if err := server.Shutdown(); err != nil {
		t.Errorf("testkit: stop nats: %v", err)
	}
}
