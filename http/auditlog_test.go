package http_test

import (
	"context"
	"encoding/csv"
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"

	"keyledger/domain"
	keyhttp "keyledger/http"
)

// past answers from a list of entries, newest first, and notes what it was asked.
type past struct {
	entries []keyhttp.AuditEntry
	asked   keyhttp.AuditQuery
	keys    []domain.Key
	at      string
}

func (p *past) Events(_ context.Context, q keyhttp.AuditQuery) ([]keyhttp.AuditEntry, error) {
	p.asked = q
	var page []keyhttp.AuditEntry
	for _, e := range p.entries {
		if (q.Before == 0 || e.Position < q.Before) && len(page) < q.Most {
			page = append(page, e)
		}
	}
	return page, nil
}

func (p *past) KeysAt(_ context.Context, _ domain.OrganizationID, at string, now time.Time) ([]domain.Key, time.Time, error) {
	if p.at = at; at == "yesterday" {
		return nil, now, domain.Invalid("at", "is no moment")
	}
	return p.keys, now.Add(-time.Hour), nil
}

func newPast() *past {
	actor := domain.Metadata{Actor: domain.Actor{Kind: domain.ActorUser, User: "ada"}, RequestID: "req_1", Source: netip.MustParseAddr("192.0.2.1")}
	return &past{entries: []keyhttp.AuditEntry{
		{Position: 9, RecordedAt: noon, Event: domain.KeyRevoked{Key: domain.KeyID{1}, Organization: acme, Reason: "=HYPERLINK(\"x\")"}, Metadata: actor, Text: "ada revoked it"},
		{Position: 7, RecordedAt: noon, Event: domain.MemberAdded{Organization: acme, User: "bob", Role: "member"}, Metadata: actor, Text: "ada added bob"},
		{Position: 3, RecordedAt: noon, Event: domain.KeyCreated{Key: domain.KeyID{1}, Organization: acme, Name: "CI, \"main\""}, Metadata: actor, Text: "ada created it"},
	}}
}

func TestTheAuditLogIsReadPageByPage(t *testing.T) {
	t.Parallel()
	p := newPast()
	s := start(t, func(o *keyhttp.Options) { o.Audit = p })
	key := s.key(acme, "audit:read")
	path := "/api/v1/organizations/" + string(acme) + "/audit-log?limit=2"
	var positions []uint64
	for range 3 {
		status, header, body := s.fetch(path, key)
		var page struct {
			Events []struct {
				Position uint64
				Type     string
				Actor    struct{ Kind, User string }
				Source   string
			}
			HasMore    bool
			NextCursor *string
		}
		if err := json.Unmarshal(body, &page); err != nil || status != 200 {
			t.Fatalf("%d %s (%v)", status, body, err)
		}
		for _, e := range page.Events {
			positions = append(positions, e.Position)
			if e.Actor.User != "ada" || e.Source != "192.0.2.1" {
				t.Errorf("the entry is %+v", e)
			}
		}
		if page.HasMore != (page.NextCursor != nil) || page.HasMore != (header.Get("Link") != "") {
			t.Errorf("the next page is told in several ways: %s, %s", body, header.Get("Link"))
		}
		if !page.HasMore {
			break
		}
		path = "/api/v1/organizations/" + string(acme) + "/audit-log?limit=2&cursor=" + *page.NextCursor
	}
	if len(positions) != 3 || positions[0] != 9 || positions[2] != 3 {
		t.Errorf("the pages hold %v", positions)
	}
}

func TestTheAuditLogIsAlsoATable(t *testing.T) {
	t.Parallel()
	s := start(t, func(o *keyhttp.Options) { o.Audit = newPast() })
	key := s.key(acme, domain.ScopeAll)
	path := "/api/v1/organizations/" + string(acme) + "/audit-log?format="
	_, header, body := s.fetch(path+"csv", key)
	rows, err := csv.NewReader(strings.NewReader(string(body))).ReadAll()
	if err != nil || len(rows) != 4 || !strings.HasPrefix(header.Get("Content-Type"), "text/csv") {
		t.Fatalf("%s (%v)", body, err)
	}
	if rows[1][7] != "'=HYPERLINK(\"x\")" || rows[3][4] != `CI, "main"` {
		t.Errorf("the table is %v", rows)
	}
	_, _, body = s.fetch(path+"ndjson", key)
	for _, line := range strings.Split(strings.TrimSpace(string(body)), "\n") {
		if !json.Valid([]byte(line)) {
			t.Errorf("%s is no JSON", line)
		}
	}
}

func TestTheAuditLogIsForThoseWhoMayReadIt(t *testing.T) {
	t.Parallel()
	p := newPast()
	s := start(t, func(o *keyhttp.Options) { o.Audit = p })
	path := "/api/v1/organizations/" + string(acme) + "/audit-log"
	for name, try := range map[string]struct {
		key    string
		status int
	}{
		"nobody":                 {"", 401},
		"a key that may read":    {s.key(acme, domain.ScopeRead), 403},
		"an admin's":             {s.key(acme, domain.ScopeAdmin), 403},
		"another organization's": {s.key(other, "audit:read"), 403},
		"one for it":             {s.key(acme, "audit:read"), 200},
	} {
		if status, _, body := s.fetch(path, try.key); status != try.status {
			t.Errorf("%s: %d %s", name, status, body)
		}
	}
	key := s.key(acme, "audit:read")
	status, _, _ := s.fetch(path+"?types=KeyCreated,KeyRevoked&since=2026-01-01T00:00:00Z&until=2026-02-01T00:00:00Z&key="+domain.KeyID{1}.String(), key)
	if q := p.asked; status != 200 || len(q.Types) != 2 || q.Since.IsZero() || q.Until.IsZero() || q.Key != (domain.KeyID{1}) || q.Organization != acme {
		t.Errorf("it was asked %+v", q)
	}
	for _, bad := range []string{"limit=0", "limit=1001", "limit=x", "cursor=x", "cursor=3:usage:7", "cursor=4:lifecycle:7", "types=KeyUsed", "since=now", "key=x", "format=xml", "limit=1&limit=2"} {
		if status, _, body := s.fetch(path+"?"+bad, key); status != 400 {
			t.Errorf("%s: %d %s", bad, status, body)
		}
	}
}

func TestListsShowThePast(t *testing.T) {
	t.Parallel()
	p := newPast()
	for i := range 3 {
		p.keys = append(p.keys, domain.Key{ID: domain.KeyID{byte(3 - i)}, Organization: acme, Name: "then", ExpiresAt: noon.Add(-time.Minute), Scopes: domain.Scopes{"read"}})
	}
	s := start(t, func(o *keyhttp.Options) { o.Audit = p })
	key := s.key(acme, domain.ScopeRead)
	status, _, body := s.fetch("/api/v1/organization/"+string(acme)+"/api-keys?at=17", key)
	if status != 200 || strings.Count(string(body), `"name":"then"`) != 3 || p.at != "17" {
		t.Errorf("%d %s", status, body)
	}
	// What has expired since was active then.
	_, header, body := s.fetch("/api/v1/organizations/"+string(acme)+"/api-keys?at=1h&limit=2", key)
	if strings.Count(string(body), `"isActive":true`) != 2 || !strings.Contains(header.Get("Link"), "at=1h") {
		t.Errorf("%s, %s", body, header.Get("Link"))
	}
	single := "/api/v1/organizations/" + string(acme) + "/api-keys/" + domain.KeyID{2}.String()
	if status, _, body := s.fetch(single+"?at=1h", key); status != 200 || !strings.Contains(string(body), `"name":"then"`) || !strings.Contains(string(body), `"isActive":true`) {
		t.Errorf("one key is %d %s", status, body)
	}
	for path, want := range map[string]int{single: 404, single + "?at=yesterday": 400, single + "?at=": 400, strings.Replace(single, domain.KeyID{2}.String(), domain.KeyID{9}.String(), 1) + "?at=1h": 404} {
		if status, _, _ := s.fetch(path, key); status != want {
			t.Errorf("%s is answered with %d", path, status)
		}
	}
	if status, _, _ := s.fetch("/api/v1/organization/"+string(acme)+"/api-keys?at=yesterday", key); status != 400 {
		t.Errorf("no moment is answered with %d", status)
	}
	if _, _, body := s.fetch("/api/v1/organization/"+string(acme)+"/api-keys", key); strings.Contains(string(body), "then") {
		t.Errorf("the present is %s", body)
	}
}
