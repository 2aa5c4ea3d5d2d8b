package client_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"keyledger/client"
	"keyledger/internal/servertest"
	"keyledger/internal/testkit"
)

// longLease is one that does not end because a machine is busy, and is renewed soon enough for
// a test to wait for that.
const longLease = 10 * time.Second

// startLongLeased starts a server whose verifiers have such a lease.
func startLongLeased(t *testing.T) *servertest.Server {
	t.Helper()
	return servertest.Start(t, servertest.Options{Env: []string{"KEYLEDGER_FLUSH_INTERVAL=20ms", "KEYLEDGER_LEASE=" + longLease.String()}})
}

// systemKey is a key that may run verifiers.
func systemKey(server *servertest.Server) string {
	return server.BootstrapKey("--system", "--scopes", "system:verify").Key
}

// link is a way to a server that can be cut: what is on its way then stays on its way.
type link struct {
	target string
	down   atomic.Bool
	mu     sync.Mutex
	conns  map[net.Conn]struct{}
	url    string
}

func newLink(t *testing.T, server string) *link {
	t.Helper()
	u, err := url.Parse(server)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &link{target: u.Host, conns: map[net.Conn]struct{}{}, url: "http://" + listener.Addr().String()}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { l.serve(conn) })
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		l.kill()
		serving.Wait()
	})
	return l
}

func (l *link) serve(near net.Conn) {
	far, err := net.Dial("tcp", l.target)
	if err != nil {
		_ = near.Close()
		return
	}
	l.mu.Lock()
	l.conns[near], l.conns[far] = struct{}{}, struct{}{}
	l.mu.Unlock()
	var both sync.WaitGroup
	carry := func(to, from net.Conn) {
		defer func() { _, _ = to.Close(), from.Close() }()
		buffer := make([]byte, 32<<10)
		for {
			n, err := from.Read(buffer)
			if err != nil {
				return
			}
			if l.down.Load() {
				continue // lost
			}
			if _, err := to.Write(buffer[:n]); err != nil {
				return
			}
		}
	}
	both.Go(func() { carry(near, far) })
	both.Go(func() { carry(far, near) })
	both.Wait()
	l.mu.Lock()
	delete(l.conns, near)
	delete(l.conns, far)
	l.mu.Unlock()
}

func (l *link) kill() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for conn := range l.conns {
		_ = conn.Close()
	}
}

// startVerifier runs a verifier until the test ends.
func startVerifier(t *testing.T, o client.VerifierOptions) *client.Verifier {
	t.Helper()
	if o.HTTPClient == nil {
		transport := &http.Transport{}
		t.Cleanup(transport.CloseIdleConnections)
		o.HTTPClient = &http.Client{Transport: transport}
	}
	o.Name, o.Logger = t.Name(), testkit.Logger(t)
	v, err := client.NewVerifier(o)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- v.Run(context.WithoutCancel(t.Context())) }()
	t.Cleanup(func() {
		v.Close()
		<-ended
	})
	waiting, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := v.WaitReady(waiting); err != nil {
		t.Fatal(err)
	}
	return v
}

func verdictOf(t *testing.T, v client.Checker, q client.Question) client.Verdict {
	t.Helper()
	verdict, err := v.Verify(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	return verdict
}

func createKey(t *testing.T, c *client.Client, name string) client.CreatedKey {
	t.Helper()
	made, err := c.CreateKey(t.Context(), acme, client.NewKey{Name: name, Scopes: client.Scopes{"read"}, RateLimit: client.NoRateLimit})
	if err != nil {
		t.Fatal(err)
	}
	return made
}

func TestAnEmbeddedVerifierFollowsTheLedger(t *testing.T) {
	t.Parallel()
	server := startLongLeased(t)
	c := connect(t, server, acme)
	before := createKey(t, c, "before")
	gone := createKey(t, c, "gone")
	if _, err := c.RevokeKey(t.Context(), acme, gone.ID, ""); err != nil {
		t.Fatal(err)
	}
	v := startVerifier(t, client.VerifierOptions{URL: server.URL(), Key: systemKey(server), ReportEvery: 20 * time.Millisecond})

	is := func(key client.CreatedKey, code client.Code) {
		t.Helper()
		got := verdictOf(t, v, client.Question{Key: key.Secret.Reveal(), Scopes: client.Scopes{"read"}})
		if got.Code != code || got.Valid != (code == client.Valid) || got.KeyID != key.ID || got.OrganizationID != acme || got.Name != key.Name || got.Age > longLease || got.Stale {
			t.Errorf("%s is %+v, want %s", key.Name, got, code)
		}
	}
	is(before, client.Valid)
	is(gone, client.Revoked)
	if got := verdictOf(t, v, client.Question{Key: "nonsense of no form at all \n"}); got.Code != client.NotFound {
		t.Errorf("%+v", got)
	}
	if got := verdictOf(t, v, client.Question{Key: before.Secret.Reveal(), Scopes: client.Scopes{"write"}}); got.Code != client.InsufficientScope {
		t.Errorf("%+v", got)
	}
	if got := verdictOf(t, v, client.Question{Key: before.Secret.Reveal(), Organization: "org_other"}); got.Code != client.NotFound {
		t.Errorf("%+v", got)
	}

	// What is created is there when its position is asked for, and what was revoked is not accepted
	// from the moment on that the answer is here.
	for i := range 20 {
		made := createKey(t, c, fmt.Sprint("key ", i))
		got, err := v.Verify(client.WithMinPosition(t.Context(), made.Position), client.Question{Key: made.Secret.Reveal()})
		if err != nil || !got.Valid || got.Position < made.Position.Position {
			t.Fatalf("%+v, %v", got, err)
		}
		ended, err := c.RevokeKey(t.Context(), acme, made.ID, "")
		if err != nil || !ended.Fenced || ended.Confirmed == 0 || ended.Expired > 0 {
			t.Fatalf("%+v, %v", ended, err)
		}
		is(made, client.Revoked)
	}

	other := client.Token{Epoch: before.Position.Epoch + 1, Lane: client.Lifecycle, Position: 1}
	if got, err := v.Verify(client.WithMinPosition(t.Context(), other), client.Question{Key: before.Secret.Reveal()}); !errors.Is(err, client.ErrAnotherHistory) || !errors.Is(err, client.ErrStale) {
		t.Errorf("a position of another epoch: %+v, %v", got, err)
	}
	if got, err := v.Verify(t.Context(), client.Question{Key: before.Secret.Reveal(), Durable: true}); !errors.Is(err, client.ErrInvalid) {
		t.Errorf("a promise that it cannot keep: %+v, %v", got, err)
	}

	// The uses arrive in the ledger.
	for {
		u, err := c.KeyUsage(t.Context(), acme, before.ID, client.UsageOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if u.Total.Outcomes[client.Valid] == 1 && u.Total.Outcomes[client.InsufficientScope] == 1 {
			break
		}
	}
}

func TestAVerifierThatIsCutOffAnswersNothingBeyondItsLease(t *testing.T) {
	t.Parallel()
	const lease, rounds = time.Second, 4
	server := servertest.Start(t, servertest.Options{Env: []string{"KEYLEDGER_LEASE=" + lease.String()}})
	c := connect(t, server, acme)
	key := createKey(t, c, "a key")
	l := newLink(t, server.URL())
	system := systemKey(server)
	v := startVerifier(t, client.VerifierOptions{URL: l.url, Key: system})
	stale := startVerifier(t, client.VerifierOptions{URL: l.url, Key: system, MaxStale: time.Hour})
	ask := client.Question{Key: key.Secret.Reveal()}
	poll := time.NewTicker(time.Millisecond)
	defer poll.Stop()
	// answered asks until there is an answer: on a busy machine a lease may end by itself.
	answered := func() client.Verdict {
		for {
			got, err := v.Verify(t.Context(), ask)
			if err == nil {
				return got
			}
			if !errors.Is(err, client.ErrUnavailable) {
				t.Fatal(err)
			}
			<-poll.C
		}
	}
	for round := range rounds {
		if got := answered(); !got.Valid {
			t.Fatalf("%+v", got)
		}
		l.down.Store(true)
		cut := time.Now()
		revoked := make(chan client.Revocation, 1)
		if round == rounds-1 {
			go func() {
				r, err := c.RevokeKey(t.Context(), acme, key.ID, "")
				if err != nil {
					t.Error(err)
				}
				revoked <- r
			}()
		}
		var last time.Time
		for ; ; <-poll.C {
			now := time.Now()
			got, err := v.Verify(t.Context(), ask)
			if errors.Is(err, client.ErrUnavailable) {
				break
			}
			if err != nil || !got.Valid || got.Age > lease {
				t.Fatalf("%+v, %v", got, err)
			}
			last = now
		}
		// The moment of the question, and not of the answer: the lease was asked for before the cut.
		if late := last.Sub(cut); late > lease || v.Ready() {
			t.Errorf("the last yes came %v after it was cut off, ready %v", late, v.Ready())
		}
		for ; ; <-poll.C {
			got, err := stale.Verify(t.Context(), ask)
			if err != nil || !got.Valid || got.Stale != (got.Age >= lease) {
				t.Fatalf("who was told to go on says %+v, %v", got, err)
			}
			if got.Stale {
				break
			}
		}
		if round == rounds-1 {
			r := <-revoked
			if !r.Fenced || r.Expired == 0 || r.Waited > lease+10*time.Second {
				t.Errorf("%+v", r)
			}
			if _, err := v.Verify(t.Context(), ask); !errors.Is(err, client.ErrUnavailable) {
				t.Errorf("after it was revoked: %v", err)
			}
		}
		l.down.Store(false)
		l.kill()
		for ; !v.Ready(); <-poll.C {
		}
	}
	if got := answered(); got.Code != client.Revoked {
		t.Errorf("%+v", got)
	}
}

// broken hands requests on, and can break answers off or lose them.
func broken(t *testing.T, server string, change func(*http.Request, *http.Response) error) string {
	t.Helper()
	u, err := url.Parse(server)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{DisableCompression: true}
	proxy := &httputil.ReverseProxy{
		Rewrite:        func(r *httputil.ProxyRequest) { r.SetURL(u) },
		Transport:      transport,
		FlushInterval:  -1,
		ModifyResponse: func(r *http.Response) error { return change(r.Request, r) },
		ErrorHandler:   func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
	}
	s := httptest.NewServer(proxy)
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
		transport.CloseIdleConnections()
	})
	return s.URL
}

func TestAReportThatIsRepeatedCountsOnce(t *testing.T) {
	t.Parallel()
	server := startLongLeased(t)
	c := connect(t, server, acme)
	key := createKey(t, c, "a key")
	var lost atomic.Int32
	url := broken(t, server.URL(), func(request *http.Request, response *http.Response) error {
		if strings.HasSuffix(request.URL.Path, "/uses") && response.StatusCode == http.StatusOK && lost.Add(1)%2 == 1 {
			return errors.New("the answer is lost")
		}
		return nil
	})
	v := startVerifier(t, client.VerifierOptions{URL: url, Key: systemKey(server), ReportEvery: 5 * time.Millisecond})
	uses := uint64(0)
	poll := time.NewTicker(100 * time.Microsecond)
	defer poll.Stop()
	for ; lost.Load() < 6; uses++ {
		<-poll.C
		if got := verdictOf(t, v, client.Question{Key: key.Secret.Reveal()}); !got.Valid {
			t.Fatalf("%+v", got)
		}
	}
	v.Close()
	for {
		u, err := c.KeyUsage(t.Context(), acme, key.ID, client.UsageOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if u.Total.Accepted > uses {
			t.Fatalf("%d uses are recorded of %d", u.Total.Accepted, uses)
		}
		if u.Total.Accepted == uses {
			break
		}
	}
	if _, err := v.Verify(t.Context(), client.Question{Key: key.Secret.Reveal()}); !errors.Is(err, client.ErrUnavailable) {
		t.Errorf("it answers after it has left: %v", err)
	}
	// Nobody waits for who has left.
	ended, err := c.RevokeKey(t.Context(), acme, key.ID, "")
	if err != nil || ended.Expired > 0 || ended.Confirmed > 1 {
		t.Errorf("%+v, %v", ended, err)
	}
}

func TestAnObserverConfirmsNothing(t *testing.T) {
	t.Parallel()
	const lease = 2 * time.Second
	server := servertest.Start(t, servertest.Options{Env: []string{"KEYLEDGER_LEASE=" + lease.String()}})
	c := connect(t, server, acme)
	key := createKey(t, c, "a key")
	v := startVerifier(t, client.VerifierOptions{URL: server.URL(), Key: systemKey(server), Observer: true})
	if got := verdictOf(t, v, client.Question{Key: key.Secret.Reveal()}); !got.Valid {
		t.Fatalf("%+v", got)
	}
	ended, err := c.RevokeKey(t.Context(), acme, key.ID, "")
	if err != nil || ended.Expired != 1 || ended.Waited < lease/2 {
		t.Errorf("%+v, %v", ended, err)
	}
	if got := verdictOf(t, v, client.Question{Key: key.Secret.Reveal()}); got.Code != client.Revoked {
		t.Errorf("%+v", got)
	}
}
