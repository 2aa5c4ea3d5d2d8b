package http_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"keyledger/domain"
	keyhttp "keyledger/http"
)

const verifyPath = "/api/v1/keys/verify"

func problem(status int, title, detail, code, field string) string {
	text := fmt.Sprintf(`{"type":"about:blank","title":%q,"status":%d,"detail":%q,"code":%q`, title, status, detail, code)
	if field != "" {
		text += fmt.Sprintf(`,"field":%q`, field)
	}
	return text + "}"
}

func badRequest(detail, code, field string) string {
	return problem(400, "Bad Request", detail, code, field)
}

const unknownKey = `{"valid":false,"code":"NOT_FOUND","keyId":null,"organizationId":null,"name":null,"scopes":null,"expiresAt":null,"rateLimit":null,"position":%d,"ageMs":0,"stale":false}`

func TestEveryVerdict(t *testing.T) {
	t.Parallel()
	s := start(t)
	ask := func(key, rest string) answer {
		t.Helper()
		return s.ask("POST", verifyPath, fmt.Sprintf(`{"key":%q%s}`, key, rest))
	}
	key := s.keyWith(domain.CreateKey{
		Organization: acme, Scopes: domain.Scopes{"read", "agency:*"}, RateLimit: 2, Name: `The "n"`, ExpiresAt: noon.Add(time.Hour),
	}).Reveal()
	id := s.keyID(key).String()
	says := func(code string, remaining int, position int) string {
		return fmt.Sprintf(`{"valid":%t,"code":%q,"keyId":%q,"organizationId":"org_abc123","name":"The \"n\"","scopes":["read","agency:*"],`+
			`"expiresAt":"2026-01-15T11:00:00Z","rateLimit":{"limit":2,"remaining":%d,"reset":1768471261},"position":%d,"ageMs":0,"stale":false}`, code == "VALID", code, id, remaining, position)
	}
	ask(key, ``).is(t, 200, says("VALID", 1, 1)).has(t, "Content-Type", "application/json").has(t, "Cache-Control", "no-store").has(t, "X-RateLimit-Limit", "")
	ask(key, `,"scopes":["write"]`).is(t, 200, says("INSUFFICIENT_SCOPE", 1, 1))
	ask(key, `,"organizationId":"org_other"`).is(t, 200, fmt.Sprintf(unknownKey, 1))
	ask(key, `,"organizationId":"org_abc123","scopes":["agency:write","read"]`).is(t, 200, says("VALID", 0, 1))
	ask(key, ``).is(t, 200, says("RATE_LIMITED", 0, 1))
	s.pass(time.Hour)
	ask(key, ``).is(t, 200, says("EXPIRED", 0, 1))
	s.set(func(g *ledger) {
		for _, k := range g.keys {
			k.key.Disabled = true
		}
	})
	ask(key, ``).is(t, 200, says("DISABLED", 0, 1))
	admin := s.key(acme, "admin")
	s.ask("DELETE", bunshipPath+"/"+id, "X-API-Key: "+admin)
	ask(key, `,"scopes":["write"]`).is(t, 200, says("REVOKED", 0, 3))
	ask("bsk_live_00000000000000000000000000000000", ``).is(t, 200, fmt.Sprintf(unknownKey, 3))

	free := s.keyWith(domain.CreateKey{Organization: acme, Scopes: domain.Scopes{"read"}}).Reveal()
	if a := ask(free, ``); !strings.Contains(a.body, `"expiresAt":null,"rateLimit":null,"position":4,"ageMs":0,"stale":false}`) {
		t.Errorf("got %s", a.body)
	}
}

func TestMalformedKeysAreAnsweredLikeUnknownOnes(t *testing.T) {
	t.Parallel()
	s := start(t)
	for _, key := range []string{"", "x", "clé", `a\u0000b`, "a b", `\n`, strings.Repeat("k", 257), strings.Repeat("k", 60_000), strings.Repeat("é", 200), "eyJhbGciOiJIUzI1NiJ9.e30.x"} {
		s.ask("POST", verifyPath, `{"key":"`+key+`"}`).is(t, 200, fmt.Sprintf(unknownKey, 0))
	}
	for _, v := range s.asked {
		if v.Digest == (domain.Digest{}) {
			t.Error("a malformed key was looked up without being digested")
		}
	}
}

func TestABodyIsReadAlikeTheFastAndTheSlowWay(t *testing.T) {
	t.Parallel()
	s := start(t)
	key := s.key(acme, "read")
	for _, body := range []string{
		`{"key":%q,"scopes":["read"],"organizationId":"org_abc123"}`,
		` { "organizationId" : "org_abc123" ,` + "\r\n\t" + `"scopes" : [ "read" ] , "key" : %q } `,
		`{"key":%q,"scopes":["read"],"organizationId":"org_abc123","unknown":{"key":1}}`,
		`{"k\u0065y":%q,"scopes":["re\u0061d"],"organizationId":"org_abc123"}`,
		`{"key":%q,"scopes":[],"organizationId":null}`,
		`{"key":%q,"scopes":null}`,
	} {
		a := s.ask("POST", verifyPath, fmt.Sprintf(body, key))
		if a.status != 200 || !strings.Contains(a.body, `"code":"VALID"`) {
			t.Errorf("%s: %d %s", body, a.status, a.body)
		}
	}
}

// Every row of the errors of our own dialect, which are problem details.
func TestVerifyErrors(t *testing.T) {
	t.Parallel()
	s := start(t)
	good := fmt.Sprintf(`{"key":%q}`, canary)
	for _, test := range []struct {
		name   string
		rest   []string
		status int
		body   string
	}{
		{"no key", []string{`{"scopes":["read"]}`}, 400, badRequest("key is required", "invalid", "key")},
		{"null key", []string{`{"key":null}`}, 400, badRequest("key is required", "invalid", "key")},
		{"a key that is no text", []string{`{"key":1}`}, 400, badRequest("key must be a string", "invalid", "key")},
		{"no body", nil, 400, badRequest("the body must be a JSON object", "malformed", "")},
		{"malformed", []string{`{"key":"` + canary}, 400, badRequest("key is not valid JSON in UTF-8", "malformed", "key")},
		{"a duplicate", []string{`{"key":"a","key":"b"}`}, 400, badRequest("key must be given once", "malformed", "key")},
		{"a duplicate scopes", []string{`{"key":"a","scopes":["read"],"scopes":[]}`}, 400, badRequest("scopes must be given once", "malformed", "scopes")},
		{"trailing text", []string{good + good}, 400, badRequest("the body must be one JSON object and nothing after it", "malformed", "")},
		{"bad scope", []string{`{"key":"` + canary + `","scopes":["*:>"]}`}, 400, badRequest("scopes must each be read, write, admin, verify, * or of the form resource:action", "invalid", "scopes")},
		{"bad organization", []string{`{"key":"` + canary + `","organizationId":"a.b"}`}, 400, badRequest("organizationId must be 1 to 64 letters, digits, underscores or hyphens", "invalid", "organizationId")},
		{"empty organization", []string{`{"key":"` + canary + `","organizationId":""}`}, 400, badRequest("organizationId must be 1 to 64 letters, digits, underscores or hyphens", "invalid", "organizationId")},
		{"not JSON", []string{"Content-Type: text/plain", good}, 415, problem(415, "Unsupported Media Type", "Content-Type must be application/json", "unsupported_media_type", "Content-Type")},
		{"too large", []string{`{"key":"` + strings.Repeat("k", 64<<10) + `"}`}, 413, problem(413, "Request Entity Too Large", "the body must be at most 65536 bytes", "too_large", "")},
		{"malformed position", []string{"X-Keyledger-Min-Position: 7", good}, 400, badRequest("X-Keyledger-Min-Position must be a position token as a write returned it", "invalid", "X-Keyledger-Min-Position")},
		{"position of the usage lane", []string{"X-Keyledger-Min-Position: 3:usage:7", good}, 400, badRequest("X-Keyledger-Min-Position must be a position token as a write returned it", "invalid", "X-Keyledger-Min-Position")},
	} {
		t.Run(test.name, func(t *testing.T) {
			s.ask("POST", verifyPath, test.rest...).is(t, test.status, test.body).
				has(t, "Content-Type", "application/problem+json").has(t, "Cache-Control", "no-store")
		})
	}
	s.ask("GET", verifyPath).is(t, 404, problem(404, "Not Found", "no such route", "not_found", "")).has(t, "Allow", "POST, OPTIONS")
	s.ask("GET", "/api/v1/nothing").is(t, 404, problem(404, "Not Found", "no such route", "not_found", "")).has(t, "Cache-Control", "no-store")
	s.ask("GET", "/").is(t, 404, problem(404, "Not Found", "no such route", "not_found", ""))
	s.set(func(g *ledger) { g.indexDown = domain.Unavailable(errors.New("not loaded")) })
	s.ask("POST", verifyPath, good).is(t, 503, problem(503, "Service Unavailable", "the ledger cannot be reached, try again", "unavailable", "")).has(t, "Retry-After", "1")
	s.set(func(g *ledger) { g.indexDown = errors.New("broken") })
	s.ask("POST", verifyPath, good).is(t, 500, problem(500, "Internal Server Error", "an unexpected error occurred", "internal", ""))
}

func TestVerificationGoesOnWithoutTheLedger(t *testing.T) {
	t.Parallel()
	s := start(t)
	key := s.key(acme, "read")
	s.set(func(g *ledger) { g.down = errPostgresAway })
	if a := s.ask("POST", verifyPath, fmt.Sprintf(`{"key":%q}`, key)); a.status != 200 || !strings.Contains(a.body, `"valid":true`) {
		t.Errorf("got %d %s", a.status, a.body)
	}
}

func TestAMinimumPositionIsWaitedFor(t *testing.T) {
	t.Parallel()
	s := start(t)
	key := s.key(acme, "read")
	body := fmt.Sprintf(`{"key":%q}`, key)
	at := func(token string) string { return "X-Keyledger-Min-Position: " + token }
	if a := s.ask("POST", verifyPath, at("3:lifecycle:1"), body); a.status != 200 {
		t.Errorf("got %d %s", a.status, a.body)
	}
	stale := problem(409, "Conflict", "X-Keyledger-Min-Position is not here yet: try again", "stale", "X-Keyledger-Min-Position")
	s.ask("POST", verifyPath+"?wait=10ms", at("3:lifecycle:2"), body).is(t, 409, stale)
	s.ask("POST", verifyPath+"?wait=0", at("3:lifecycle:2"), body).is(t, 409, stale)
	s.ask("POST", verifyPath+"?wait=0.01", at("3:lifecycle:2"), body).is(t, 409, stale)
	s.ask("GET", bullseyePath+"?wait=0", "X-API-Key: "+key, at("3:lifecycle:2")).
		is(t, 409, bullseyeError("conflict", "X-Keyledger-Min-Position is not here yet: try again", "X-Keyledger-Min-Position"))
	s.ask("GET", bunshipPath+"?wait=0", "X-API-Key: "+key, at("3:lifecycle:2")).
		is(t, 409, bunshipError("CONFLICT", "X-Keyledger-Min-Position is not here yet: try again", `"field":"X-Keyledger-Min-Position"`))
	for _, wait := range []string{"11s", "-1s", "soon", "10.001", "", "1h"} {
		if a := s.ask("POST", verifyPath+"?wait="+wait, at("3:lifecycle:2"), body); a.status != 400 || !strings.Contains(a.body, `"field":"wait"`) {
			t.Errorf("%s: got %d %s", wait, a.status, a.body)
		}
	}
	a := s.ask("POST", verifyPath, at("2:lifecycle:1"), body)
	if a.status != 409 || !strings.Contains(a.body, "of another epoch of the ledger") {
		t.Errorf("got %d %s", a.status, a.body)
	}

	behind := make(chan struct{})
	s.set(func(g *ledger) { g.behind = behind })
	done := make(chan answer, 1)
	go func() { done <- s.ask("GET", bunshipPath+"?wait=10s", "X-API-Key: "+key, at("3:lifecycle:1")) }()
	s.set(func(g *ledger) { g.behind = nil })
	close(behind)
	if a := <-done; a.status != 200 {
		t.Errorf("got %d %s", a.status, a.body)
	}
}

func TestADeploymentMayAskWhoVerifies(t *testing.T) {
	t.Parallel()
	s := start(t, func(o *keyhttp.Options) { o.VerifyAuth = true })
	verifier := s.keyWith(domain.CreateKey{Organization: acme, Scopes: domain.Scopes{"verify"}, RateLimit: 1}).Reveal()
	system := s.key(domain.SystemOrganization, "verify")
	mine, foreign := s.key(acme, "read"), s.key(other, "read")
	body := func(key string) string { return fmt.Sprintf(`{"key":%q}`, key) }

	s.ask("POST", verifyPath, body(mine)).is(t, 401, problem(401, "Unauthorized", "Missing or invalid authorization header", "unauthenticated", "")).
		has(t, "WWW-Authenticate", `Bearer realm="keyledger"`)
	s.ask("POST", verifyPath, "X-API-Key: "+canary, body(mine)).is(t, 401, problem(401, "Unauthorized", "Invalid or expired token", "unauthenticated", ""))
	s.ask("POST", verifyPath, "X-API-Key: "+mine, body(mine)).is(t, 403, problem(403, "Forbidden", "The API key lacks the scope verify", "forbidden", ""))
	s.ask("POST", verifyPath, "Authorization: Bearer "+userToken(t, "user_1", nil), body(mine)).
		is(t, 403, problem(403, "Forbidden", "An API key with the scope verify is needed here", "forbidden", ""))
	// The caller's limit is one a minute, and a verification does not count against it.
	for range 3 {
		a := s.ask("POST", verifyPath, "X-API-Key: "+verifier, body(mine)).has(t, "X-RateLimit-Limit", "")
		if a.status != 200 || !strings.Contains(a.body, `"valid":true`) {
			t.Errorf("got %d %s", a.status, a.body)
		}
	}
	// An organization's key sees its own organization only.
	s.ask("POST", verifyPath, "X-API-Key: "+verifier, body(foreign)).is(t, 200, fmt.Sprintf(unknownKey, 4))
	a := s.ask("POST", verifyPath, "X-API-Key: "+verifier, fmt.Sprintf(`{"key":%q,"organizationId":"org_other"}`, foreign))
	a.is(t, 403, problem(403, "Forbidden", "organizationId is not the caller's", "forbidden", "organizationId"))
	if a := s.ask("POST", verifyPath, "X-API-Key: "+system, body(foreign)); !strings.Contains(a.body, `"valid":true`) {
		t.Errorf("got %d %s", a.status, a.body)
	}
}

func TestWhatIsSaidWithoutALeaseIsMarked(t *testing.T) {
	t.Parallel()
	s := start(t)
	key := s.key(acme, "read")
	if a := s.ask("GET", "/forward-auth", "X-API-Key: "+key); a.status != 200 || a.header.Get("X-Keyledger-Stale") != "" {
		t.Errorf("got %d %v", a.status, a.header)
	}
	s.stale = true
	if a := s.ask("POST", verifyPath, fmt.Sprintf(`{"key":%q}`, key)); a.status != 200 || !strings.HasSuffix(a.body, `,"ageMs":1501,"stale":true}`) || !strings.HasPrefix(a.body, `{"valid":true,"code":"VALID"`) {
		t.Errorf("got %d %s", a.status, a.body)
	}
	s.ask("GET", "/forward-auth", "X-API-Key: "+key).is(t, 200, "").has(t, "X-Keyledger-Stale", "true")
	if a := s.ask("GET", bullseyePath, "X-API-Key: "+key); a.status != 200 || a.header.Get("X-Keyledger-Stale") != "true" {
		t.Errorf("got %d %v", a.status, a.header)
	}
}
