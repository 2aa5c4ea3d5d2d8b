package http

import (
	"crypto/tls"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/valyala/fasthttp"
)

// connections knows the open connections: their deadlines, and which of them hold
// up a shutdown.
//
// The deadlines are ours because fasthttp sets three of them for each request,
// with a look at the clock and at the runtime's timers each: measured, a tenth of
// a verification. Here a request only notes how far it has come, by a clock that a
// goroutine moves on, and a deadline goes to the system when it has changed by more
// than a second.
type connections struct {
	timeouts
	started time.Time
	now     atomic.Int64 // nanoseconds since started, as of the last tick
	ticking sync.Once
	done    chan struct{}

	mu        sync.Mutex
	listeners []net.Listener
	open      map[*connection]struct{}
	stopped   bool
}

// timeouts are how long a client may take.
type timeouts struct {
	request time.Duration // for a request to arrive whole, from its first byte
	answer  time.Duration // for its answer to be taken, from the same moment
	idle    time.Duration // for the next request to begin
	stall   time.Duration // for a part of a stream to be taken
}

const (
	tick          = 200 * time.Millisecond
	deadlineSlack = int64(time.Second)

	lingerFor   = time.Second
	lingerBytes = 16 << 20
)

func newConnections(answer time.Duration) *connections {
	return &connections{
		timeouts: timeouts{request: 10 * time.Second, answer: answer + 30*time.Second, idle: 2 * time.Minute, stall: streamStall},
		started:  time.Now(), done: make(chan struct{}), open: map[*connection]struct{}{},
	}
}

type listener struct {
	net.Listener
	owner *connections
	once  sync.Once
	err   error
}

// connection is one client's.
type connection struct {
	net.Conn
	owner       *connections
	used        atomic.Bool // something was asked on it
	lingering   atomic.Bool
	read, write deadline
}

// deadline is in nanoseconds since the connections' start; 0: none.
type deadline struct{ wanted, applied atomic.Int64 }

func (cs *connections) listen(ln net.Listener) net.Listener {
	cs.moveOn(time.Now())
	cs.ticking.Do(func() { go cs.tick() })
	l := &listener{Listener: ln, owner: cs}
	cs.mu.Lock()
	defer cs.mu.Unlock()
	cs.listeners = append(cs.listeners, l)
	if cs.stopped {
		_ = l.Close()
	}
	return l
}

func (cs *connections) tick() {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		select {
		case <-cs.done:
			return
		case now := <-ticker.C:
			cs.moveOn(now)
		}
	}
}

func (cs *connections) moveOn(now time.Time) { cs.now.Store(int64(now.Sub(cs.started))) }

// Close may be called by several owners.
func (l *listener) Close() error {
	l.once.Do(func() { l.err = l.Listener.Close() })
	return l.err
}

func (l *listener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	// A process that was stopped for a while may be here before its next tick.
	l.owner.moveOn(time.Now())
	c := &connection{Conn: conn, owner: l.owner}
	c.within(&c.read, l.owner.request)
	c.within(&c.write, l.owner.answer)
	l.owner.mu.Lock()
	defer l.owner.mu.Unlock()
	l.owner.open[c] = struct{}{}
	return c, nil
}

func (c *connection) within(d *deadline, timeout time.Duration) {
	d.wanted.Store(c.owner.now.Load() + int64(timeout))
}

// changed is told by fasthttp how far a connection has come.
func (cs *connections) changed(conn net.Conn, state fasthttp.ConnState) {
	c := tracked(conn)
	if c == nil {
		return
	}
	switch state {
	case fasthttp.StateActive:
		c.within(&c.read, cs.request)
		c.within(&c.write, cs.answer)
	case fasthttp.StateIdle:
		c.within(&c.read, cs.idle)
	default:
	}
}

func tracked(conn net.Conn) *connection {
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	c, _ := conn.(*connection)
	return c
}

func (c *connection) apply(d *deadline, set func(time.Time) error) error {
	wanted := d.wanted.Load()
	if moved := wanted - d.applied.Load(); -deadlineSlack < moved && moved < deadlineSlack {
		return nil
	}
	d.applied.Store(wanted)
	return set(c.owner.started.Add(time.Duration(wanted)))
}

func (c *connection) Read(b []byte) (int, error) {
	if err := c.apply(&c.read, c.Conn.SetReadDeadline); err != nil {
		return 0, err
	}
	n, err := c.Conn.Read(b)
	if n > 0 && !c.used.Load() {
		c.used.Store(true)
	}
	return n, err
}

func (c *connection) Write(b []byte) (int, error) {
	if err := c.apply(&c.write, c.Conn.SetWriteDeadline); err != nil {
		return 0, err
	}
	return c.Conn.Write(b)
}

func (c *connection) Close() error {
	c.owner.mu.Lock()
	delete(c.owner.open, c)
	c.owner.mu.Unlock()
	if c.lingering.Load() {
		c.discard()
	}
	return c.Conn.Close()
}

// discard reads what the client is still sending. Closing a socket with unread
// data resets the connection, and the answer would be lost with it.
func (c *connection) discard() {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
	}
	_ = c.Conn.SetReadDeadline(time.Now().Add(lingerFor))
	_, _ = io.CopyN(io.Discard, c.Conn, lingerBytes)
}

// linger marks a connection whose request was refused before it was read whole.
func (cs *connections) linger(conn net.Conn) {
	if c := tracked(conn); c != nil {
		c.lingering.Store(true)
	}
}

// stop closes the listeners, and the connections on which nothing was asked yet.
func (cs *connections) stop() {
	cs.mu.Lock()
	cs.stopped = true
	listeners := cs.listeners
	cs.mu.Unlock()
	for _, l := range listeners {
		_ = l.Close()
	}
	cs.close(func(c *connection) bool { return !c.used.Load() })
}

// cut closes whatever is still open.
func (cs *connections) cut() {
	cs.close(func(*connection) bool { return true })
	cs.mu.Lock()
	defer cs.mu.Unlock()
	select {
	case <-cs.done:
	default:
		close(cs.done)
	}
}

func (cs *connections) close(which func(*connection) bool) {
	cs.mu.Lock()
	var closing []*connection
	for c := range cs.open {
		if which(c) {
			closing = append(closing, c)
		}
	}
	cs.mu.Unlock()
	for _, c := range closing {
		_ = c.Conn.Close() // its own goroutine notices, and forgets it
	}
}
