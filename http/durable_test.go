package http_test

import (
	"fmt"
	"strings"
	"testing"

	keyhttp "keyledger/http"
)

func durably(o *keyhttp.Options) { o.Durable, _ = o.Verifier.(keyhttp.DurableVerifier) }

func TestWhoAsksForItWaitsForTheLog(t *testing.T) {
	t.Parallel()
	s := start(t, durably)
	key := s.key(acme, "read", "admin")
	for _, test := range []struct {
		method, path string
		rest         []string
		waits        int
	}{
		{"POST", verifyPath, []string{fmt.Sprintf(`{"key":%q}`, key)}, 0},
		{"POST", verifyPath, []string{fmt.Sprintf(`{"key":%q,"durable":false}`, key)}, 0},
		{"POST", verifyPath, []string{fmt.Sprintf(`{"key":%q,"durable":true}`, key)}, 1},
		{"POST", verifyPath, []string{fmt.Sprintf(`{"dur\u0061ble":true,"key":%q}`, key)}, 1},
		{"POST", batchPath, []string{fmt.Sprintf(`{"keys":[{"key":%q},{"key":%q}]}`, key, key)}, 0},
		{"POST", batchPath, []string{fmt.Sprintf(`{"keys":[{"key":%q},{"key":%q}],"durable":true}`, key, key)}, 1},
		{"POST", batchPath, []string{fmt.Sprintf(`{"durable":null,"keys":[{"key":%q},{"key":%q,"durable":true}]}`, key, key)}, 1},
		{"GET", "/forward-auth", []string{"X-API-Key: " + key}, 0},
		{"GET", "/forward-auth?durable=true", []string{"X-API-Key: " + key}, 1},
		{"GET", "/forward-auth/scope=read/durable=true/-/x", []string{"X-API-Key: " + key}, 1},
		{"GET", "/forward-auth/a?durable=true", []string{"X-API-Key: " + key}, 0},
		{"GET", bullseyePath, []string{"X-API-Key: " + key}, 0},
	} {
		s.set(func(g *ledger) { g.durable = 0 })
		if a := s.ask(test.method, test.path, test.rest...); a.status != 200 || s.durable != test.waits {
			t.Errorf("%s %v: got %d %s, and %d waited for the log", test.path, test.rest, a.status, a.body, s.durable)
		}
	}
	for path, rest := range map[string][]string{
		"/forward-auth?durable=false":                {"X-API-Key: " + key},
		"/forward-auth?durable=true&durable=true":    {"X-API-Key: " + key},
		"/forward-auth/durable=true/durable=true/-/": {"X-API-Key: " + key},
		verifyPath: {fmt.Sprintf(`{"key":%q,"durable":1}`, key)},
		batchPath:  {fmt.Sprintf(`{"keys":[{"key":%q}],"durable":"true"}`, key)},
	} {
		if a := s.ask("POST", path, rest...); a.status != 400 || !strings.Contains(a.body, `"field":"durable"`) {
			t.Errorf("%s: got %d %s", path, a.status, a.body)
		}
	}
}

func TestInExactModeEveryDoorWaitsForTheLog(t *testing.T) {
	t.Parallel()
	s := start(t, durably, func(o *keyhttp.Options) { o.Exact, o.VerifyAuth = true, true })
	key := s.key(acme, "read", "admin", "verify")
	doors := func() []answer {
		status, body := byMessage(s, []byte(fmt.Sprintf(`{"key":%q}`, key)), key)
		return []answer{
			s.ask("POST", verifyPath, "X-API-Key: "+key, fmt.Sprintf(`{"key":%q}`, key)),
			s.ask("POST", batchPath, "X-API-Key: "+key, fmt.Sprintf(`{"keys":[{"key":%q}]}`, key)),
			s.ask("GET", "/forward-auth", "X-API-Key: "+key),
			s.ask("GET", bullseyePath, "X-API-Key: "+key),
			s.ask("GET", bunshipPath, "X-API-Key: "+key),
			{status: status, body: string(body)},
		}
	}
	for i, a := range doors() {
		if a.status != 200 {
			t.Errorf("door %d: got %d %s", i, a.status, a.body)
		}
	}
	if s.durable != 9 { // who verifies shows a key, which is used, too
		t.Errorf("%d waited for the log", s.durable)
	}
	// What cannot be recorded is no verdict, good or bad.
	s.set(func(g *ledger) { g.down = errPostgresAway })
	for i, a := range doors() {
		if a.status != 503 || strings.Contains(a.body, "valid\"") {
			t.Errorf("door %d: got %d %s", i, a.status, a.body)
		}
	}
}

func TestDurableVerificationThatIsNotOfferedIsRefused(t *testing.T) {
	t.Parallel()
	s := start(t)
	want := badRequest("durable is not offered by this server", "invalid", "durable")
	s.ask("POST", verifyPath, `{"key":"x","durable":true}`).is(t, 400, want)
	s.ask("POST", batchPath, `{"keys":[{"key":"x"}],"durable":true}`).is(t, 400, want)
	if _, err := keyhttp.New(keyhttp.Options{Ledger: s.ledger, Verifier: s.ledger, Keys: s.ledger, Exact: true}); err == nil {
		t.Error("a server was made that cannot keep its promise")
	}
}
