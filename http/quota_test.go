package http_test

import (
	"fmt"
	"strings"
	"testing"

	"keyledger/domain"
	keyhttp "keyledger/http"
)

func TestAQuotaIsShownAndEnforced(t *testing.T) {
	t.Parallel()
	s := start(t)
	admin := "X-API-Key: " + s.keyWith(createAnything).Reveal()
	for _, test := range []struct{ refill, resets, retry string }{
		{"day", `"2026-01-16T00:00:00Z"`, "50400"}, // it is ten o'clock
		{"month", `"2026-02-01T00:00:00Z"`, "1432800"},
		{"none", "null", ""},
	} {
		quota := func(remaining string) string {
			return fmt.Sprintf(`"rateLimit":1000,"quota":{"limit":2,"remaining":%s,"refill":%q,"resetsAt":%s},"status"`, remaining, test.refill, test.resets)
		}
		contains := func(a answer, want string) {
			t.Helper()
			if !strings.Contains(a.body, want) {
				t.Errorf("%s: got %d %s, want %s", test.refill, a.status, a.body, want)
			}
		}
		a := s.ask("POST", nativePath, admin, fmt.Sprintf(`{"name":"n","scopes":["read"],"quota":{"refill":%q,"unknown":[1],"limit":2}}`, test.refill))
		contains(a, quota("2"))
		made := decode[nativeMade](t, a.body)
		key, path := *made.Secret, nativePath+"/"+made.Key.ID
		contains(s.ask("POST", verifyPath, fmt.Sprintf(`{"key":%q}`, key)),
			fmt.Sprintf(`"reset":1768471261},"quota":{"limit":2,"remaining":1,"refill":%q,"resetsAt":%s},"position":`, test.refill, test.resets))
		contains(s.ask("GET", path, admin), quota("1"))
		s.ask("GET", "/forward-auth", "X-API-Key: "+key).is(t, 200, "")

		contains(s.ask("POST", batchPath, fmt.Sprintf(`{"keys":[{"key":%q}]}`, key)), `"valid":false,"code":"QUOTA_EXCEEDED","keyId":"key_`)
		if status, answer, _ := s.server.VerifyMessage([]byte(fmt.Sprintf(`{"key":%q}`, key)), ""); status != 200 || !strings.Contains(string(answer), `"code":"QUOTA_EXCEEDED"`) || !strings.Contains(string(answer), `"quota":{"limit":2,"remaining":0,`) {
			t.Errorf("by message: %d %s", status, answer)
		}
		const detail = "The key's quota is used up"
		s.ask("GET", "/forward-auth", "X-API-Key: "+key).is(t, 429, problem(429, "Too Many Requests", detail, "quota_exceeded", "")).
			has(t, "Retry-After", test.retry).has(t, "X-RateLimit-Remaining", "998").has(t, "X-Keyledger-Key-Id", "")
		s.ask("GET", "/forward-auth?deny=403", "X-API-Key: "+key).is(t, 403, problem(429, "Too Many Requests", detail, "quota_exceeded", "")).
			has(t, "Retry-After", test.retry).has(t, "X-Keyledger-Status", "429")
		// The two other dialects know one kind of too many.
		contains(s.ask("GET", bullseyePath, "X-API-Key: "+key).has(t, "Retry-After", test.retry), `"code":"rate_limited"`)
		contains(s.ask("GET", bunshipPath, "X-API-Key: "+key).has(t, "Retry-After", test.retry), `"code":"RATE_LIMITED"`)
		contains(s.ask("DELETE", path, admin), quota("0"))
	}
	if a := s.ask("GET", "/metrics"); !strings.Contains(a.body, `verdict="QUOTA_EXCEEDED"`) {
		t.Error("the metrics do not tell what was refused for a quota")
	}
	// Who has none is answered as ever, and the other dialects can set and show none.
	for _, a := range []answer{
		s.ask("GET", nativePath+"/"+s.keyID(s.key(acme, "read")).String(), admin), s.ask("POST", verifyPath, fmt.Sprintf(`{"key":%q}`, s.key(acme, "read"))),
		s.ask("POST", bunshipPath, admin, `{"name":"n","quota":{"limit":1,"refill":"day"}}`), s.ask("GET", bunshipPath, admin), s.ask("GET", bullseyePath, admin),
	} {
		if a.status >= 300 || strings.Contains(a.body, "quota") {
			t.Errorf("got %d %s", a.status, a.body)
		}
	}
}

func TestABadQuotaIsNamed(t *testing.T) {
	t.Parallel()
	s := start(t)
	admin := "X-API-Key: " + s.keyWith(createAnything).Reveal()
	for quota, field := range map[string]string{
		`1000`: "quota", `"month"`: "quota", `[]`: "quota",
		`{}`: "quota.limit", `{"refill":"day"}`: "quota.limit", `{"limit":5}`: "quota.refill",
		`{"limit":0,"refill":"day"}`: "quota.limit", `{"limit":-1,"refill":"day"}`: "quota.limit", `{"limit":1.5,"refill":"day"}`: "quota.limit", `{"limit":1e3,"refill":"day"}`: "quota.limit",
		`{"limit":"5","refill":"day"}`: "quota.limit", `{"limit":null,"refill":"day"}`: "quota.limit", `{"limit":1000000000001,"refill":"day"}`: "quota.limit",
		`{"limit":18446744073709551617,"refill":"day"}`: "quota.limit",
		`{"limit":5,"refill":"hour"}`:                   "quota.refill", `{"limit":5,"refill":""}`: "quota.refill", `{"limit":5,"refill":7}`: "quota.refill", `{"limit":5,"refill":null}`: "quota.refill",
	} {
		a := s.ask("POST", nativePath, admin, `{"name":"n","scopes":["read"],"quota":`+quota+`}`)
		if a.status != 400 || !strings.Contains(a.body, fmt.Sprintf(`"code":"invalid","field":%q}`, field)) {
			t.Errorf("%s: got %d %s", quota, a.status, a.body)
		}
	}
	for quota, want := range map[string]domain.Quota{
		`null`: {}, `{"limit":1,"refill":"none"}`: {Limit: 1, Refill: domain.RefillNone}, `{"limit":1000000000000,"refill":"month"}`: {Limit: domain.MostQuota, Refill: domain.RefillMonth},
	} {
		a := s.ask("POST", nativePath, admin, `{"name":"n","scopes":["read"],"quota":`+quota+`}`)
		if c, ok := s.commandLog[len(s.commandLog)-1].(domain.CreateKey); a.status != 201 || !ok || c.Quota != want {
			t.Errorf("%s: got %d %s, %+v", quota, a.status, a.body, c.Quota)
		}
	}
}

// An embedded verifier asks about keys with a quota, also where askers need a scope.
func TestAVerifiersKeyMayAskAboutKeys(t *testing.T) {
	t.Parallel()
	s := start(t, func(o *keyhttp.Options) { o.VerifyAuth = true })
	key := fmt.Sprintf(`{"key":%q}`, s.key(acme, "read"))
	verifier := s.keyWith(domain.CreateKey{Organization: domain.SystemOrganization, Scopes: domain.Scopes{domain.ScopeSystemVerify}}).Reveal()
	if a := s.ask("POST", verifyPath, "X-API-Key: "+verifier, key); a.status != 200 || !strings.Contains(a.body, `"code":"VALID"`) {
		t.Errorf("got %d %s", a.status, a.body)
	}
	reader := s.keyWith(domain.CreateKey{Organization: domain.SystemOrganization, Scopes: domain.Scopes{domain.ScopeSystemAudit}}).Reveal()
	if a := s.ask("POST", verifyPath, "X-API-Key: "+reader, key); a.status != 403 {
		t.Errorf("got %d %s", a.status, a.body)
	}
}
