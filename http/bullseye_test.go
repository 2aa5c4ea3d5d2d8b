package http_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"keyledger/domain"
	keyhttp "keyledger/http"
)

const bullseyePath = "/api/v1/organization/org_abc123/api-keys"

var (
	plainKey = regexp.MustCompile(`^bsk_live_[0-9a-f]{32}$`)
	uuidText = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)
	ulidText = regexp.MustCompile(`^key_[0-9A-HJKMNP-TV-Z]{26}$`)
)

type bullseyeKey struct {
	ID              string   `json:"id"`
	OrganizationID  string   `json:"organizationId"`
	CreatedByUserID *string  `json:"createdByUserId"`
	Name            string   `json:"name"`
	KeyPrefix       string   `json:"keyPrefix"`
	Scopes          []string `json:"scopes"`
	Status          string   `json:"status"`
	ExpiresAt       *string  `json:"expiresAt"`
	LastUsedAt      *string  `json:"lastUsedAt"`
	CreatedAt       string   `json:"createdAt"`
}

func decode[T any](t testing.TB, body string) T {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(body), &v); err != nil {
		t.Fatalf("%v in %s", err, body)
	}
	return v
}

func TestBullseyeClientsCreateListAndRevoke(t *testing.T) {
	t.Parallel()
	s := start(t)
	admin := s.key(acme, "admin")

	a := s.ask("POST", bullseyePath, "X-API-Key: "+admin, `{"name":"  Production Server ","expiresAt":"2027-06-01T12:00:00+02:00","unknown":[1,{"a":2}]}`)
	created := decode[struct {
		APIKey   bullseyeKey `json:"apiKey"`
		PlainKey string      `json:"plainKey"`
	}](t, a.body)
	k := created.APIKey
	if !plainKey.MatchString(created.PlainKey) || !uuidText.MatchString(k.ID) || k.KeyPrefix != created.PlainKey[:13] {
		t.Fatalf("got %s", a.body)
	}
	view := func(status, used string) string {
		return fmt.Sprintf(`{"id":%q,"organizationId":"org_abc123","createdByUserId":null,"name":"Production Server","keyPrefix":%q,"scopes":["read","write"],`+
			`"status":%q,"expiresAt":"2027-06-01T10:00:00Z","lastUsedAt":%s,"createdAt":"2026-01-15T10:00:00Z"}`, k.ID, k.KeyPrefix, status, used)
	}
	a.is(t, 201, `{"apiKey":`+view("active", "null")+`,"plainKey":"`+created.PlainKey+`"}`)
	a.has(t, "Content-Type", "application/json").has(t, "Cache-Control", "no-store").has(t, "X-Keyledger-Position", "3:lifecycle:2")

	s.pass(time.Hour)
	// The seed's own example: a content type on GET.
	s.ask("GET", bullseyePath, "X-API-Key: "+created.PlainKey, "Content-Type: application/json").
		has(t, "X-RateLimit-Limit", "1000").has(t, "X-RateLimit-Remaining", "999").has(t, "X-RateLimit-Reset", "1768471261").
		has(t, "RateLimit-Policy", `"minute";q=1000;w=60`).has(t, "RateLimit", `"minute";r=999;t=0`)
	a = s.ask("GET", bullseyePath+"/", "Authorization: Bearer "+admin)
	list := decode[struct {
		APIKeys []json.RawMessage `json:"apiKeys"`
	}](t, a.body)
	if a.status != 200 || len(list.APIKeys) != 2 || string(list.APIKeys[0]) != view("active", `"2026-01-15T11:00:00Z"`) {
		t.Fatalf("got %d %s", a.status, a.body)
	}
	if strings.Contains(a.body, "nextCursor") {
		t.Error("a whole list has no cursor")
	}

	revoked := `{"success":true,"apiKey":` + view("revoked", `"2026-01-15T11:00:00Z"`) + `}`
	s.ask("DELETE", bullseyePath+"/"+k.ID, "X-API-Key: "+admin, "Content-Type: text/plain").is(t, 200, revoked).has(t, "X-Keyledger-Position", "3:lifecycle:3")
	s.ask("DELETE", bullseyePath+"/"+k.ID, "X-API-Key: "+admin).is(t, 200, revoked)
	s.ask("GET", bullseyePath, "X-API-Key: "+created.PlainKey).is(t, 401, bullseyeUnauthorized)
	if a := s.ask("GET", bullseyePath, "X-API-Key: "+admin); !strings.Contains(a.body, view("revoked", `"2026-01-15T11:00:00Z"`)) {
		t.Errorf("a revoked key stays in the list: %s", a.body)
	}
}

func TestAKeyIsFoundUnderEverySpellingOfItsID(t *testing.T) {
	t.Parallel()
	s := start(t)
	admin := s.key(acme, "admin")
	id := s.keyID(s.key(acme, "read"))
	for _, spelling := range []string{id.UUID(), id.String(), strings.TrimPrefix(id.String(), "key_"), strings.ToUpper(id.UUID()), strings.Replace(id.String(), "_", "%5F", 1)} {
		if a := s.ask("DELETE", bullseyePath+"/"+spelling, "X-API-Key: "+admin); a.status != 200 {
			t.Errorf("%s: %d %s", spelling, a.status, a.body)
		}
		if a := s.ask("GET", bunshipPath+"/"+spelling, "X-API-Key: "+admin); a.status != 200 {
			t.Errorf("%s: %d %s", spelling, a.status, a.body)
		}
	}
}

func TestAnExpiredKeyKeepsItsStatusForBullseye(t *testing.T) {
	t.Parallel()
	s := start(t)
	admin := s.key(acme, "admin")
	s.keyWith(domain.CreateKey{Organization: acme, Scopes: domain.Scopes{"read"}, ExpiresAt: noon.Add(time.Hour)})
	s.pass(2 * time.Hour)
	a := s.ask("GET", bullseyePath, "X-API-Key: "+admin)
	if n := strings.Count(a.body, `"status":"active"`); n != 2 {
		t.Errorf("got %s", a.body)
	}
}

const bullseyeUnauthorized = `{"code":"unauthorized","message":"Invalid, missing, expired or revoked API key","details":{}}`

func bullseyeError(code, message, field string) string {
	details := "{}"
	if field != "" {
		details = `{"field":"` + field + `"}`
	}
	return fmt.Sprintf(`{"code":%q,"message":%q,"details":%s}`, code, message, details)
}

// Every row of Bullseye's error table.
func TestBullseyeErrors(t *testing.T) {
	t.Parallel()
	s := start(t)
	admin, reader := s.key(acme, "admin"), s.key(acme, "read")
	foreign := s.key(other, "admin")
	revoked := s.key(acme, "admin")
	s.ask("DELETE", bullseyePath+"/"+s.keyID(revoked).UUID(), "X-API-Key: "+admin)
	expired := s.keyWith(domain.CreateKey{Organization: acme, Scopes: domain.Scopes{"admin"}, ExpiresAt: noon.Add(time.Minute)}).Reveal()
	scarce := s.keyWith(domain.CreateKey{Organization: acme, Scopes: domain.Scopes{"admin"}, RateLimit: 1}).Reveal()
	s.pass(time.Minute)
	s.set(func(g *ledger) { g.minute = noon.Add(2 * time.Minute) })
	s.ask("GET", bullseyePath, "X-API-Key: "+scarce)
	foreignID := s.keyID(foreign).UUID()
	big := `{"name":"` + strings.Repeat("x", 64<<10) + `"}`
	s.ask("POST", bullseyePath, "X-API-Key: "+admin, "Idempotency-Key: once", `{"name":"one"}`)

	bad := bullseyeError
	for _, test := range []struct {
		name          string
		method, path  string
		rest          []string
		status        int
		body          string
		header, value string
	}{
		{"missing field", "POST", bullseyePath, []string{"X-API-Key: " + admin, `{}`}, 400, bad("bad_request", "name is required", "name"), "", ""},
		{"invalid format", "POST", bullseyePath, []string{"X-API-Key: " + admin, `{"name":7}`}, 400, bad("bad_request", "name must be a string", "name"), "", ""},
		{"malformed JSON", "POST", bullseyePath, []string{"X-API-Key: " + admin, `{"other"`}, 400, bad("bad_request", "the body is not valid JSON", ""), "", ""},
		{"no body", "POST", bullseyePath, []string{"X-API-Key: " + admin}, 400, bad("bad_request", "the body must be a JSON object", ""), "", ""},
		{"no scopes", "POST", bullseyePath, []string{"X-API-Key: " + admin, `{"name":"n","scopes":[]}`}, 400, bad("bad_request", "scopes must name at least one scope", "scopes"), "", ""},
		{"expiry in the past", "POST", bullseyePath, []string{"X-API-Key: " + admin, `{"name":"n","expiresAt":"2020-01-01T00:00:00Z"}`}, 400, bad("bad_request", "expiresAt must be in the future", "expiresAt"), "", ""},
		{"malformed organization", "GET", "/api/v1/organization/org.abc/api-keys", []string{"X-API-Key: " + admin}, 400, bad("bad_request", "organizationId must be 1 to 64 letters, digits, underscores or hyphens", "organizationId"), "", ""},
		{"two credentials", "GET", bullseyePath, []string{"X-API-Key: " + admin, "Authorization: Bearer " + reader}, 400, bad("bad_request", "Authorization must not name another credential than X-API-Key", "Authorization"), "", ""},
		{"no key", "GET", bullseyePath, nil, 401, bullseyeUnauthorized, "WWW-Authenticate", `Bearer realm="keyledger"`},
		{"invalid key", "GET", bullseyePath, []string{"X-API-Key: bsk_live_00000000000000000000000000000000"}, 401, bullseyeUnauthorized, "", ""},
		{"malformed key", "GET", bullseyePath, []string{"X-API-Key: not a key"}, 401, bullseyeUnauthorized, "", ""},
		{"expired key", "GET", bullseyePath, []string{"X-API-Key: " + expired}, 401, bullseyeUnauthorized, "", ""},
		{"revoked key", "GET", bullseyePath, []string{"X-API-Key: " + revoked}, 401, bullseyeUnauthorized, "", ""},
		{"scope missing", "POST", bullseyePath, []string{"X-API-Key: " + reader, `{"name":"n"}`}, 403, bad("forbidden", "The API key lacks the scope admin", ""), "X-RateLimit-Limit", "1000"},
		{"another organization", "GET", bullseyePath, []string{"X-API-Key: " + foreign}, 403, bad("forbidden", "Not a member of this organization", ""), "X-RateLimit-Limit", "1000"},
		{"scope that cannot be granted", "POST", bullseyePath, []string{"X-API-Key: " + admin, `{"name":"n","scopes":["agency:read"]}`}, 403, bad("forbidden", "scopes a credential cannot grant a scope that it does not imply itself", "scopes"), "", ""},
		{"unknown key id", "DELETE", bullseyePath + "/018d0b1e-5f2a-7c3d-9e4f-0a1b2c3d4e5f", []string{"X-API-Key: " + admin}, 404, bad("not_found", "Not found", ""), "X-RateLimit-Limit", "1000"},
		{"malformed key id", "DELETE", bullseyePath + "/nonsense", []string{"X-API-Key: " + admin}, 404, bad("not_found", "Not found", ""), "", ""},
		{"another organization's key", "DELETE", bullseyePath + "/" + foreignID, []string{"X-API-Key: " + admin}, 404, bad("not_found", "Not found", ""), "", ""},
		{"unknown route", "GET", "/api/v1/organization/org_abc123/nothing", nil, 404, bad("not_found", "Not found", ""), "Cache-Control", "no-store"},
		{"unknown method", "PUT", bullseyePath, nil, 404, bad("not_found", "Not found", ""), "Allow", "GET, HEAD, POST, OPTIONS"},
		{"too large", "POST", bullseyePath, []string{"X-API-Key: " + admin, big}, 413, bad("payload_too_large", "the body must be at most 65536 bytes", ""), "", ""},
		{"not JSON", "POST", bullseyePath, []string{"X-API-Key: " + admin, "Content-Type: text/plain", `{"name":"n"}`}, 415, bad("unsupported_media_type", "Content-Type must be application/json", "Content-Type"), "", ""},
		{"compressed", "POST", bullseyePath, []string{"X-API-Key: " + admin, "Content-Encoding: gzip", `{"name":"n"}`}, 415, bad("unsupported_media_type", "Content-Encoding must be identity", "Content-Encoding"), "", ""},
		{"idempotency key reused", "POST", bullseyePath, []string{"X-API-Key: " + admin, "Idempotency-Key: once", `{"name":"two"}`}, 422, bad("unprocessable", "the idempotency key was used for another request", ""), "", ""},
		{"over the limit", "GET", bullseyePath, []string{"X-API-Key: " + scarce}, 429, bad("rate_limited", "Rate limit exceeded", ""), "Retry-After", "40"},
	} {
		t.Run(test.name, func(t *testing.T) {
			a := s.ask(test.method, test.path, test.rest...).is(t, test.status, test.body)
			a.has(t, "Content-Type", "application/json").has(t, "Cache-Control", "no-store")
			if test.header != "" {
				a.has(t, test.header, test.value)
			}
			if a.header.Get("Server") != "" || a.header.Get("X-Request-Id") == "" {
				t.Errorf("got headers %v", a.header)
			}
		})
	}

	t.Run("unavailable", func(t *testing.T) {
		s.set(func(g *ledger) { g.down = errPostgresAway })
		s.ask("GET", bullseyePath, "X-API-Key: "+admin).
			is(t, 503, bad("unavailable", "the ledger cannot be reached, try again", "")).has(t, "Retry-After", "1")
		s.ask("POST", bullseyePath, "X-API-Key: "+admin, `{"name":"n"}`).
			is(t, 503, bad("unavailable", "the ledger cannot be reached, try again", "")).has(t, "Retry-After", "1")
		s.set(func(g *ledger) { g.down, g.indexDown = nil, domain.Unavailable(errors.New("not loaded")) })
		s.ask("GET", bullseyePath, "X-API-Key: "+admin).is(t, 503, bad("unavailable", "the ledger cannot be reached, try again", "")).has(t, "Retry-After", "1")
	})
	t.Run("internal error", func(t *testing.T) {
		internal := bad("internal_error", "An unexpected error occurred", "")
		s.set(func(g *ledger) { g.down, g.indexDown = errors.New("a column is missing"), nil })
		s.ask("GET", bullseyePath, "X-API-Key: "+admin).is(t, 500, internal)
		s.set(func(g *ledger) { g.panicking = true })
		s.ask("GET", bullseyePath, "X-API-Key: "+admin).is(t, 500, internal)
		s.set(func(g *ledger) { g.down, g.panicking = nil, false })
		if a := s.ask("GET", bullseyePath, "X-API-Key: "+admin); a.status != 200 {
			t.Errorf("after a panic: %d %s", a.status, a.body)
		}
	})
}

func TestADeploymentChoosesTheLimitAndFormatOfNewKeys(t *testing.T) {
	t.Parallel()
	s := start(t, func(o *keyhttp.Options) { o.RateLimit, o.KeyFormat = 5, "acme" })
	admin := s.key(acme, "admin")
	a := s.ask("POST", bullseyePath, "X-API-Key: "+admin, `{"name":"n","rateLimit":9}`)
	plain := decode[struct {
		PlainKey string `json:"plainKey"`
	}](t, a.body).PlainKey
	if !strings.HasPrefix(plain, "acme_live_") {
		t.Fatalf("got %s", a.body)
	}
	s.ask("GET", bullseyePath, "X-API-Key: "+plain).has(t, "X-RateLimit-Limit", "5")
}

func TestAKeyWithoutALimitGetsNoHeaders(t *testing.T) {
	t.Parallel()
	s := start(t)
	free := s.keyWith(domain.CreateKey{Organization: acme, Scopes: domain.Scopes{"admin"}}).Reveal()
	a := s.ask("GET", bunshipPath, "X-API-Key: "+free)
	if a.status != 200 || a.header.Get("X-RateLimit-Limit") != "" || !strings.Contains(a.body, `"rateLimit":null`) {
		t.Errorf("got %d %v %s", a.status, a.header, a.body)
	}
}
