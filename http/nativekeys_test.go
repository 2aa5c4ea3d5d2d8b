package http_test

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"keyledger/domain"
	keyhttp "keyledger/http"
)

const nativePath = "/api/v1/organizations/org_abc123/keys"

type nativeKey struct {
	ID, OrganizationID, Name, Prefix, Status string
	Environment                              *string
	Scopes                                   []string
	RateLimit                                *uint32
	RevokedAt                                *string
}

type nativeMade struct {
	Key    nativeKey
	Secret *string
}

func TestKeysInOurOwnDialect(t *testing.T) {
	t.Parallel()
	s := start(t)
	admin := "X-API-Key: " + s.keyWith(createAnything).Reveal()
	a := s.ask("POST", nativePath, admin, `{"name":"Production","scopes":["orders:read"],"rateLimit":500,"expiresAt":"2027-01-15T11:00:00+01:00"}`)
	made := decode[nativeMade](t, a.body)
	if made.Secret == nil || !plainKey.MatchString(*made.Secret) {
		t.Fatalf("got %d %s", a.status, a.body)
	}
	key := func(status, revokedAt, lastUsed string, uses int) string {
		return fmt.Sprintf(`{"id":%q,"organizationId":"org_abc123","name":"Production","prefix":%q,"environment":"live","scopes":["orders:read"],"rateLimit":500,`+
			`"status":%q,"createdAt":"2026-01-15T10:00:00Z","createdByUserId":null,"expiresAt":"2027-01-15T10:00:00Z","revokedAt":%s,"lastUsedAt":%s,"uses":%d}`,
			made.Key.ID, (*made.Secret)[:13], status, revokedAt, lastUsed, uses)
	}
	const ten = `"2026-01-15T10:00:00Z"`
	a.is(t, 201, `{"key":`+key("active", "null", "null", 0)+fmt.Sprintf(`,"secret":%q}`, *made.Secret)).
		has(t, "X-Keyledger-Position", "3:lifecycle:2").has(t, "Location", nativePath+"/"+made.Key.ID)
	s.ask("POST", verifyPath, fmt.Sprintf(`{"key":%q}`, *made.Secret))
	path := nativePath + "/" + made.Key.ID
	s.ask("GET", path, admin, "X-Keyledger-Min-Position: 3:lifecycle:2").is(t, 200, `{"key":`+key("active", "null", ten, 1)+`}`)
	s.ask("GET", nativePath+"?limit=1", admin).is(t, 200, `{"keys":[`+key("active", "null", ten, 1)+`],"hasMore":true,"nextCursor":"`+
		decode[struct{ NextCursor string }](t, s.ask("GET", nativePath+"?limit=1", admin).body).NextCursor+`"}`)

	a = s.ask("DELETE", path, admin, `{"reason":"  left the company "}`)
	if a.status != 200 || !strings.HasPrefix(a.body, `{"key":`+key("revoked", ten, ten, 1)+`,"changed":true`) {
		t.Errorf("got %d %s", a.status, a.body)
	}
	a.has(t, "X-Keyledger-Position", "3:lifecycle:3")
	if c, ok := s.commandLog[len(s.commandLog)-1].(domain.RevokeKey); !ok || c.Reason != "left the company" {
		t.Errorf("got %+v", s.commandLog[len(s.commandLog)-1])
	}
	if a := s.ask("DELETE", path, admin); a.status != 200 || !strings.HasPrefix(a.body, `{"key":`+key("revoked", ten, ten, 1)+`,"changed":false`) {
		t.Errorf("got %d %s", a.status, a.body)
	}
	s.ask("GET", nativePath+"/nothing", admin).is(t, 404, problem(404, "Not Found", "no such key", "not_found", ""))
	s.ask("DELETE", nativePath+"/"+domain.KeyID{7}.String(), admin).is(t, 404, problem(404, "Not Found", "no such key", "not_found", ""))
	// What is not here is told in this dialect, too.
	s.ask("PATCH", path, admin).is(t, 404, problem(404, "Not Found", "no such route", "not_found", "")).has(t, "Content-Type", "application/problem+json")
}

func TestAKeyIsMadeAsItIsAskedFor(t *testing.T) {
	t.Parallel()
	s := start(t, func(o *keyhttp.Options) { o.RateLimit = 250 })
	admin := "X-API-Key: " + s.keyWith(createAnything).Reveal()
	for body, want := range map[string]struct {
		limit       uint32
		environment string
	}{
		`{"name":"n","scopes":["read"]}`:                                         {250, "live"},
		`{"name":"n","scopes":["read"],"rateLimit":null,"environment":null}`:     {0, "live"},
		`{"name":"n","scopes":["read"],"rateLimit":0,"environment":"live"}`:      {0, "live"},
		`{"name":"n","scopes":["read"],"rateLimit":1,"environment":"test"}`:      {1, "test"},
		`{"name":"n","scopes":["read"],"rateLimit":100000000,"expiresAt":null}`:  {100_000_000, "live"},
		`{"name":"n","scopes":["read","read"],"unknown":{"rateLimit":[1,2,{}]}}`: {250, "live"},
	} {
		made := decode[nativeMade](t, s.ask("POST", nativePath, admin, body).body)
		k := made.Key
		if made.Secret == nil || !strings.HasPrefix(*made.Secret, "bsk_"+want.environment+"_") || *k.Environment != want.environment || k.Prefix != (*made.Secret)[:13] ||
			(k.RateLimit == nil) != (want.limit == 0) || k.RateLimit != nil && *k.RateLimit != want.limit || len(k.Scopes) != 1 {
			t.Errorf("%s makes %+v", body, made)
		}
		if a := s.ask("POST", verifyPath, fmt.Sprintf(`{"key":%q}`, *made.Secret)); !strings.Contains(a.body, `"valid":true`) || strings.Contains(a.body, `"rateLimit":null`) != (want.limit == 0) {
			t.Errorf("%s is verified as %s", body, a.body)
		}
	}
	first := s.ask("POST", nativePath, admin, "Idempotency-Key: a", `{"name":"n","scopes":["read"],"environment":"test"}`)
	again := s.ask("POST", nativePath, admin, "Idempotency-Key: a", `{"name":"n","scopes":["read"],"environment":"test"}`)
	if want := regexp.MustCompile(`"bsk_test_[0-9a-f]{32}"`).ReplaceAllString(first.body, "null"); again.body != want {
		t.Errorf("got %s, not %s", again.body, want)
	}
	again.has(t, "Idempotent-Replayed", "true").has(t, "Location", first.header.Get("Location"))
}

func TestBadInputToOurOwnDialectNamesTheField(t *testing.T) {
	t.Parallel()
	s := start(t)
	admin := "X-API-Key: " + s.keyWith(createAnything).Reveal()
	key := nativePath + "/" + s.keyID(s.key(acme, "read")).String()
	for _, c := range []struct{ method, path, body, field, code string }{
		{"POST", nativePath, `{"scopes":["read"]}`, "name", "invalid"},
		{"POST", nativePath, `{"name":"n"}`, "scopes", "invalid"},
		{"POST", nativePath, `{"name":"n","scopes":[]}`, "scopes", "invalid"},
		{"POST", nativePath, `{"name":"n","scopes":["Not A Scope"]}`, "scopes", "invalid"},
		{"POST", nativePath, `{"name":"n","scopes":["read"],"rateLimit":-1}`, "rateLimit", "invalid"},
		{"POST", nativePath, `{"name":"n","scopes":["read"],"rateLimit":1.5}`, "rateLimit", "invalid"},
		{"POST", nativePath, `{"name":"n","scopes":["read"],"rateLimit":100000001}`, "rateLimit", "invalid"},
		{"POST", nativePath, `{"name":"n","scopes":["read"],"rateLimit":"1"}`, "rateLimit", "invalid"},
		{"POST", nativePath, `{"name":"n","scopes":["read"],"environment":"prod"}`, "environment", "invalid"},
		{"POST", nativePath, `{"name":"n","scopes":["read"],"expiresAt":"2026-01-15T10:00:00Z"}`, "expiresAt", "invalid"},
		{"POST", nativePath, `{"name":"n","name":"m","scopes":["read"]}`, "name", "malformed"},
		{"DELETE", key, `{"reason":7}`, "reason", "invalid"},
		{"DELETE", key, `{"reason":"` + strings.Repeat("é", 501) + `"}`, "reason", "invalid"},
		{"DELETE", key, `{"reason":"a\nb"}`, "reason", "invalid"},
		{"GET", nativePath + "?limit=0", "", "limit", "invalid"},
		{"GET", nativePath + "?limit=1001", "", "limit", "invalid"},
		{"GET", nativePath + "?cursor=x", "", "cursor", "invalid"},
	} {
		lines := []string{admin}
		if c.body != "" {
			lines = append(lines, c.body)
		}
		a := s.ask(c.method, c.path, lines...)
		if a.status != 400 || !strings.Contains(a.body, fmt.Sprintf(`"code":%q,"field":%q}`, c.code, c.field)) {
			t.Errorf("%s %s %s: got %d %s", c.method, c.path, c.body, a.status, a.body)
		}
	}
	// Nothing was done.
	if a := s.ask("GET", key, admin); !strings.Contains(a.body, `"status":"active"`) {
		t.Errorf("got %s", a.body)
	}
	if a := s.ask("DELETE", key, admin, `{"reason":"`+strings.Repeat("é", 500)+`"}`); a.status != 200 {
		t.Errorf("got %d %s", a.status, a.body)
	}
}

func TestOurOwnListComesInPages(t *testing.T) {
	t.Parallel()
	p := newPast()
	for i := range 120 {
		p.keys = append(p.keys, domain.Key{ID: domain.KeyID{byte(120 - i)}, Organization: acme, Name: "then", ExpiresAt: noon.Add(-time.Minute), Scopes: domain.Scopes{"read"}})
	}
	s := start(t, func(o *keyhttp.Options) { o.Audit = p })
	admin := "X-API-Key: " + s.keyWith(createAnything).Reveal()
	for range 119 {
		s.key(acme, "read")
	}
	for _, at := range []string{"", "&at=1h"} {
		seen := map[string]bool{}
		path := nativePath + "?" + at
		for pages := 0; path != ""; pages++ {
			a := s.ask("GET", path, admin)
			page := decode[struct {
				Keys       []nativeKey
				HasMore    bool
				NextCursor *string
			}](t, a.body)
			if len(page.Keys) > 100 || page.HasMore != (page.NextCursor != nil) || page.HasMore != (a.header.Get("Link") != "") || pages > 2 {
				t.Fatalf("got %d keys, %v, %v, %s", len(page.Keys), page.HasMore, page.NextCursor, a.header.Get("Link"))
			}
			for _, k := range page.Keys {
				if seen[k.ID] || k.Status != "active" { // what has expired since was active then
					t.Fatalf("got %+v", k)
				}
				seen[k.ID] = true
			}
			path = ""
			if page.NextCursor != nil {
				path = nativePath + "?cursor=" + *page.NextCursor + at
			}
		}
		if len(seen) != 120 {
			t.Errorf("%q: %d keys", at, len(seen))
		}
	}
}

func TestOurOwnDialectAsksForTheSameRights(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.addMember(acme, "user_1", "member")
	reader, foreign := "X-API-Key: "+s.key(acme, "read"), "X-API-Key: "+s.key(other, "admin")
	member := "Authorization: Bearer " + userToken(t, "user_1", nil)
	key := nativePath + "/" + s.keyID(s.key(acme, "read")).String()
	for _, c := range []struct {
		method, path, credential string
		status                   int
	}{
		{"GET", nativePath, reader, 200},
		{"GET", key, reader, 200},
		{"POST", nativePath, reader, 403},
		{"DELETE", key, reader, 403},
		{"GET", nativePath, foreign, 403},
		{"GET", key, foreign, 403},
		{"DELETE", key, foreign, 403},
		{"GET", nativePath, "X-API-Key: bsk_live_unknown", 401},
		{"GET", nativePath, "X-Nothing: x", 401},
		{"POST", nativePath, member, 201},
		{"DELETE", key, member, 200},
	} {
		lines := []string{c.credential}
		if c.method == "POST" {
			lines = append(lines, `{"name":"n","scopes":["read"]}`)
		}
		if a := s.ask(c.method, c.path, lines...); a.status != c.status {
			t.Errorf("%s %s with %s: got %d %s", c.method, c.path, c.credential, a.status, a.body)
		}
	}
}

// A position of a history that was given up is refused at once wherever one can be asked for.
func TestAPositionOfAnotherEpochIsRefusedWithAdvice(t *testing.T) {
	t.Parallel()
	s := start(t, func(o *keyhttp.Options) { o.Usage = &counts{} })
	key := s.key(acme, "*")
	path := nativePath + "/" + s.keyID(key).String()
	for _, c := range []struct{ method, path, body string }{
		{"POST", verifyPath, fmt.Sprintf(`{"key":%q}`, key)},
		{"POST", verifyPath + "/batch", fmt.Sprintf(`{"keys":[{"key":%q}]}`, key)},
		{"GET", nativePath, ""},
		{"GET", path, ""},
		{"GET", path + "/usage", ""},
		{"GET", bullseyePath, ""},
		{"GET", bunshipPath, ""},
		{"GET", bunshipPath + "/" + s.keyID(key).String(), ""},
	} {
		lines := []string{"X-API-Key: " + key}
		if c.body != "" {
			lines = append(lines, c.body)
		}
		a := s.ask(c.method, c.path+"?wait=10s", append(lines, "X-Keyledger-Min-Position: 2:lifecycle:1")...)
		if a.status != 409 || !strings.Contains(a.body, "forget it, read anew and use the positions of new writes") {
			t.Errorf("%s %s: got %d %s", c.method, c.path, a.status, a.body)
		}
		if a := s.ask(c.method, c.path+"?wait=5ms", append(lines, "X-Keyledger-Min-Position: 3:lifecycle:2")...); a.status != 409 || !strings.Contains(a.body, "is not here yet") {
			t.Errorf("%s %s: got %d %s", c.method, c.path, a.status, a.body)
		}
		if a := s.ask(c.method, c.path, append(lines, "X-Keyledger-Min-Position: 3:lifecycle:1")...); a.status != 200 {
			t.Errorf("%s %s: got %d %s", c.method, c.path, a.status, a.body)
		}
	}
}

// fence is what Hold answers, and what it was asked.
type fence struct {
	held   []domain.Position
	answer domain.Fenced
	err    error
	ended  chan domain.Position
}

func (f *fence) Hold(_ context.Context, position domain.Position, _ time.Time) (domain.Fenced, error) {
	f.held = append(f.held, position)
	return f.answer, f.err
}

func (f *fence) By(_ context.Context, committed time.Time) (time.Time, error) {
	return noon.Add(7 * time.Second), nil
}

func (f *fence) Record(_ domain.KeyID, position domain.Position, _ domain.Fenced) {
	f.ended <- position
}
func (f *fence) Tell(context.Context, domain.Position) {}

func TestARevocationTellsHowItCameToHoldEverywhere(t *testing.T) {
	t.Parallel()
	f := &fence{ended: make(chan domain.Position, 8), answer: domain.Fenced{Waited: 1234567 * time.Microsecond, Confirmed: make([]domain.ID, 3), Expired: make([]domain.ID, 1)}}
	s := start(t, func(o *keyhttp.Options) { o.Fence = f })
	admin := "X-API-Key: " + s.keyWith(createAnything).Reveal()
	path := func() string { return nativePath + "/" + s.keyID(s.key(acme, "read")).String() }
	tail := func(a answer, status int, want string) {
		t.Helper()
		if a.status != status || !strings.HasSuffix(a.body, want) {
			t.Errorf("got %d %s, not %d ...%s", a.status, a.body, status, want)
		}
	}
	first := path()
	tail(s.ask("DELETE", first, admin, "Idempotency-Key: a"), 200, `},"changed":true,"fenced":true,"waitedMs":1234,"confirmed":3,"expired":1}`)
	// Whoever asks again waits, too: another might not know yet.
	tail(s.ask("DELETE", first, admin), 200, `},"changed":false,"fenced":true,"waitedMs":1234,"confirmed":3,"expired":1}`)
	tail(s.ask("DELETE", first, admin, "Idempotency-Key: a").has(t, "Idempotent-Replayed", "true"), 200, `},"changed":true,"fenced":true,"waitedMs":1234,"confirmed":3,"expired":1}`)
	if got := fmt.Sprint(f.held); got != "[3 3 3]" || <-f.ended != 3 || len(f.ended) != 0 {
		t.Errorf("the fence was asked for %s", got)
	}
	later := path()
	a := s.ask("DELETE", later, admin, "Prefer: wait=1, Respond-Async; x=y")
	tail(a, 202, `},"changed":true,"fenced":false,"fenceBy":"2026-01-15T10:00:07.124Z"}`)
	a.has(t, "Preference-Applied", "respond-async").has(t, "X-Keyledger-Position", "3:lifecycle:5")
	if position := <-f.ended; position != 5 {
		t.Errorf("the fence ended at %d", position)
	}
	f.err = errPostgresAway
	a = s.ask("DELETE", path(), admin)
	a.is(t, 503, problem(503, "Service Unavailable", "the ledger cannot be reached, try again", "unavailable", "")).has(t, "X-Keyledger-Position", "3:lifecycle:7")
}
