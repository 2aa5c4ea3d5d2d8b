package http_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"keyledger/domain"
	keyhttp "keyledger/http"
)

const bunshipPath = "/api/v1/organizations/org_abc123/api-keys"

func TestBunshipClientsCreateListGetRevokeAndSeeUsage(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.addMember(acme, "user_1", "member")
	bearer := "Authorization: Bearer " + userToken(t, "user_1", nil)

	a := s.ask("POST", bunshipPath+"/", bearer, `{"name":"Production API","scopes":["members:read","webhooks:read"],"rateLimit":500,"expiresAt":null}`)
	created := decode[struct {
		Data struct{ ID, Key, Prefix string }
	}](t, a.body).Data
	if !plainKey.MatchString(created.Key) || !ulidText.MatchString(created.ID) || created.Prefix != created.Key[:13] {
		t.Fatalf("got %s", a.body)
	}
	a.is(t, 200, fmt.Sprintf(`{"success":true,"data":{"id":%q,"name":"Production API","key":%q,"prefix":%q,"scopes":["members:read","webhooks:read"],`+
		`"rateLimit":500,"expiresAt":null,"createdAt":"2026-01-15T10:00:00Z"},"message":"API key created. Save the key now: it will not be shown again."}`,
		created.ID, created.Key, created.Prefix)).has(t, "X-Keyledger-Position", "3:lifecycle:2")

	s.ask("POST", "/api/v1/keys/verify", fmt.Sprintf(`{"key":%q}`, created.Key))
	view := fmt.Sprintf(`{"id":%q,"name":"Production API","prefix":%q,"scopes":["members:read","webhooks:read"],"rateLimit":500,`+
		`"lastUsedAt":"2026-01-15T10:00:00Z","expiresAt":null,"isActive":true,"createdAt":"2026-01-15T10:00:00Z"}`, created.ID, created.Prefix)
	s.ask("GET", bunshipPath, bearer).is(t, 200, `{"success":true,"data":[`+view+`]}`)
	s.ask("GET", bunshipPath+"/", bearer).is(t, 200, `{"success":true,"data":[`+view+`]}`)
	s.ask("GET", bunshipPath+"/"+created.ID, bearer).is(t, 200, `{"success":true,"data":`+view+`}`)
	s.ask("GET", bunshipPath+"/"+created.ID+"/usage", bearer).is(t, 200, fmt.Sprintf(
		`{"success":true,"data":{"keyId":%q,"name":"Production API","prefix":%q,"lastUsedAt":"2026-01-15T10:00:00Z","createdAt":"2026-01-15T10:00:00Z",`+
			`"usage":{"requests":1,"rateLimit":500}}}`, created.ID, created.Prefix))

	s.ask("DELETE", bunshipPath+"/"+created.ID, bearer).is(t, 200, `{"success":true,"message":"API key revoked successfully"}`)
	s.ask("GET", bunshipPath, bearer).is(t, 200, `{"success":true,"data":[`+strings.Replace(view, `"isActive":true`, `"isActive":false`, 1)+`]}`)
	s.ask("DELETE", bunshipPath+"/"+created.ID, bearer).is(t, 404, bunshipNotFound).has(t, "Content-Type", "application/json; charset=utf-8")
}

func TestNoScopesMeansFullAccessForBunship(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.addMember(acme, "user_1", "member")
	bearer := "Authorization: Bearer " + userToken(t, "user_1", nil)
	for _, body := range []string{`{"name":"n"}`, `{"name":"n","scopes":[]}`, `{"name":"n","scopes":null,"rateLimit":null,"expiresAt":null}`} {
		a := s.ask("POST", bunshipPath, bearer, body)
		if a.status != 200 || !strings.Contains(a.body, `"scopes":[],"rateLimit":1000`) {
			t.Fatalf("got %d %s", a.status, a.body)
		}
		plain := decode[struct{ Data struct{ Key string } }](t, a.body).Data.Key
		for scope, valid := range map[string]bool{"read": true, "agency:write": true, "system:verify": false} {
			v := s.ask("POST", "/api/v1/keys/verify", fmt.Sprintf(`{"key":%q,"scopes":[%q]}`, plain, scope))
			if strings.Contains(v.body, `"valid":true`) != valid {
				t.Errorf("%s: %s", scope, v.body)
			}
		}
	}
}

func TestAnExpiredKeyIsNotActiveForBunship(t *testing.T) {
	t.Parallel()
	s := start(t)
	admin := s.key(acme, "admin")
	s.keyWith(domain.CreateKey{Organization: acme, Scopes: domain.Scopes{"read"}, ExpiresAt: noon.Add(time.Hour)})
	s.pass(time.Hour)
	data := decode[struct {
		Data []struct{ IsActive bool }
	}](t, s.ask("GET", bunshipPath, "X-API-Key: "+admin).body).Data
	if len(data) != 2 || data[0].IsActive || !data[1].IsActive {
		t.Errorf("got %+v", data)
	}
}

func TestBothDialectsShowOneLedger(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.addMember(acme, "user_1", "member")
	bearer := "Authorization: Bearer " + userToken(t, "user_1", nil)
	a := s.ask("POST", bunshipPath, bearer, `{"name":"n","scopes":["admin"]}`)
	made := decode[struct{ Data struct{ ID, Key string } }](t, a.body).Data
	list := decode[struct {
		APIKeys []bullseyeKey `json:"apiKeys"`
	}](t, s.ask("GET", bullseyePath, "X-API-Key: "+made.Key).body).APIKeys
	if len(list) != 1 || list[0].CreatedByUserID == nil || *list[0].CreatedByUserID != "user_1" {
		t.Fatalf("got %+v", list)
	}
	id, err := domain.ParseKeyID(made.ID)
	if err != nil || list[0].ID != id.UUID() {
		t.Errorf("%s is not %s", list[0].ID, made.ID)
	}
	if a := s.ask("DELETE", bullseyePath+"/"+list[0].ID, bearer); a.status != 200 {
		t.Errorf("got %d %s", a.status, a.body)
	}
	s.ask("GET", bunshipPath+"/"+made.ID, "X-API-Key: "+made.Key).is(t, 401, bunshipBadToken)
}

func bunshipError(code, message, details string) string {
	return fmt.Sprintf(`{"success":false,"error":{"code":%q,"message":%q,"details":{%s}}}`, code, message, details)
}

var (
	bunshipNotFound  = bunshipError("NOT_FOUND", "Resource not found", "")
	bunshipBadToken  = bunshipError("AUTHENTICATION_ERROR", "Invalid or expired token", "")
	bunshipNoToken   = bunshipError("AUTHENTICATION_ERROR", "Missing or invalid authorization header", "")
	bunshipNotMember = bunshipError("AUTHORIZATION_ERROR", "Not a member of this organization", "")
)

// Every row of BunShip's error table.
func TestBunshipErrors(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.addMember(acme, "user_1", "member")
	s.addMember(other, "user_2", "owner")
	user := "Authorization: Bearer " + userToken(t, "user_1", nil)
	admin, reader := s.key(acme, "admin"), s.key(acme, "read")
	foreign := s.key(other, "admin")
	scarce := s.keyWith(domain.CreateKey{Organization: acme, Scopes: domain.Scopes{"admin"}, RateLimit: 1}).Reveal()
	s.ask("GET", bunshipPath, "X-API-Key: "+scarce)
	revoked := s.keyID(s.key(acme, "read")).String()
	s.ask("DELETE", bunshipPath+"/"+revoked, user)
	s.ask("POST", bunshipPath, user, "Idempotency-Key: once", `{"name":"one"}`)
	big := `{"name":"` + strings.Repeat("x", 64<<10) + `"}`
	invalid := func(field, message string) string {
		return bunshipError("VALIDATION_ERROR", "Validation failed", fmt.Sprintf(`"field":%q,"message":%q`, field, message))
	}
	tooLong := strings.Repeat("x", 65)

	for _, test := range []struct {
		name          string
		method, path  string
		rest          []string
		status        int
		body          string
		header, value string
	}{
		{"no Authorization", "GET", bunshipPath, nil, 401, bunshipNoToken, "WWW-Authenticate", `Bearer realm="keyledger"`},
		{"malformed Authorization", "GET", bunshipPath, []string{"Authorization: Basic dTpw"}, 401, bunshipNoToken, "", ""},
		{"no token after Bearer", "GET", bunshipPath, []string{"Authorization: Bearer "}, 401, bunshipNoToken, "", ""},
		{"bad signature", "GET", bunshipPath, []string{user + "x"}, 401, bunshipBadToken, "", ""},
		{"expired", "GET", bunshipPath, []string{"Authorization: Bearer " + userToken(t, "user_1", claimSet{"exp": noon.Unix()})}, 401, bunshipBadToken, "", ""},
		{"without expiry", "GET", bunshipPath, []string{"Authorization: Bearer " + userToken(t, "user_1", claimSet{"exp": nil})}, 401, bunshipBadToken, "", ""},
		{"wrong issuer", "GET", bunshipPath, []string{"Authorization: Bearer " + userToken(t, "user_1", claimSet{"iss": "https://other.example"})}, 401, bunshipBadToken, "", ""},
		{"unknown API key", "GET", bunshipPath, []string{"Authorization: Bearer bsk_live_00000000000000000000000000000000"}, 401, bunshipBadToken, "", ""},
		{"not a member", "GET", bunshipPath, []string{"Authorization: Bearer " + userToken(t, "user_2", nil)}, 403, bunshipNotMember, "", ""},
		{"no such organization", "GET", "/api/v1/organizations/org_nobody/api-keys", []string{user}, 403, bunshipNotMember, "", ""},
		{"organization too long to exist", "GET", "/api/v1/organizations/" + tooLong + "/api-keys", []string{user}, 403, bunshipNotMember, "", ""},
		{"organization with invalid characters", "GET", "/api/v1/organizations/org.abc/api-keys", []string{user}, 400, invalid("orgId", "must be 1 to 64 letters, digits, underscores or hyphens"), "", ""},
		{"organization with a NATS wildcard", "GET", "/api/v1/organizations/%3E/api-keys", []string{user}, 400, invalid("orgId", "must be 1 to 64 letters, digits, underscores or hyphens"), "", ""},
		{"another organization's API key", "GET", bunshipPath, []string{"X-API-Key: " + foreign}, 403, bunshipNotMember, "X-RateLimit-Limit", "1000"},
		{"API key without the scope", "POST", bunshipPath, []string{"X-API-Key: " + reader, `{"name":"n"}`}, 403, bunshipError("AUTHORIZATION_ERROR", "The API key lacks the scope admin", ""), "", ""},
		{"API key that cannot grant full access", "POST", bunshipPath, []string{"X-API-Key: " + admin, `{"name":"n"}`}, 403, bunshipError("AUTHORIZATION_ERROR", "scopes a credential cannot grant a scope that it does not imply itself", `"field":"scopes"`), "", ""},
		{"malformed JSON", "POST", bunshipPath, []string{user, `{"name"`}, 400, bunshipError("PARSE_ERROR", "Invalid request body", `"field":"name","message":"is not valid JSON in UTF-8"`), "", ""},
		{"no body", "POST", bunshipPath, []string{user}, 400, bunshipError("PARSE_ERROR", "Invalid request body", `"message":"the body must be a JSON object"`), "", ""},
		{"a field is missing", "POST", bunshipPath, []string{user, `{"scopes":[]}`}, 400, invalid("name", "is required"), "", ""},
		{"a field is invalid", "POST", bunshipPath, []string{user, `{"name":"n","rateLimit":0}`}, 400, invalid("rateLimit", "must be an integer from 1 to 100000000"), "", ""},
		{"expiry in the past", "POST", bunshipPath, []string{user, `{"name":"n","expiresAt":"2026-01-15T10:00:00.000Z"}`}, 400, invalid("expiresAt", "must be in the future"), "", ""},
		{"two credentials", "GET", bunshipPath, []string{user, "X-API-Key: " + admin}, 400, invalid("Authorization", "must not name another credential than X-API-Key"), "", ""},
		{"unknown key", "GET", bunshipPath + "/key_01HM5HWQYA7GSN9XG0A1B2C3D4", []string{user}, 404, bunshipNotFound, "", ""},
		{"unknown key's usage", "GET", bunshipPath + "/key_01HM5HWQYA7GSN9XG0A1B2C3D4/usage", []string{user}, 404, bunshipNotFound, "", ""},
		{"malformed key id", "GET", bunshipPath + "/nonsense", []string{user}, 404, bunshipNotFound, "", ""},
		{"another organization's key", "DELETE", bunshipPath + "/" + s.keyID(foreign).String(), []string{user}, 404, bunshipNotFound, "", ""},
		{"revoked already", "DELETE", bunshipPath + "/" + revoked, []string{user}, 404, bunshipNotFound, "X-Keyledger-Position", "3:lifecycle:9"},
		{"unknown route", "GET", "/api/v1/organizations/org_abc123/nothing", []string{user}, 404, bunshipNotFound, "", ""},
		{"unknown method", "PATCH", bunshipPath + "/" + revoked, []string{user}, 404, bunshipNotFound, "Allow", "GET, HEAD, DELETE, OPTIONS"},
		{"too large", "POST", bunshipPath, []string{user, big}, 413, bunshipError("PAYLOAD_TOO_LARGE", "the body must be at most 65536 bytes", ""), "", ""},
		{"not JSON", "POST", bunshipPath, []string{user, "Content-Type: application/x-www-form-urlencoded", `{"name":"n"}`}, 415, bunshipError("UNSUPPORTED_MEDIA_TYPE", "Content-Type must be application/json", `"field":"Content-Type"`), "", ""},
		{"idempotency key reused", "POST", bunshipPath, []string{user, "Idempotency-Key: once", `{"name":"two"}`}, 422, bunshipError("IDEMPOTENCY_KEY_REUSED", "the idempotency key was used for another request", ""), "", ""},
		{"over the limit", "GET", bunshipPath, []string{"X-API-Key: " + scarce}, 429, bunshipError("RATE_LIMITED", "Rate limit exceeded", ""), "Retry-After", "40"},
	} {
		t.Run(test.name, func(t *testing.T) {
			a := s.ask(test.method, test.path, test.rest...).is(t, test.status, test.body)
			a.has(t, "Content-Type", "application/json; charset=utf-8").has(t, "Cache-Control", "no-store")
			if test.header != "" {
				a.has(t, test.header, test.value)
			}
			if !json.Valid([]byte(a.body)) {
				t.Errorf("not JSON: %s", a.body)
			}
		})
	}

	unavailable := bunshipError("SERVICE_UNAVAILABLE", "the ledger cannot be reached, try again", "")
	t.Run("unavailable", func(t *testing.T) {
		s.set(func(g *ledger) { g.down = errPostgresAway })
		defer s.set(func(g *ledger) { g.down = nil })
		for _, credential := range []string{user, "X-API-Key: " + admin} {
			s.ask("GET", bunshipPath, credential).is(t, 503, unavailable).has(t, "Retry-After", "1")
			s.ask("POST", bunshipPath, credential, `{"name":"n","scopes":["read"]}`).is(t, 503, unavailable).has(t, "Retry-After", "1")
		}
	})
	t.Run("anything else", func(t *testing.T) {
		s.set(func(g *ledger) { g.down = errors.New("a column is missing") })
		s.ask("GET", bunshipPath, user).is(t, 500, bunshipError("INTERNAL_ERROR", "An unexpected error occurred", ""))
	})
}

func TestADeploymentMayAskForRoles(t *testing.T) {
	t.Parallel()
	s := start(t, func(o *keyhttp.Options) { o.Tokens.Roles = []string{"owner", "admin"} })
	s.addMember(acme, "user_1", "member")
	s.addMember(acme, "user_2", "owner")
	s.ask("GET", bunshipPath, "Authorization: Bearer "+userToken(t, "user_1", nil)).
		is(t, 403, bunshipError("AUTHORIZATION_ERROR", "Your role in this organization does not allow this", ""))
	s.ask("GET", bunshipPath, "Authorization: Bearer "+userToken(t, "user_2", nil)).is(t, 200, `{"success":true,"data":[]}`)
}
