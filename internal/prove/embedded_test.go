package prove_test

import (
	"context"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"sync"
	"testing"

	"keyledger/internal/servertest"
	"keyledger/internal/testkit"
)

// embedded is a program with an embedded verifier in it.
type embedded struct {
	name    string
	url     string
	link    *link // to the servers
	options servertest.Options

	t       testing.TB
	mu      sync.Mutex
	running *servertest.Server
}

var verifierProgram = servertest.Program{Package: "./internal/prove/verifier"}

// newEmbedded starts a verifier. The first one knows a server of its own; the others go
// through a balancer, so that they learn the keys from one server, renew their lease through
// another, and confirm to a third.
func (s *site) newEmbedded(i int, key string) *embedded {
	s.t.Helper()
	name, target := "verifier"+strconv.Itoa(i), s.nodes[len(s.nodes)-1].options.Listen
	switch {
	case i > 0 && s.size.direct:
		target = s.nodes[(i-1)%len(s.nodes)].options.Listen
	case i > 0:
		target = s.balancer()
	}
	program := verifierProgram
	program.Tags = s.size.program.Tags
	v := &embedded{t: s.t, name: name, link: s.link(s.t, name+" to the servers", target)}
	listen := "127.0.0.1:" + strconv.Itoa(testkit.Port(s.t))
	v.url = "http://" + listen
	v.options = servertest.Options{
		DataDir: filepath.Join(testkit.Dir(s.t), name), Listen: listen, Program: program,
		Env: append([]string{"VERIFIER_URL=http://" + v.link.address(), "VERIFIER_KEY=" + key}, s.size.verifierEnv...),
	}
	v.launch()
	return v
}

func (v *embedded) launch() {
	server := servertest.Launch(v.t, v.options)
	v.mu.Lock()
	defer v.mu.Unlock()
	v.running = server
}

func (v *embedded) process() *servertest.Server {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.running
}

func (s *site) askEmbedded(ctx context.Context, v *embedded, key string) answer {
	status, _, body := s.call(ctx, http.MethodPost, v.url, key, nil)
	return verdictOf(status, body)
}

// balancer listens for connections and gives each to any server that takes it.
func (s *site) balancer() string {
	s.t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.t.Fatal(err)
	}
	var serving sync.WaitGroup
	var mu sync.Mutex
	open := map[net.Conn]bool{}
	serving.Go(func() {
		for {
			near, err := listener.Accept()
			if err != nil {
				return
			}
			far := s.anyServer()
			if far == nil {
				_ = near.Close()
				continue
			}
			mu.Lock()
			open[near], open[far] = true, true
			mu.Unlock()
			for to, from := range map[net.Conn]net.Conn{near: far, far: near} {
				serving.Go(func() {
					_, _ = io.Copy(to, from)
					_, _ = to.Close(), from.Close()
					mu.Lock()
					defer mu.Unlock()
					delete(open, from)
				})
			}
		}
	})
	s.t.Cleanup(func() {
		_ = listener.Close()
		mu.Lock()
		for conn := range open {
			_ = conn.Close()
		}
		mu.Unlock()
		serving.Wait()
	})
	return listener.Addr().String()
}

func (s *site) anyServer() net.Conn {
	for _, i := range rand.Perm(len(s.nodes)) {
		if conn, err := net.Dial("tcp", s.nodes[i].options.Listen); err == nil {
			return conn
		}
	}
	return nil
}
