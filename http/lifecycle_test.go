package http_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	nethttp "net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"

	keyhttp "keyledger/http"
)

func TestProbes(t *testing.T) {
	t.Parallel()
	s := start(t, func(o *keyhttp.Options) {
		o.Checks = []keyhttp.Check{
			{Name: "nats", Run: func(context.Context) (string, error) { return "embedded", nil }},
			{Name: "postgres", Run: func(ctx context.Context) (string, error) {
				if _, ok := ctx.Deadline(); !ok {
					return "", errors.New("a check must not take for ever")
				}
				return "unused", errors.New(`connection "refused"`)
			}},
		}
	})
	s.ask("GET", "/livez").is(t, 200, `{"status":"ok"}`)
	s.ask("GET", "/readyz").is(t, 200, `{"status":"ready"}`)
	s.ask("GET", "/healthz").is(t, 503, `{"status":"degraded","ready":true,"position":0,"checks":[`+
		`{"name":"nats","ok":true,"detail":"embedded","ms":0},{"name":"postgres","ok":false,"detail":"connection \"refused\"","ms":0}]}`)
	a := s.ask("GET", "/version")
	if a.status != 200 || !strings.HasPrefix(a.body, `{"version":"1.2.3","commit":"abc","builtAt":null,"go":"go1.`) {
		t.Errorf("got %d %s", a.status, a.body)
	}
	s.set(func(g *ledger) { g.loading, g.down = true, errPostgresAway })
	s.ask("GET", "/readyz").is(t, 503, `{"status":"loading"}`)
	s.set(func(g *ledger) { g.loading = false })
	s.ask("GET", "/readyz").is(t, 200, `{"status":"ready"}`) // whatever Postgres does
}

func TestMetricsTellRoutesAndVerdictsApart(t *testing.T) {
	t.Parallel()
	s := start(t)
	key := s.key(acme, "read")
	s.ask("POST", verifyPath, fmt.Sprintf(`{"key":%q}`, key))
	s.ask("POST", verifyPath, fmt.Sprintf(`{"key":%q}`, canary))
	s.ask("GET", bullseyePath, "X-API-Key: "+key)
	s.ask("GET", "/api/v1/organization/"+canary+"/api-keys")
	s.ask("GET", "/"+canary)
	s.ask("DELETE", "/livez")
	a := s.ask("GET", "/metrics")
	for _, line := range []string{
		`keyledger_http_requests_total{route="/api/v1/keys/verify",status="200",verdict="VALID"} 1`,
		`keyledger_http_requests_total{route="/api/v1/keys/verify",status="200",verdict="NOT_FOUND"} 1`,
		`keyledger_http_requests_total{route="/api/v1/organization/:organization/api-keys",status="200",verdict="VALID"} 1`,
		`keyledger_http_requests_total{route="/api/v1/organization/:organization/api-keys",status="401",verdict="NONE"} 1`,
		`keyledger_http_requests_total{route="unmatched",status="404",verdict="NONE"} 2`,
		`keyledger_http_request_seconds_count{route="/api/v1/keys/verify",verdict="VALID"} 1`,
	} {
		if !strings.Contains(a.body, line+"\n") {
			t.Errorf("no %s in %s", line, a.body)
		}
	}
	if strings.Contains(a.body, canary) {
		t.Error("a path became a label")
	}
}

func TestAServerWithoutAGathererShowsNoMetrics(t *testing.T) {
	t.Parallel()
	s := start(t, func(o *keyhttp.Options) { o.Gatherer = nil })
	if a := s.ask("GET", "/metrics"); a.status != 404 {
		t.Errorf("got %d", a.status)
	}
}

// raw sends bytes and gives all that comes back.
func (s *site) raw(text string) string {
	s.t.Helper()
	c, err := net.Dial("tcp", s.address)
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	if _, err := io.WriteString(c, text); err != nil {
		s.t.Fatal(err)
	}
	_ = c.(*net.TCPConn).CloseWrite()
	got, err := io.ReadAll(c)
	if err != nil {
		s.t.Fatal(err)
	}
	return string(got)
}

// drawnID is what the server draws for a request: 32 digits that may spell anything.
var drawnID = regexp.MustCompile(`(?i)X-Request-Id: [0-9a-f]{32}\r\n`)

func TestWhatIsHardlyHTTPIsRefused(t *testing.T) {
	t.Parallel()
	s := start(t)
	for name, test := range map[string]struct{ text, want string }{
		"nonsense":          {canary + "\r\n\r\n", "HTTP/1.1 400 "},
		"a space in a name": {"GET / HTTP/1.1\r\nHost: x\r\n" + canary + " : y\r\n\r\n", "HTTP/1.1 400 "},
		"a bad length":      {"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", "HTTP/1.1 400 "},
		"huge headers":      {"GET / HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat(canary, 500) + "\r\n\r\n", "HTTP/1.1 413 "},
		"an unknown method": {"BREW /api/v1/keys/verify HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "HTTP/1.1 404 "},
		"a bad escape":      {"GET /api/v1/organizations/%zz/api-keys HTTP/1.1\r\nHost: x\r\nX-API-Key: " + canary + "\r\nConnection: close\r\n\r\n", "HTTP/1.1 401 "},
		"a chunked body": {
			"POST /api/v1/keys/verify HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n" +
				"9\r\n{\"key\":\"x\r\n2\r\n\"}\r\n0\r\n\r\n", "HTTP/1.1 200 ",
		},
		"an endless chunked body": {
			"POST /api/v1/keys/verify HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n" +
				"20000\r\n" + strings.Repeat(" ", 0x20000) + "\r\n0\r\n\r\n", "HTTP/1.1 413 ",
		},
	} {
		t.Run(name, func(t *testing.T) {
			got := drawnID.ReplaceAllString(s.raw(test.text), "")
			if !strings.HasPrefix(got, test.want) || strings.Contains(got, "cafe") || strings.Contains(got, "\r\nServer:") {
				t.Errorf("got %s", got)
			}
		})
	}
}

func TestABodyOnGetIsNotTheNextRequest(t *testing.T) {
	t.Parallel()
	s := start(t)
	smuggled := "GET /version HTTP/1.1\r\nHost: x\r\n\r\n"
	got := s.raw(fmt.Sprintf("GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%sGET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", len(smuggled), smuggled))
	if strings.Count(got, "HTTP/1.1 200") != 2 || strings.Contains(got, `"version"`) {
		t.Errorf("got %s", got)
	}
}

func TestTooLargeABodyIsAnsweredAndNotReset(t *testing.T) {
	t.Parallel()
	s := start(t)
	for range 5 {
		body := strings.Repeat("x", 5<<20)
		a := s.ask("POST", bunshipPath, "Content-Type: application/json", "{"+body)
		if a.status != 413 || !strings.Contains(a.body, "PAYLOAD_TOO_LARGE") {
			t.Fatalf("got %d %s", a.status, a.body)
		}
	}
}

func TestOverTLS(t *testing.T) {
	t.Parallel()
	lender := httptest.NewUnstartedServer(nil) // has a certificate for 127.0.0.1
	lender.StartTLS()
	defer lender.Close()
	s := start(t, func(o *keyhttp.Options) {
		o.TLS = &tls.Config{Certificates: lender.TLS.Certificates, MinVersion: tls.VersionTLS12}
	})
	client := lender.Client()
	defer client.CloseIdleConnections()
	response, err := client.Post("https://"+s.address+verifyPath, "application/json", strings.NewReader(fmt.Sprintf(`{"key":%q}`, s.key(acme, "read"))))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err != nil || !strings.Contains(string(body), `"valid":true`) {
		t.Errorf("got %s, %v", body, err)
	}
	response, err = client.Post("https://"+s.address+verifyPath, "application/json", strings.NewReader(strings.Repeat("x", 1<<20)))
	if err != nil {
		t.Fatal(err)
	}
	_ = response.Body.Close()
	if response.StatusCode != nethttp.StatusRequestEntityTooLarge {
		t.Errorf("got %d", response.StatusCode)
	}
}

func TestShutdownFinishesWhatIsUnderWay(t *testing.T) {
	t.Parallel()
	s := start(t)
	key := s.key(acme, "read")
	// A connection on which nothing is ever asked does not hold it up.
	silent, err := net.Dial("tcp", s.address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = silent.Close() }()
	idle, err := net.Dial("tcp", s.address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = idle.Close() }()
	reader := bufio.NewReader(idle)
	if _, err := io.WriteString(idle, "GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if err := skipAnswer(reader); err != nil {
		t.Fatal(err)
	}

	behind := make(chan struct{})
	arrived := make(chan struct{})
	s.set(func(g *ledger) { g.behind, g.waiting = behind, arrived })
	answered := make(chan answer, 1)
	go func() {
		answered <- s.ask("GET", bullseyePath+"?wait=10s", "X-API-Key: "+key, "X-Keyledger-Min-Position: 3:lifecycle:1")
	}()
	<-arrived
	shut := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		shut <- s.server.Shutdown(ctx)
	}()
	// The listener is closed before the request has its answer.
	for {
		c, err := net.Dial("tcp", s.address)
		if err != nil {
			break
		}
		_ = c.Close()
	}
	select {
	case err := <-shut:
		t.Fatalf("shut down before the request was answered: %v", err)
	default:
	}
	close(behind)
	if a := <-answered; a.status != 200 || a.header.Get("Connection") == "keep-alive" {
		t.Errorf("got %d %v", a.status, a.header)
	}
	if err := <-shut; err != nil {
		t.Error(err)
	}
}

func TestReadinessGoesOffBeforeConnectionsAreRefused(t *testing.T) {
	t.Parallel()
	s := start(t, func(o *keyhttp.Options) { o.DrainDelay = time.Hour })
	ctx, cancel := context.WithCancel(context.Background())
	shut := make(chan error, 1)
	go func() { shut <- s.server.Shutdown(ctx) }()
	for s.ask("GET", "/readyz").body != `{"status":"draining"}` {
	}
	if a := s.ask("GET", "/livez"); a.status != 200 {
		t.Errorf("got %d", a.status)
	}
	s.client.CloseIdleConnections()
	cancel() // ends the delay, and the patience with it
	if err := <-shut; err != nil && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	s.cancelled = true
}

func TestShutdownCutsOffWhatDoesNotEnd(t *testing.T) {
	t.Parallel()
	s := start(t)
	c, err := net.Dial("tcp", s.address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if _, err := io.WriteString(c, "POST /api/v1/keys/verify HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf"); err != nil {
		t.Fatal(err)
	}
	s.ask("GET", "/livez") // the other connection was accepted before
	s.client.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	err = s.server.Shutdown(ctx)
	if err != nil && !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(time.Minute))
	if _, err := io.ReadAll(c); err != nil {
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() {
			t.Error("the connection is still open")
		}
	}
	s.cancelled = true
}

func TestServingAfterShutdownEndsAtOnce(t *testing.T) {
	t.Parallel()
	server, err := keyhttp.New(keyhttp.Options{Ledger: newLedger(), Verifier: newLedger(), Keys: newLedger()})
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := server.Serve(listen(t)); err != nil {
		t.Error(err)
	}
}

func TestAServerNeedsItsParts(t *testing.T) {
	t.Parallel()
	if _, err := keyhttp.New(keyhttp.Options{}); err == nil {
		t.Error("made a server of nothing")
	}
}
