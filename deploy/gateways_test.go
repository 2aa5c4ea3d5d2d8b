// Package deploy_test runs the gateways' configurations as they stand beside it, with
// the gateways of the distribution's packages.
package deploy_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	nethttp "net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"keyledger/domain"
	keyhttp "keyledger/http"
	"keyledger/internal/testkit"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.updateServerDate.func1"),
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.(*workerPool).Start.func2"),
	)
}

const (
	reader  = "bsk_live_11111111111111111111111111111111" // may read
	writer  = "bsk_live_22222222222222222222222222222222" // may not
	revoked = "bsk_live_33333333333333333333333333333333"
	spent   = "bsk_live_44444444444444444444444444444444" // has no request left in this minute
	unasked = "bsk_live_55555555555555555555555555555555" // nothing is known of it now
	unknown = "bsk_live_66666666666666666666666666666666"
)

// index gives fixed verdicts: what is tested is how they come through a gateway.
type index struct {
	keys  map[domain.Digest]domain.Key
	spent domain.Digest
	away  domain.Digest
}

func newIndex(t *testing.T) *index {
	t.Helper()
	x := &index{keys: map[domain.Digest]domain.Key{}, spent: digest(t, spent), away: digest(t, unasked)}
	for i, k := range []struct {
		plain   string
		scopes  domain.Scopes
		revoked bool
	}{{reader, domain.Scopes{"read", "files:write"}, false}, {writer, domain.Scopes{"write"}, false}, {revoked, domain.Scopes{"admin"}, true}, {spent, domain.Scopes{"read"}, false}} {
		x.keys[digest(t, k.plain)] = domain.Key{ID: domain.KeyID{byte(i + 1)}, Organization: "org_1", Scopes: k.scopes, Revoked: k.revoked, RateLimit: 100}
	}
	return x
}

func digest(t *testing.T, plain string) domain.Digest {
	t.Helper()
	secret, err := domain.ParseSecret(plain)
	if err != nil {
		t.Fatal(err)
	}
	return secret.Digest()
}

func (x *index) Verify(v domain.Verification) (domain.Verdict, error) {
	if v.Digest == x.away {
		return domain.Verdict{}, domain.Unavailable(errors.New("past the lease"))
	}
	k, ok := x.keys[v.Digest]
	if !ok {
		return domain.Verdict{Outcome: domain.OutcomeNotFound}, nil
	}
	verdict := domain.Verdict{
		Outcome: k.Judge(v.Now, v.Required), Key: k.ID, Organization: k.Organization, Scopes: k.Scopes,
		Limit: domain.Limit{PerMinute: k.RateLimit, Remaining: 42, Next: v.Now.Add(30 * time.Second), Reset: v.Now.Add(30 * time.Second)},
	}
	if v.Digest == x.spent {
		verdict.Outcome = domain.OutcomeRateLimited
	}
	return verdict, nil
}

func (*index) WaitFor(context.Context, domain.Position) error { return nil }
func (*index) Ready() bool                                    { return true }
func (*index) Position() domain.Position                      { return 0 }

// noLedger is for what gateways never ask.
type noLedger struct {
	keyhttp.Ledger
	keyhttp.KeyList
}

// site is Keyledger, an application, and a gateway before it.
type site struct {
	gateway     string // its address
	stop        func() // stops Keyledger
	application string
	keyledger   string

	mu   sync.Mutex
	seen []*nethttp.Request // by the application
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{gateway: fmt.Sprintf("127.0.0.1:%d", testkit.Port(t))}
	application := httptest.NewServer(nethttp.HandlerFunc(func(w nethttp.ResponseWriter, r *nethttp.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.seen = append(s.seen, r)
		if status := r.URL.Query().Get("answer"); status != "" {
			var code int
			_, _ = fmt.Sscan(status, &code)
			w.WriteHeader(code)
		}
		_, _ = io.WriteString(w, "the application's answer")
	}))
	t.Cleanup(application.Close)
	s.application = application.Listener.Addr().String()

	ledger := noLedger{}
	server, err := keyhttp.New(keyhttp.Options{Ledger: ledger, Verifier: newIndex(t), Keys: ledger})
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.keyledger = listener.Addr().String()
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	s.stop = sync.OnceFunc(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = server.Shutdown(ctx) // the gateway keeps connections
		<-served
	})
	t.Cleanup(s.stop)
	return s
}

// configuration reads a configuration of this folder, with this site's addresses.
func (s *site) configuration(t *testing.T, file string, replace ...string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(replace); i += 2 {
		if strings.Count(string(text), replace[i]) != 1 {
			t.Fatalf("%q does not stand in %s once", replace[i], file)
		}
		text = bytes.Replace(text, []byte(replace[i]), []byte(replace[i+1]), 1)
	}
	return string(text)
}

// run runs a gateway until the test ends, and returns when it listens.
func (s *site) run(t *testing.T, command *exec.Cmd) {
	t.Helper()
	var output bytes.Buffer
	command.Stdout, command.Stderr = &output, &output
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- command.Wait() }()
	t.Cleanup(func() {
		_ = command.Process.Signal(os.Interrupt)
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			_ = command.Process.Kill()
			<-ended
		}
		if t.Failed() {
			t.Log(output.String())
		}
	})
	poll := time.NewTicker(5 * time.Millisecond)
	defer poll.Stop()
	for {
		if conn, err := net.Dial("tcp", s.gateway); err == nil {
			_ = conn.Close()
			return
		}
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("the gateway ended: %v\n%s", err, output.String())
		case <-t.Context().Done():
			t.Fatal("the gateway does not listen")
		case <-poll.C:
		}
	}
}

// program finds a gateway, or skips the test.
func program(t *testing.T, name, install string) string {
	t.Helper()
	for _, directory := range append(filepath.SplitList(os.Getenv("PATH")), "/usr/sbin", "/usr/local/sbin") {
		if path := filepath.Join(directory, name); filepath.IsAbs(path) {
			if _, err := exec.LookPath(path); err == nil {
				return path
			}
		}
	}
	t.Skipf("%s is not installed: its configuration is not tested. On Debian: %s", name, install)
	return ""
}

func (s *site) startNGINX(t *testing.T, replace ...string) {
	t.Helper()
	path := program(t, "nginx", "apt-get install nginx-light")
	directory := t.TempDir()
	configuration := s.configuration(t, "nginx/keyledger.conf",
		append([]string{"127.0.0.1:8080", s.keyledger, "127.0.0.1:9000", s.application, "listen 8000", "listen " + s.gateway}, replace...)...)
	write(t, filepath.Join(directory, "keyledger.conf"), configuration)
	temporary := ""
	for _, kind := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		temporary += kind + "_temp_path " + filepath.Join(directory, kind) + ";\n"
	}
	write(t, filepath.Join(directory, "nginx.conf"), "daemon off;\nmaster_process off;\npid "+filepath.Join(directory, "pid")+
		";\nerror_log stderr;\nevents {}\nhttp {\naccess_log off;\n"+temporary+"include "+filepath.Join(directory, "keyledger.conf")+";\n}\n")
	s.run(t, exec.Command(path, "-e", "stderr", "-p", directory, "-c", filepath.Join(directory, "nginx.conf")))
}

func (s *site) startCaddy(t *testing.T) {
	t.Helper()
	path := program(t, "caddy", "apt-get install caddy")
	directory := t.TempDir()
	_, port, err := net.SplitHostPort(s.gateway)
	if err != nil {
		t.Fatal(err)
	}
	configuration := s.configuration(t, "caddy/Caddyfile", "127.0.0.1:8080", s.keyledger, "127.0.0.1:9000", s.application, ":8000 {", "http://:"+port+" {\n\tbind 127.0.0.1")
	write(t, filepath.Join(directory, "Caddyfile"), "{\n\tadmin off\n}\n"+configuration)
	command := exec.Command(path, "run", "--adapter", "caddyfile", "--config", filepath.Join(directory, "Caddyfile"))
	command.Env = append(os.Environ(), "HOME="+directory, "XDG_DATA_HOME="+directory, "XDG_CONFIG_HOME="+directory)
	s.run(t, command)
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// answer is what a client gets.
type answer struct {
	status int
	header nethttp.Header
	body   string
}

// ask sends a request with header lines exactly as they are.
func (s *site) ask(t *testing.T, target string, lines ...string) answer {
	t.Helper()
	conn, err := net.Dial("tcp", s.gateway)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\nContent-Length: 4\r\n%s\r\n\r\nbody", target, strings.Join(lines, "\r\n")); err != nil {
		t.Fatal(err)
	}
	response, err := nethttp.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{response.StatusCode, response.Header, string(body)}
}

// reached gives the last request that the application saw since the last call, if any.
func (s *site) reached() *nethttp.Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.seen) == 0 {
		return nil
	}
	last := s.seen[len(s.seen)-1]
	s.seen = nil
	return last
}

func TestNGINXLetsPassWhoMay(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.startNGINX(t)
	guards(t, s)
	limit := s.ask(t, "/", "X-API-Key: "+reader).header
	if limit.Get("X-RateLimit-Limit") != "100" || limit.Get("X-RateLimit-Remaining") != "42" || limit.Get("X-RateLimit-Reset") == "" {
		t.Errorf("the client learns of its limit: %v", limit)
	}
	for _, path := range []string{"/_keyledger/read", "/_keyledger/read?scope=write"} {
		if r := s.ask(t, path, "X-API-Key: "+reader); r.status != 404 {
			t.Errorf("%s answers %d to a client", path, r.status)
		}
	}
	conflict := s.ask(t, "/", "X-API-Key: "+reader, "Authorization: Bearer "+writer)
	if conflict.status != 400 {
		t.Errorf("two credentials get %d", conflict.status)
	}
	guardsAlone(t, s)
}

func TestCaddyLetsPassWhoMay(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.startCaddy(t)
	guards(t, s)
	guardsAlone(t, s)
}

// An application behind an nginx that lets underscores pass is protected by the fields
// that the configuration takes away.
func TestNGINXTakesUnderscoresAwayEvenWhereItLetsThemPass(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.startNGINX(t, "underscores_in_headers off", "underscores_in_headers on")
	s.ask(t, "/", "X-API-Key: "+reader, "X_Keyledger_Key_Id: made-up", "x_keyledger_organization_id: made-up", "X_KEYLEDGER_SCOPES: made-up", "X_Keyledger_Status: made-up", "X_Other: 1")
	seen := s.reached()
	if seen == nil || seen.Header.Get("X_Other") != "1" {
		t.Fatalf("underscores do not pass: %v", seen)
	}
	madeUp(t, seen)
}

// guards is what every gateway has to do.
func guards(t *testing.T, s *site) {
	t.Helper()
	for _, test := range []struct {
		name      string
		line      string
		status    int
		challenge string
		retry     string
	}{
		{"no key", "X-Nothing: 1", 401, `Bearer realm="keyledger"`, ""},
		{"an unknown key", "X-API-Key: " + unknown, 401, `Bearer realm="keyledger", error="invalid_token"`, ""},
		{"a revoked key", "Authorization: Bearer " + revoked, 401, `Bearer realm="keyledger", error="invalid_token"`, ""},
		{"a key without the scope", "X-API-Key: " + writer, 403, `Bearer realm="keyledger", error="insufficient_scope", scope="read"`, ""},
		{"a spent limit", "X-API-Key: " + spent, 429, "", "30"},
		{"a node that knows too little", "X-API-Key: " + unasked, 503, "", "1"},
	} {
		r := s.ask(t, "/files?scope=write&deny=200", test.line)
		if r.status != test.status || r.header.Get("WWW-Authenticate") != test.challenge || r.header.Get("Retry-After") != test.retry {
			t.Errorf("%s gets %d %v", test.name, r.status, r.header)
		}
		if seen := s.reached(); seen != nil {
			t.Errorf("%s reaches the application: %v", test.name, seen.Header)
		}
	}

	for _, target := range []string{"/files?scope=openid%20email&organization=x&deny=1", "/scope=write/-/", "/a/../b", "/?next=https://h/forward-auth"} {
		r := s.ask(t, target, "Authorization: Bearer "+reader)
		seen := s.reached()
		if r.status != 200 || r.body != "the application's answer" || seen == nil {
			t.Fatalf("%s with a good key gets %d %s", target, r.status, r.body)
		}
		madeUp(t, seen)
	}
	for _, status := range []string{"401", "403", "500", "503"} {
		r := s.ask(t, "/?answer="+status, "X-API-Key: "+reader)
		if fmt.Sprint(r.status) != status || r.body != "the application's answer" {
			t.Errorf("the application's %s becomes %d %s", status, r.status, r.body)
		}
		s.reached()
	}

	// What a client makes up of our headers never reaches the application, in no spelling,
	// with a good key or without.
	for _, name := range []string{
		"X-Keyledger-Key-Id", "x-keyledger-key-id", "X_Keyledger_Key_Id", "X-Keyledger_Key-Id", "X_Keyledger-Key-Id", "X-KEYLEDGER-KEY_ID",
		"X-Keyledger-Organization-Id", "X_Keyledger_Organization_Id", "X-Keyledger-Scopes", "X_KEYLEDGER_SCOPES", "X-Keyledger-Status", "x_keyledger_status",
	} {
		s.ask(t, "/", "X-API-Key: "+reader, name+": made-up", name+": made-up too")
		seen := s.reached()
		if seen == nil {
			t.Fatalf("%s: a good key does not reach the application", name)
		}
		madeUp(t, seen)
		if r := s.ask(t, "/", name+": made-up"); r.status != 401 || s.reached() != nil {
			t.Errorf("%s without a key gets %d", name, r.status)
		}
	}

	// What Connection names is for the next hop alone, and gateways take it away. A client
	// cannot have them take ours away, which an application might take for nobody.
	for _, line := range []string{"Connection: close, X-Keyledger-Key-Id", "connection: x-keyledger-scopes", "Connection: keep-alive,X_Keyledger_Key_Id"} {
		r := s.ask(t, "/", "X-API-Key: "+reader, line)
		if seen := s.reached(); seen != nil {
			madeUp(t, seen)
		} else if r.status != 400 {
			t.Errorf("%s gets %d", line, r.status)
		}
	}
}

// guardsAlone is what a gateway has to do when Keyledger does not answer.
func guardsAlone(t *testing.T, s *site) {
	t.Helper()
	s.reached()
	s.stop()
	if r := s.ask(t, "/", "X-API-Key: "+reader); r.status != 503 || r.header.Get("Retry-After") == "" || s.reached() != nil {
		t.Errorf("without Keyledger a good key gets %d %v", r.status, r.header)
	}
}

// madeUp checks that the application sees what Keyledger said of the reader's key, and
// nothing else that can be taken for it.
func madeUp(t *testing.T, seen *nethttp.Request) {
	t.Helper()
	want := map[string]string{
		"x-keyledger-key-id": domain.KeyID{1}.String(), "x-keyledger-organization-id": "org_1", "x-keyledger-scopes": "read files:write",
	}
	for name, values := range seen.Header {
		plain := strings.ReplaceAll(strings.ToLower(name), "_", "-")
		if !strings.HasPrefix(plain, "x-keyledger") {
			continue
		}
		if len(values) != 1 || want[plain] != values[0] || strings.Contains(name, "_") {
			t.Errorf("the application sees %s: %q", name, values)
		}
		delete(want, plain)
	}
	if len(want) > 0 {
		t.Errorf("the application does not see %v", want)
	}
}
