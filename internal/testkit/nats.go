package testkit

import (
	"testing"

	"github.com/nats-io/nats.go"

	"keyledger/internal/natsserver"
)

// NATSServer is one test's own NATS server with JetStream.
type NATSServer struct {
	*natsserver.Server
	URL      string     // with credentials
	Conn     *nats.Conn // in process
	StoreDir string
}

// NATS starts a NATS server for one test and stops it afterwards.
func NATS(t testing.TB) *NATSServer {
	t.Helper()
	n := &NATSServer{StoreDir: t.TempDir()}
	server, err := natsserver.Start(t.Context(), natsserver.Options{
		StoreDir: n.StoreDir, User: "test", Password: "test", Logger: Logger(t),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Shutdown(); err != nil {
			t.Errorf("testkit: stop nats: %v", err)
		}
	})
	conn, err := server.Connect()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	n.Server, n.Conn, n.URL = server, conn, server.ClientURL()
	return n
}
