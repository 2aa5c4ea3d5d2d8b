package logtest

import (
	"context"
	"net"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Pause stops a client in the middle of sending one message, as SIGSTOP would:
// the connection stays open, and nothing more comes.
type Pause struct {
	matches func(message []byte) bool
	sent    func(length int) int // of a message's bytes, how many are still sent

	once   sync.Once
	Paused chan struct{} // closed when the client has stopped
	goOn   chan struct{}
	going  sync.Once
}

// Continue lets the client go on.
func (p *Pause) Continue() { p.going.Do(func() { close(p.goOn) }) }

// PausePool connects as the service does. The first message that matches is sent as
// far as sent says, and then its client stops.
func PausePool(t testing.TB, url string, matches func([]byte) bool, sent func(length int) int) (*pgxpool.Pool, *Pause) {
	t.Helper()
	p := &Pause{matches: matches, sent: sent, Paused: make(chan struct{}), goOn: make(chan struct{})}
	config, err := pgxpool.ParseConfig(url)
	Must(t, err)
	dial := config.ConnConfig.DialFunc
	config.ConnConfig.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		return &pausingConn{Conn: conn, pause: p}, err
	}
	config.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, "SET ROLE keyledger_service")
		return err
	}
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	Must(t, err)
	t.Cleanup(func() { p.Continue(); pool.Close() })
	return pool, p
}

type pausingConn struct {
	net.Conn
	pause *Pause
}

func (c *pausingConn) Write(b []byte) (int, error) {
	n := len(b)
	if c.pause.matches(b) {
		c.pause.once.Do(func() { n = c.pause.sent(len(b)) })
	}
	if n == len(b) {
		return c.Conn.Write(b)
	}
	written, err := c.Conn.Write(b[:n])
	if err != nil {
		return written, err
	}
	close(c.pause.Paused)
	<-c.pause.goOn
	rest, err := c.Conn.Write(b[n:])
	return written + rest, err
}
