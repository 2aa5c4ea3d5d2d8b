package http_test

import (
	"bufio"
	"fmt"
	"net"
	nethttp "net/http"
	"strings"
	"testing"
	"time"

	"keyledger/domain"
	keyhttp "keyledger/http"
)

func TestAGatewayLearnsWhoseKeyItIs(t *testing.T) {
	t.Parallel()
	s := start(t)
	key := s.key(acme, "read", "members:write")
	for _, credential := range []string{"X-API-Key: " + key, "Authorization: Bearer " + key} {
		for _, method := range []string{"GET", "HEAD", "POST", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "get", "BREW"} {
			for _, path := range []string{"/forward-auth", "/forward-auth?scope=read", "/forward-auth/", "/forward-auth/some/path?scope=admin", "/forward-auth/scope=read/-/x"} {
				s.ask(method, path, credential).is(t, 200, "").
					has(t, "X-Keyledger-Key-Id", s.keyID(key).String()).has(t, "X-Keyledger-Organization-Id", string(acme)).
					has(t, "X-Keyledger-Scopes", "read members:write").has(t, "X-RateLimit-Limit", "1000").has(t, "Cache-Control", "no-store")
			}
		}
	}
}

func TestAGatewayIsToldWhatIsWrong(t *testing.T) {
	t.Parallel()
	s := start(t)
	key, revoked, foreign := s.key(acme, "read"), s.key(acme, "admin"), s.key(other, "admin")
	spent := s.keyWith(domain.CreateKey{Organization: acme, Scopes: domain.Scopes{"read"}, RateLimit: 1}).Reveal()
	// While there is none left, what matters is when there is one again.
	s.ask("GET", "/forward-auth", "X-API-Key: "+spent).is(t, 200, "").has(t, "RateLimit-Policy", `"minute";q=1;w=60`).has(t, "RateLimit", `"minute";r=0;t=40`)
	s.ask("DELETE", bullseyePath+"/"+s.keyID(revoked).String(), "X-API-Key: "+revoked)

	const plain, invalid = `Bearer realm="keyledger"`, `Bearer realm="keyledger", error="invalid_token"`
	for _, test := range []struct {
		name      string
		path      string
		key       string
		status    int
		challenge string
		retry     string
	}{
		{"no key", "", "", 401, plain, ""},
		{"an unknown key", "", unknown, 401, invalid, ""},
		{"a malformed key", "", "a b", 401, invalid, ""},
		{"a token", "", "eyJhbGciOiJIUzI1NiJ9.e30.x", 401, invalid, ""},
		{"a revoked key", "", revoked, 401, invalid, ""},
		{"another organization's key", "?organization=org_abc123", foreign, 401, invalid, ""},
		{"a missing scope", "?scope=read&scope=write", key, 403, `Bearer realm="keyledger", error="insufficient_scope", scope="read write"`, ""},
		{"a spent limit", "", spent, 429, "", "40"},
	} {
		t.Run(test.name, func(t *testing.T) {
			a := s.ask("GET", "/forward-auth"+test.path, "X-API-Key: "+test.key)
			if a.status != test.status || !strings.Contains(a.body, fmt.Sprintf(`"status":%d`, test.status)) {
				t.Errorf("got %d %s", a.status, a.body)
			}
			a.has(t, "WWW-Authenticate", test.challenge).has(t, "Retry-After", test.retry).has(t, "X-Keyledger-Status", "").has(t, "X-Keyledger-Key-Id", "")

			separator := "?"
			if test.path != "" {
				separator = "&"
			}
			masked := s.ask("GET", "/forward-auth"+test.path+separator+"deny=403", "X-API-Key: "+test.key)
			want := test.status
			if want != 401 {
				want = 403
			}
			if masked.status != want {
				t.Errorf("with deny=403 got %d %s", masked.status, masked.body)
			}
			masked.has(t, "WWW-Authenticate", test.challenge).has(t, "Retry-After", test.retry).has(t, "X-Keyledger-Status", fmt.Sprint(test.status))
		})
	}
	a := s.ask("GET", "/forward-auth?deny=403", "X-API-Key: "+key, "Authorization: Bearer "+revoked)
	if a.status != 403 || a.header.Get("X-Keyledger-Status") != "400" {
		t.Errorf("two credentials: got %d %v", a.status, a.header)
	}
	s.set(func(g *ledger) { g.indexDown = errPostgresAway })
	s.ask("GET", "/forward-auth", "X-API-Key: "+key).has(t, "Retry-After", "1").
		is(t, 503, problem(503, "Service Unavailable", "the ledger cannot be reached, try again", "unavailable", ""))
	a = s.ask("GET", "/forward-auth?deny=403", "X-API-Key: "+key)
	if a.status != 403 {
		t.Errorf("got %d", a.status)
	}
	a.has(t, "X-Keyledger-Status", "503").has(t, "Retry-After", "1")
}

const unknown = "bsk_live_00000000000000000000000000000000"

// Whatever a client writes into its own path and query, a key without the scope
// does not come in, and a key with it is not kept out by what stands where its own path
// belongs.
func TestAGatewaysClientCannotLoosenWhatIsAskedOfIt(t *testing.T) {
	t.Parallel()
	s := start(t)
	reader, writer := s.key(acme, "read"), s.key(acme, "write")
	stranger := s.key(other, "write")
	paths := []string{
		"/", "/a?scope=read", "/?scope=", "/?organization=org_other", "/?deny=403", "/a/scope=read/-/", "/-/", "/-", "//", "/..", "/../..", "/../../forward-auth",
		"/../../../forward-auth?scope=read", "/%2e%2e/%2e%2e/%2e%2e/forward-auth", "/..%2f..%2fforward-auth", "/?next=https://h/forward-auth", "/x://h/forward-auth?scope=read",
		"/://h/forward-auth", "/#", "/#?scope=read", "/\\..\\..", "/%00", "/;/", "/?scope=openid%20email", "/?organization=a&organization=b", "/%", "/livez", "/../livez", "/../../livez",
		"/../../api/v1/keys/verify", "/a\x7fb", "/?%",
	}
	for _, prefix := range []string{"/forward-auth/scope=write/organization=org_abc123/-", "/forward-auth/organization=org_abc123/scope=write/scope=write/-"} {
		for _, path := range paths {
			for _, forwarded := range []string{"", "X-Forwarded-Uri: /forward-auth?scope=read\r\nX-Original-URL: /forward-auth\r\nX-Keyledger-Scopes: write\r\n"} {
				if status := raw(t, s, prefix+path, reader, forwarded); status != 403 {
					t.Errorf("%s: a key without the scope gets %d", prefix+path, status)
				}
				if status := raw(t, s, prefix+path, stranger, forwarded); status != 401 {
					t.Errorf("%s: another organization's key gets %d", prefix+path, status)
				}
				if status := raw(t, s, prefix+path, writer, forwarded); status != 200 {
					t.Errorf("%s: a good key gets %d", prefix+path, status)
				}
			}
		}
	}
	// A gateway that lets its client write into the query, or appends a path to it, or
	// does not end what it asks for: nobody comes in who would not have come in otherwise.
	for _, target := range []string{
		"/forward-auth?scope=write&scope=read", "/forward-auth?scope=write&scope=", "/forward-auth?scope=write/", "/forward-auth?scope=write/a?scope=read", "/forward-auth?scope=write/&scope=read",
		"/forward-auth?scope=write#", "/forward-auth?scope=write;scope=read", "/forward-auth?scope=write&Scope=read", "/forward-auth?scope=write&%73cope=read", "/forward-auth?scope=write&deny=200",
		"/forward-auth?scope=write&organization=org_abc123&organization=org_abc123", "/forward-auth?scope=write&x=1", "/forward-auth?scope=write&%", "/forward-auth?scope=write%00",
		"/forward-auth/scope=write", "/forward-auth/scope=write/", "/forward-auth/scope=write/a", "/forward-auth/scope=write/a/-/", "/forward-auth/scope=write/../-/", "/forward-auth/scope=write/-x",
		"/forward-auth/scope=write/scope=read/-/", "/forward-auth/scope=%zz/-/", "/forward-auth/scope=/-/", "/forward-auth/scope=write/deny=200/-/",
	} {
		if status := raw(t, s, target, reader, ""); status == 200 {
			t.Errorf("%s lets a key without the scope in", target)
		}
	}
	for _, target := range []string{"/forward-authority", "/forward-auth%2f", "/Forward-Auth", "//forward-auth", "/x/../forward-auth", "http://h/forward-auth", "/forward-auth*"} {
		if status := raw(t, s, target, writer, ""); status == 200 {
			t.Errorf("%s is taken for the gateways' route", target)
		}
	}
}

// raw sends a target as it is, which no client library does.
func raw(t *testing.T, s *site, target, key, more string) int {
	t.Helper()
	conn, err := net.Dial("tcp", s.address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: h\r\nX-API-Key: %s\r\n%sConnection: close\r\n\r\n", target, key, more); err != nil {
		t.Fatal(err)
	}
	response, err := nethttp.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = response.Body.Close()
	return response.StatusCode
}

func TestUnknownKeysPaceTheirSourceAndNothingElse(t *testing.T) {
	t.Parallel()
	s := start(t, func(o *keyhttp.Options) { o.UnknownKeys = 10 })
	good := s.key(acme, "admin")
	ask := func(key string) []answer {
		return []answer{
			s.ask("GET", "/forward-auth", "X-API-Key: "+key),
			s.ask("POST", verifyPath, fmt.Sprintf(`{"key":%q}`, key)),
			s.ask("GET", bullseyePath, "X-API-Key: "+key),
			s.ask("GET", bunshipPath, "Authorization: Bearer "+key),
			s.ask("POST", batchPath, fmt.Sprintf(`{"keys":[{"key":%q}]}`, key)),
		}
	}
	for i, keys := range [][]string{{unknown, "not-a-key"}, {"x", unknown}, {unknown, strings.Repeat("k", 300)}} {
		for _, key := range keys {
			for _, a := range ask(key) {
				switch refused := a.status == 429; {
				case i == 0 && refused, i > 0 && !refused:
					t.Errorf("round %d: got %d %s", i, a.status, a.body)
				case refused:
					a.has(t, "Retry-After", "6").has(t, "X-RateLimit-Limit", "")
				}
			}
		}
		for _, a := range ask(good) {
			if a.status != 200 {
				t.Errorf("a good key is answered with %d %s", a.status, a.body)
			}
		}
	}
	batch := fmt.Sprintf(`{"keys":[{"key":%q},{"key":%q}]}`, good, unknown)
	if a := s.ask("POST", batchPath, batch); a.status != 200 || !strings.Contains(a.body, "NOT_FOUND") {
		t.Errorf("a batch with a good key gets %d %s", a.status, a.body)
	}
	s.pass(6 * time.Second)
	s.ask("GET", "/forward-auth", "X-API-Key: "+unknown).has(t, "Retry-After", "")
	s.ask("GET", "/forward-auth", "X-API-Key: "+unknown).has(t, "Retry-After", "6")
}

func TestUnknownAndMalformedKeysAreRefusedAlike(t *testing.T) {
	t.Parallel()
	s := start(t)
	malformed := []string{"x", "a b", "cl\xe9", strings.Repeat("k", 257), "bsk_live_0000000000000000000000000000000", "\xff", `"`}
	for _, path := range []string{bullseyePath, bunshipPath, "/forward-auth", "/forward-auth?deny=403"} {
		like := s.ask("GET", path, "X-API-Key: "+unknown)
		for _, key := range malformed {
			a := s.ask("GET", path, "X-API-Key: "+key).is(t, 401, like.body)
			for _, name := range []string{"X-Request-Id", "Date"} {
				a.header.Set(name, like.header.Get(name))
			}
			if got, want := fmt.Sprint(a.header), fmt.Sprint(like.header); got != want {
				t.Errorf("%s with %q: %s, not %s", path, key, got, want)
			}
		}
	}
	asked := 0
	s.set(func(g *ledger) { asked = len(g.asked) })
	if want := 4 * (len(malformed) + 1); asked != want {
		t.Errorf("%d keys were looked up, not %d", asked, want)
	}
}
