package http_test

import (
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"keyledger/domain"
)

// createAnything is a key that can hand on everything.
var createAnything = domain.CreateKey{Organization: acme, Scopes: domain.Scopes{"*"}, RateLimit: 100_000}

func TestARepeatedCreateGivesTheFirstAnswerWithoutTheSecret(t *testing.T) {
	t.Parallel()
	s := start(t)
	admin := "X-API-Key: " + s.keyWith(createAnything).Reveal()
	type made struct {
		APIKey   bullseyeKey `json:"apiKey"`
		PlainKey *string     `json:"plainKey"`
	}
	first := s.ask("POST", bullseyePath, admin, "Idempotency-Key: 7f3a", `{"name":"n"}`)
	again := s.ask("POST", bullseyePath+"/", admin, "Idempotency-Key: 7f3a", `{"name":"n"}`)
	one, two := decode[made](t, first.body), decode[made](t, again.body)
	if again.status != 201 || one.PlainKey == nil || two.PlainKey != nil || one.APIKey.ID != two.APIKey.ID || one.APIKey.CreatedAt != two.APIKey.CreatedAt {
		t.Errorf("got %s and %s", first.body, again.body)
	}
	first.has(t, "Idempotent-Replayed", "")
	again.has(t, "Idempotent-Replayed", "true").has(t, "X-Keyledger-Position", first.header.Get("X-Keyledger-Position"))

	ship := s.ask("POST", bunshipPath, admin, "Idempotency-Key: ship", `{"name":"n"}`)
	again = s.ask("POST", bunshipPath, admin, "Idempotency-Key: ship", `{"name":"n"}`)
	if !strings.Contains(again.body, `"key":null`) || again.status != 200 || !strings.Contains(ship.body, `"key":"bsk_live_`) {
		t.Errorf("got %s and %s", ship.body, again.body)
	}
	// The other dialect reads the same body differently.
	if a := s.ask("POST", bunshipPath, admin, "Idempotency-Key: 7f3a", `{"name":"n"}`); a.status != 422 {
		t.Errorf("got %d %s", a.status, a.body)
	}
	// Another actor's key is another command.
	second := "X-API-Key: " + s.keyWith(createAnything).Reveal()
	if a := s.ask("POST", bullseyePath, second, "Idempotency-Key: 7f3a", `{"name":"other"}`); a.status != 201 {
		t.Errorf("got %d %s", a.status, a.body)
	}
}

func TestARepeatedRevokeIsTheFirstOne(t *testing.T) {
	t.Parallel()
	s := start(t)
	admin := "X-API-Key: " + s.keyWith(createAnything).Reveal()
	id := s.keyID(s.key(acme, "read"))
	revoked := `{"success":true,"message":"API key revoked successfully"}`
	path := bunshipPath + "/" + id.String()
	s.ask("DELETE", path, admin, "Idempotency-Key: a").is(t, 200, revoked).has(t, "Idempotent-Replayed", "")
	s.ask("DELETE", bunshipPath+"/"+id.UUID(), admin, "Idempotency-Key: a").is(t, 200, revoked).has(t, "Idempotent-Replayed", "true")
	s.ask("DELETE", path, admin, "Idempotency-Key: b").is(t, 404, bunshipNotFound)
	s.ask("DELETE", path, admin, "Idempotency-Key: b").is(t, 404, bunshipNotFound).has(t, "Idempotent-Replayed", "true")
	s.ask("DELETE", path, admin).is(t, 404, bunshipNotFound)
	another := s.keyID(s.key(acme, "read"))
	if a := s.ask("DELETE", bunshipPath+"/"+another.String(), admin, "Idempotency-Key: a"); a.status != 422 {
		t.Errorf("the same name for another key: %d %s", a.status, a.body)
	}
}

func TestIdempotencyKeysAreLimited(t *testing.T) {
	t.Parallel()
	s := start(t)
	admin := "X-API-Key: " + s.keyWith(createAnything).Reveal()
	for _, lines := range [][]string{
		{"Idempotency-Key: " + strings.Repeat("k", 256)},
		{"Idempotency-Key: clé"},
		{"Idempotency-Key: a", "Idempotency-Key: b"},
	} {
		a := s.ask("POST", bullseyePath, append(lines, admin, `{"name":"n"}`)...)
		if a.status != 400 || !strings.Contains(a.body, `"field":"Idempotency-Key"`) {
			t.Errorf("%v: %d %s", lines, a.status, a.body)
		}
	}
	if a := s.ask("POST", bullseyePath, "Idempotency-Key: "+strings.Repeat("k", 255), admin, `{"name":"n"}`); a.status != 201 {
		t.Errorf("got %d %s", a.status, a.body)
	}
}

func TestACommandIsAuthorisedAgainWhenItsAuthorityMoves(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.addMember(acme, "user_1", "member")
	key := s.keyWith(domain.CreateKey{Organization: acme, Scopes: domain.Scopes{"*"}, RateLimit: 2}).Reveal()
	id := s.keyID(key)
	touch := func(g *ledger) { g.keys[id].version++; g.position++ }
	revoke := func(g *ledger) {
		k := g.keys[id]
		k.key.Revoked = true
		k.version++
		g.position++
	}
	s.set(func(g *ledger) { g.beforeSave = touch })
	a := s.ask("POST", bullseyePath, "X-API-Key: "+key, `{"name":"n"}`)
	if a.status != 201 {
		t.Fatalf("got %d %s", a.status, a.body)
	}
	a.has(t, "X-RateLimit-Remaining", "1") // one request, one use of the limit
	s.set(func(g *ledger) { g.beforeSave = revoke })
	s.ask("POST", bullseyePath, "X-API-Key: "+key, `{"name":"n"}`).is(t, 401, bullseyeUnauthorized)

	bearer := "Authorization: Bearer " + userToken(t, "user_1", nil)
	s.set(func(g *ledger) {
		g.beforeSave = func(g *ledger) {
			delete(g.members[acme].Members, "user_1")
			g.versions[acme]++
			g.position++
		}
	})
	s.ask("POST", bunshipPath, bearer, `{"name":"n"}`).is(t, 403, bunshipNotMember)

	last := s.requests[len(s.requests)-1]
	if last.Guard != (domain.Guard{Organization: acme, Version: 1}) {
		t.Errorf("guarded %+v", last.Guard)
	}
}

func TestAWriteCarriesWhoDidItAndFromWhere(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.addMember(acme, "user_1", "member")
	key := s.keyWith(createAnything).Reveal()
	s.ask("POST", bullseyePath, "X-API-Key: "+key, "X-Request-ID: req-1", "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
		"X-Forwarded-For: 203.0.113.9", `{"name":"n"}`).has(t, "X-Request-Id", "req-1")
	m := s.requests[len(s.requests)-1].Metadata
	if m.Actor != (domain.Actor{Kind: domain.ActorKey, Key: s.keyID(key)}) || m.RequestID != "req-1" || m.TraceID != "0af7651916cd43dd8448eb211c80319c" ||
		m.Source.String() != "127.0.0.1" {
		t.Errorf("got %+v", m)
	}
	a := s.ask("POST", bunshipPath, "Authorization: Bearer "+userToken(t, "user_1", nil), "X-Request-ID: "+canary, `{"name":"n"}`)
	m = s.requests[len(s.requests)-1].Metadata
	if m.Actor != (domain.Actor{Kind: domain.ActorUser, User: "user_1"}) || len(m.RequestID) != 32 || m.RequestID != a.header.Get("X-Request-Id") || m.TraceID != "" {
		t.Errorf("got %+v", m)
	}
	c, ok := s.commandLog[len(s.commandLog)-1].(domain.CreateKey)
	if !ok || c.CreatedBy != "user_1" || c.Now != noon.Truncate(time.Microsecond) {
		t.Errorf("got %+v", c)
	}
}

// Fiber hands out strings that point into a buffer which the connection's next
// request overwrites.
func TestWhatIsKeptOfARequestIsNotChangedByTheNext(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.addMember(acme, "user_1", "member")
	s.addMember("org_zzz999", "user_9", "member")
	send := func(organization, user, name, scope, request, idempotency string) {
		t.Helper()
		a := s.ask("POST", "/api/v1/organizations/"+organization+"/api-keys", "Authorization: Bearer "+userToken(t, user, nil),
			"X-Request-ID: "+request, "Idempotency-Key: "+idempotency, fmt.Sprintf(`{"name":%q,"scopes":[%q]}`, name, scope))
		if a.status != 200 {
			t.Fatalf("got %d %s", a.status, a.body)
		}
	}
	send("org_abc123", "user_1", "aaaaaaaa", "aaaa:aaaa", "req-aaaa", "idem-aaaa")
	kept := s.requests[len(s.requests)-1]
	key := s.keys[s.order[len(s.order)-1]].key
	for range 20 {
		send("org_zzz999", "user_9", "zzzzzzzz", "zzzz:zzzz", "req-zzzz", "idem-"+s.url)
	}
	if m := kept.Metadata; m.RequestID != "req-aaaa" || m.Actor.User != "user_1" {
		t.Errorf("got %+v", m)
	}
	if key.Name != "aaaaaaaa" || key.Organization != acme || key.Scopes[0] != "aaaa:aaaa" || key.CreatedBy != "user_1" {
		t.Errorf("got %+v", key)
	}
}

func TestListsComeInPages(t *testing.T) {
	t.Parallel()
	s := start(t)
	admin := s.keyWith(createAnything).Reveal()
	var names []string
	for i := range 7 {
		name := fmt.Sprintf("key %d", i)
		s.keyWith(domain.CreateKey{Organization: acme, Scopes: domain.Scopes{"read"}, Name: name})
		s.keyWith(domain.CreateKey{Organization: other, Scopes: domain.Scopes{"read"}})
		names = append([]string{name}, names...)
	}
	names = append(names, "Made by the test")
	type page struct {
		APIKeys    []bullseyeKey `json:"apiKeys"`
		NextCursor *string       `json:"nextCursor"`
	}
	var seen []string
	path := bullseyePath + "?limit=3"
	var cursors []string
	for range 3 {
		a := s.ask("GET", path, "X-API-Key: "+admin)
		p := decode[page](t, a.body)
		for _, k := range p.APIKeys {
			seen = append(seen, k.Name)
		}
		if p.NextCursor == nil {
			a.has(t, "Link", "")
			break
		}
		cursors = append(cursors, *p.NextCursor)
		path = bullseyePath + "?limit=3&cursor=" + *p.NextCursor
		link := strings.TrimSuffix(strings.TrimPrefix(a.header.Get("Link"), "<"), `>; rel="next"`)
		u, err := url.Parse(link)
		if err != nil || u.Path != bullseyePath || u.Query().Get("cursor") != *p.NextCursor || u.Query().Get("limit") != "3" {
			t.Errorf("got the link %s", a.header.Get("Link"))
		}
	}
	if strings.Join(seen, ",") != strings.Join(names, ",") || len(cursors) != 2 {
		t.Errorf("got %q in %d pages", seen, len(cursors)+1)
	}

	a := s.ask("GET", bunshipPath+"?limit=8", "X-API-Key: "+admin)
	if !strings.HasSuffix(a.body, `],"pagination":{"limit":8,"hasMore":false,"nextCursor":null}}`) {
		t.Errorf("got %s", a.body)
	}
	a = s.ask("GET", bunshipPath+"/?limit=1", "X-API-Key: "+admin)
	if !strings.Contains(a.body, `],"pagination":{"limit":1,"hasMore":true,"nextCursor":"`) {
		t.Errorf("got %s", a.body)
	}
	a = s.ask("GET", bunshipPath+"?cursor="+cursors[0], "X-API-Key: "+admin)
	if !strings.Contains(a.body, `"pagination":{"limit":100,`) || strings.Count(a.body, `"id":`) != 5 {
		t.Errorf("a cursor of the other dialect: %s", a.body)
	}

	foreign := s.key(other, "read")
	cursor := cursors[0]
	flipped := "A" + cursor[1:]
	if cursor[0] == 'A' {
		flipped = "B" + cursor[1:]
	}
	for _, query := range []string{
		"limit=0", "limit=-1", "limit=1001", "limit=x", "limit=", "limit=%2B5", "limit=1.0", "limit=99999999999999999999", "limit=1&limit=2",
		"cursor=", "cursor=x", "cursor=" + flipped, "cursor=" + cursor[:len(cursor)-1], "cursor=" + cursor + "A", "cursor=" + cursor[:len(cursor)-1] + "%00",
	} {
		field, _, _ := strings.Cut(query, "=")
		for _, list := range []string{bullseyePath, bunshipPath} {
			if a := s.ask("GET", list+"?"+query, "X-API-Key: "+admin); a.status != 400 || !strings.Contains(a.body, `"field":"`+field+`"`) {
				t.Errorf("%s: %d %s", query, a.status, a.body)
			}
		}
	}
	if a := s.ask("GET", "/api/v1/organization/org_other/api-keys?cursor="+cursor, "X-API-Key: "+foreign); a.status != 400 {
		t.Errorf("a cursor of another organization: %d %s", a.status, a.body)
	}
}

func TestALargeListIsOneAnswer(t *testing.T) {
	t.Parallel()
	s := start(t)
	admin := s.keyWith(createAnything).Reveal()
	const n = 20_000
	s.set(func(g *ledger) {
		like := g.keys[g.order[0]].key
		for i := range n {
			like.ID = domain.KeyID{15: byte(i), 14: byte(i >> 8), 6: 0x70, 8: 0x80}
			like.Digest = domain.Digest{byte(i), byte(i >> 8), 1}
			like.Name = fmt.Sprintf("Key %d of a large organization", i)
			g.keys[like.ID] = &stored{key: like, version: 1}
			g.order = append(g.order, like.ID)
		}
	})
	list := decode[struct {
		APIKeys []bullseyeKey `json:"apiKeys"`
	}](t, s.ask("GET", bullseyePath, "X-API-Key: "+admin).body).APIKeys
	if len(list) != n+1 || list[0].Name != "Key 19999 of a large organization" || list[n].Name != "Made by the test" {
		t.Errorf("got %d keys", len(list))
	}
}

func TestANewKeyIsShownEvenWhenTheIndexIsBehind(t *testing.T) {
	t.Parallel()
	s := start(t)
	admin := "X-API-Key: " + s.keyWith(createAnything).Reveal()
	id := s.keyID(s.key(acme, "read"))
	s.set(func(g *ledger) { g.behind = make(chan struct{}) })
	if a := s.ask("POST", bullseyePath, admin, `{"name":"n"}`); a.status != 201 || !strings.Contains(a.body, `"plainKey":"bsk_live_`) {
		t.Errorf("got %d %s", a.status, a.body)
	}
	// This node might still accept the key: that is no success, but it is not lost.
	a := s.ask("DELETE", bullseyePath+"/"+id.UUID(), admin)
	if a.status != 503 || a.header.Get("X-Keyledger-Position") == "" || a.header.Get("Retry-After") == "" {
		t.Errorf("got %d %v %s", a.status, a.header, a.body)
	}
	s.set(func(g *ledger) { close(g.behind); g.behind = nil })
	if a := s.ask("DELETE", bullseyePath+"/"+id.UUID(), admin); a.status != 200 {
		t.Errorf("got %d %s", a.status, a.body)
	}
}

func TestHeadAndOptions(t *testing.T) {
	t.Parallel()
	s := start(t)
	admin := "X-API-Key: " + s.keyWith(createAnything).Reveal()
	a := s.ask("HEAD", bullseyePath, admin)
	if a.status != 200 || a.body != "" || a.header.Get("Content-Length") == "0" {
		t.Errorf("got %d %v", a.status, a.header)
	}
	for path, allow := range map[string]string{
		bullseyePath:             "GET, HEAD, POST, OPTIONS",
		bullseyePath + "/x":      "DELETE, OPTIONS",
		bunshipPath + "/":        "GET, HEAD, POST, OPTIONS",
		bunshipPath + "/x":       "GET, HEAD, DELETE, OPTIONS",
		bunshipPath + "/x/usage": "GET, HEAD, OPTIONS",
		"/api/v1/keys/verify":    "POST, OPTIONS",
		"/livez":                 "GET, HEAD, OPTIONS",
	} {
		s.ask("OPTIONS", path).is(t, 204, "").has(t, "Allow", allow)
	}
	if a := s.ask("OPTIONS", "/nothing"); a.status != 404 {
		t.Errorf("got %d", a.status)
	}
}
