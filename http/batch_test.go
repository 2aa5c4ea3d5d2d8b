package http_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"keyledger/domain"
	keyhttp "keyledger/http"
)

const batchPath = "/api/v1/keys/verify/batch"

func TestABatchIsAnsweredInItsOrder(t *testing.T) {
	t.Parallel()
	s := start(t)
	key, foreign := s.key(acme, "read"), s.key(other, "admin")
	limited := s.keyWith(domain.CreateKey{Organization: acme, Scopes: domain.Scopes{"read"}, RateLimit: 2}).Reveal()
	items := []struct{ item, code string }{
		{fmt.Sprintf(`{"key":%q}`, limited), "VALID"},
		{fmt.Sprintf(`{"key":%q,"scopes":["write"]}`, key), "INSUFFICIENT_SCOPE"},
		{fmt.Sprintf(`{"key":%q,"organizationId":"org_abc123"}`, foreign), "NOT_FOUND"},
		{`{"key":"not a key"}`, "NOT_FOUND"},
		{fmt.Sprintf(`{"scopes":["read"],"unknown":[{}],"key":%q}`, limited), "VALID"},
		{fmt.Sprintf(`{"key":%q}`, limited), "RATE_LIMITED"},
		{fmt.Sprintf(`{"key":%q,"organizationId":"org_other","scopes":null}`, foreign), "VALID"},
	}
	var parts []string
	for _, i := range items {
		parts = append(parts, i.item)
	}
	a := s.ask("POST", batchPath, `{"keys":[`+strings.Join(parts, " , ")+`]}`)
	got := decode[struct {
		Results []json.RawMessage `json:"results"`
	}](t, a.body)
	if a.status != 200 || len(got.Results) != len(items) {
		t.Fatalf("got %d %s", a.status, a.body)
	}
	for i, result := range got.Results {
		if !strings.Contains(string(result), `"code":"`+items[i].code+`"`) {
			t.Errorf("%d: got %s, want %s", i, result, items[i].code)
		}
	}
	single := s.ask("POST", verifyPath, items[6].item)
	if string(got.Results[6]) != strings.Replace(single.body, `"remaining":998`, `"remaining":999`, 1) {
		t.Errorf("a batch says %s, a single verification %s", got.Results[6], single.body)
	}
}

func TestABatchIsReadWholeBeforeAKeyIsLookedAt(t *testing.T) {
	t.Parallel()
	s := start(t)
	good := fmt.Sprintf(`{"key":%q}`, s.key(acme, "read"))
	many := strings.TrimSuffix(strings.Repeat(good+",", 17), ",")
	for _, test := range []struct{ name, body, detail, code, field string }{
		{"no keys", `{}`, "keys is required", "invalid", "keys"},
		{"none at all", `{"keys":[]}`, "keys must name at least one key", "invalid", "keys"},
		{"no array", `{"keys":{}}`, "keys must be an array of objects", "invalid", "keys"},
		{"no object", `{"keys":[` + many + `,"k"]}`, "keys[17] must be an object", "invalid", "keys[17]"},
		{"no key", `{"keys":[` + many + `,{}]}`, "keys[17].key is required", "invalid", "keys[17].key"},
		{"a key that is no text", `{"keys":[` + many + `,{"key":1}]}`, "keys[17].key must be a string", "invalid", "keys[17].key"},
		{"a bad scope", `{"keys":[` + many + `,{"key":"k","scopes":[">"]}]}`, "keys[17].scopes must each be read, write, admin, verify, * or of the form resource:action", "invalid", "keys[17].scopes"},
		{"a bad organization", `{"keys":[` + many + `,{"key":"k","organizationId":"a.b"}]}`, "keys[17].organizationId must be 1 to 64 letters, digits, underscores or hyphens", "invalid", "keys[17].organizationId"},
		{"a duplicate", `{"keys":[` + good + `,{"key":"a","key":"b"}]}`, "keys[1] must be given once", "malformed", "keys[1]"},
		{"a second array", `{"keys":[` + good + `],"keys":[]}`, "keys must be given once", "malformed", "keys"},
		{"half an item", `{"keys":[` + good + `,{"key":"` + canary, "keys[1] is not valid JSON in UTF-8", "malformed", "keys[1]"},
		{"half an array", `{"keys":[` + good, "keys[1] is not valid JSON in UTF-8", "malformed", "keys[1]"},
		{"too deep", `{"keys":[{"x":` + strings.Repeat("[", 100) + strings.Repeat("]", 100) + `}]}`, "keys[0] is not valid JSON in UTF-8, or is nested too deeply", "malformed", "keys[0]"},
		{"too many", `{"keys":[` + strings.Repeat(good+",", 1000) + good + `]}`, "keys must name at most 1000 keys", "invalid", "keys"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s.ask("POST", batchPath, test.body).is(t, 400, badRequest(test.detail, test.code, test.field))
		})
	}
	if len(s.asked) > 0 {
		t.Errorf("%d keys were looked at", len(s.asked))
	}
}

func TestABatchMayBeAMebibyteAndNothingElseMay(t *testing.T) {
	t.Parallel()
	s := start(t)
	key := s.key(acme, "read")
	body := func(size int) string {
		head, tail := fmt.Sprintf(`{"keys":[{"key":%q}],"x":"`, key), `"}`
		return head + strings.Repeat("x", size-len(head)-len(tail)) + tail
	}
	for _, path := range []string{batchPath, batchPath + "?wait=1s"} {
		if a := s.ask("POST", path, body(1<<20)); a.status != 200 {
			t.Errorf("%s: got %d %s", path, a.status, a.body)
		}
		s.ask("POST", path, body(1<<20+1)).is(t, 413, problem(413, "Request Entity Too Large", "the body must be at most 1048576 bytes", "too_large", ""))
	}
	for _, path := range []string{verifyPath, batchPath + "/", "/forward-auth", bullseyePath} {
		if a := s.ask("POST", path, body(64<<10+1)); a.status != 413 {
			t.Errorf("%s: got %d", path, a.status)
		}
	}
}

func TestABatchStaysWithinItsCallersOrganization(t *testing.T) {
	t.Parallel()
	s := start(t, func(o *keyhttp.Options) { o.VerifyAuth = true })
	caller, key, foreign := s.key(acme, "verify"), s.key(acme, "read"), s.key(other, "read")
	batch := fmt.Sprintf(`{"keys":[{"key":%q},{"key":%q}]}`, key, foreign)
	s.ask("POST", batchPath, batch).has(t, "WWW-Authenticate", `Bearer realm="keyledger"`)
	a := s.ask("POST", batchPath, "X-API-Key: "+caller, batch)
	if a.status != 200 || strings.Count(a.body, `"valid":true`) != 1 || strings.Count(a.body, "NOT_FOUND") != 1 {
		t.Errorf("got %d %s", a.status, a.body)
	}
	s.ask("POST", batchPath, "X-API-Key: "+caller, fmt.Sprintf(`{"keys":[{"key":%q},{"key":%q,"organizationId":"org_other"}]}`, key, foreign)).
		is(t, 403, problem(403, "Forbidden", "keys[1].organizationId is not the caller's", "forbidden", "keys[1].organizationId"))
}

// byMessage asks as NATS does.
func byMessage(s *site, body []byte, key string) (status int, answer []byte) {
	status, answer, later := s.server.VerifyMessage(body, key)
	if later != nil {
		return later()
	}
	return status, answer
}

func TestAMessageIsAnsweredLikeARequest(t *testing.T) {
	t.Parallel()
	s := start(t)
	key := s.key(acme, "read")
	free := s.keyWith(domain.CreateKey{Organization: acme, Scopes: domain.Scopes{"read"}}).Reveal()
	for _, body := range []string{fmt.Sprintf(`{"key":%q,"scopes":["read"]}`, free), fmt.Sprintf(`{"key":%q,"scopes":["write"]}`, key), `{"key":"x"}`, `{}`, ``, `{"key":"x","scopes":["*:*"]}`, `{"key":"` + strings.Repeat("k", 64<<10) + `"}`} {
		status, answer := byMessage(s, []byte(body), "")
		a := s.ask("POST", verifyPath, "Content-Type: application/json", body)
		if a.status != status || a.body != string(answer) {
			t.Errorf("a message is answered with %d %s, a request with %d %s", status, answer, a.status, a.body)
		}
	}
	s.set(func(g *ledger) { g.indexDown = errPostgresAway })
	if status, answer := byMessage(s, []byte(`{"key":"x"}`), ""); status != 503 || strings.Contains(string(answer), "NOT_FOUND") {
		t.Errorf("got %d %s", status, answer)
	}
}

func TestWhoAsksByMessageShowsAKeyWhereThatIsAskedFor(t *testing.T) {
	t.Parallel()
	s := start(t, func(o *keyhttp.Options) { o.VerifyAuth = true })
	body := []byte(fmt.Sprintf(`{"key":%q}`, s.key(other, "read")))
	for _, test := range []struct {
		caller string
		status int
		text   string
	}{
		{"", 401, `"status":401`},
		{unknown, 401, `"status":401`},
		{s.key(acme, "read"), 403, "lacks the scope verify"},
		{s.key(acme, "verify"), 200, "NOT_FOUND"},
		{s.key(other, "verify"), 200, `"code":"VALID"`},
	} {
		if status, answer := byMessage(s, body, test.caller); status != test.status || !strings.Contains(string(answer), test.text) {
			t.Errorf("%s gets %d %s", test.text, status, answer)
		}
	}
}
