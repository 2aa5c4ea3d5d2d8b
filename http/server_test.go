package http_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"io"
	"log/slog"
	"net"
	nethttp "net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"keyledger/domain"
	keyhttp "keyledger/http"
	"keyledger/internal/testkit"
)

func TestMain(m *testing.M) {
	// One goroutine of each of fasthttp's servers sleeps for ten seconds before it
	// notices that the server has stopped.
	testkit.Main(m, goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.(*workerPool).Start.func2"))
}

const (
	acme  = domain.OrganizationID("org_abc123")
	other = domain.OrganizationID("org_other")
)

var noon = time.Date(2026, 1, 15, 10, 0, 0, 123456789, time.UTC)

// logBuffer collects a server's log.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// site is a server on a loopback port, the ledger behind it, and its clock.
type site struct {
	*ledger
	t       testing.TB
	url     string
	address string
	server  *keyhttp.Server
	metrics *prometheus.Registry
	log     *logBuffer
	client  *nethttp.Client
	// cancelled says that the test has shut the server down before its time.
	cancelled bool

	mu  sync.Mutex
	now time.Time
}

func (s *site) clock() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now
}

func (s *site) pass(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now = s.now.Add(d)
}

// start serves until the test ends. change adapts the options.
func start(t testing.TB, change ...func(*keyhttp.Options)) *site {
	t.Helper()
	s := &site{ledger: newLedger(), t: t, metrics: prometheus.NewRegistry(), log: &logBuffer{}, now: noon}
	options := keyhttp.Options{
		Ledger: s.ledger, Verifier: s.ledger, Quotas: s.ledger, Keys: s.ledger, Epoch: s.epoch, CursorKey: []byte("a key for cursors"),
		Logger: slog.New(slog.NewJSONHandler(s.log, &slog.HandlerOptions{Level: slog.LevelDebug})), Clock: s.clock,
		Registerer: s.metrics, Gatherer: s.metrics, Version: keyhttp.Version{Version: "1.2.3", Commit: "abc"},
		Tokens: keyhttp.TokenOptions{Secret: tokenSecret, Issuer: "https://issuer.example", Audience: "keyledger"},
	}
	for _, c := range change {
		c(&options)
	}
	server, err := keyhttp.New(options)
	if err != nil {
		t.Fatal(err)
	}
	s.server = server
	keyhttp.SetLastUse(server, time.Minute) // however busy the machine is, answers are whole
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.address = listener.Addr().String()
	s.url = "http://" + s.address
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	s.client = &nethttp.Client{Transport: &nethttp.Transport{}, Timeout: 30 * time.Second}
	t.Cleanup(func() {
		s.client.CloseIdleConnections()
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := server.Shutdown(ctx); err != nil && !s.cancelled {
			t.Errorf("shut down: %v", err)
		}
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return s
}

// key makes a key, as the command line does, and gives its plain text.
func (s *site) key(organization domain.OrganizationID, scopes ...domain.Scope) string {
	s.t.Helper()
	return s.keyWith(domain.CreateKey{Organization: organization, Scopes: scopes, RateLimit: domain.DefaultRateLimit}).Reveal()
}

func (s *site) keyWith(c domain.CreateKey) domain.Secret {
	s.t.Helper()
	c.Now = s.clock().UTC().Truncate(time.Microsecond)
	secret, err := domain.NewSecret(domain.DefaultKeyFormat, false, rand.Reader)
	if err != nil {
		s.t.Fatal(err)
	}
	id, err := domain.NewID(c.Now, rand.Reader)
	if err != nil {
		s.t.Fatal(err)
	}
	c.Key, c.Digest, c.Prefix, c.Granter = domain.KeyID(id), secret.Digest(), secret.VisiblePrefix(domain.DefaultKeyFormat), c.Scopes
	if c.Name == "" {
		c.Name = "Made by the test"
	}
	var request domain.Request
	if _, err := rand.Read(request.ID[:]); err != nil {
		s.t.Fatal(err)
	}
	if _, _, err := s.ChangeKey(s.t.Context(), request, c.Key, c); err != nil {
		s.t.Fatal(err)
	}
	return secret
}

// keyID gives the id of a plain key.
func (s *site) keyID(plain string) domain.KeyID {
	s.t.Helper()
	secret, err := domain.ParseSecret(plain)
	if err != nil {
		s.t.Fatal(err)
	}
	s.ledger.mu.Lock()
	defer s.ledger.mu.Unlock()
	for id, k := range s.keys {
		if k.key.Digest == secret.Digest() {
			return id
		}
	}
	s.t.Fatal("no such key")
	return domain.KeyID{}
}

// answer is what came back.
type answer struct {
	status int
	header nethttp.Header
	body   string
}

// ask sends a request. What follows the path are header lines, "Name: value", and
// at most one body, which is anything else.
func (s *site) ask(method, path string, rest ...string) answer {
	s.t.Helper()
	request, err := nethttp.NewRequestWithContext(s.t.Context(), method, s.url+path, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, line := range rest {
		name, value, ok := strings.Cut(line, ": ")
		if !ok || strings.ContainsAny(name, "{[\"") {
			request.Body, request.ContentLength = io.NopCloser(strings.NewReader(line)), int64(len(line))
			if request.Header.Get("Content-Type") == "" {
				request.Header.Set("Content-Type", "application/json")
			}
			continue
		}
		if name == "Content-Type" {
			request.Header.Set(name, value)
			continue
		}
		request.Header[name] = append(request.Header[name], value)
	}
	response, err := s.client.Do(request)
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return answer{response.StatusCode, response.Header, string(body)}
}

func (a answer) is(t testing.TB, status int, body string) answer {
	t.Helper()
	if a.status != status || a.body != body {
		t.Errorf("got  %d %s\nwant %d %s", a.status, a.body, status, body)
	}
	return a
}

func (a answer) has(t testing.TB, name, value string) answer {
	t.Helper()
	if got := a.header.Get(name); got != value {
		t.Errorf("%s is %q, want %q", name, got, value)
	}
	return a
}
