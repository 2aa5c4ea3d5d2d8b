package http_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"keyledger/domain"
	keyhttp "keyledger/http"
)

// counts is what a test says that was used.
type counts struct {
	counts []domain.UsageCount
	err    error
	asked  string
}

func (c *counts) Counts(_ context.Context, key domain.KeyID, from, to time.Time, daily bool) ([]domain.UsageCount, error) {
	c.asked = fmt.Sprint(key, " ", from.Format(time.RFC3339), " ", to.Format(time.RFC3339), " ", daily)
	return c.counts, c.err
}

func TestUsesAreShownPerIntervalAndOutcome(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 1, 15, 8, 0, 0, 0, time.UTC)
	used := &counts{counts: []domain.UsageCount{
		{Start: at, Outcome: domain.OutcomeValid, Count: 41},
		{Start: at, Outcome: domain.OutcomeRateLimited, Count: 2},
		{Start: at.Add(2 * time.Hour), Outcome: domain.OutcomeValid, Count: 1},
	}}
	s := start(t, func(o *keyhttp.Options) { o.Usage = used })
	s.addMember(acme, "user_1", "member")
	reader := s.key(acme, "read")
	id := s.keyID(s.key(acme, "write"))
	path := "/api/v1/organizations/org_abc123/keys/" + id.String() + "/usage"
	want := `{"keyId":"` + id.String() + `","organizationId":"org_abc123","interval":"hour","from":"2026-01-15T08:00:00Z","to":"2026-01-15T11:00:00Z",` +
		`"total":{"accepted":42,"refused":2,"outcomes":{"VALID":42,"RATE_LIMITED":2}},"intervals":[` +
		`{"start":"2026-01-15T08:00:00Z","uses":{"accepted":41,"refused":2,"outcomes":{"VALID":41,"RATE_LIMITED":2}}},` +
		`{"start":"2026-01-15T09:00:00Z","uses":{"accepted":0,"refused":0,"outcomes":{}}},` +
		`{"start":"2026-01-15T10:00:00Z","uses":{"accepted":1,"refused":0,"outcomes":{"VALID":1}}}]}`
	for _, credential := range []string{"X-API-Key: " + reader, "Authorization: Bearer " + userToken(t, "user_1", nil)} {
		s.ask("GET", path+"?from=2026-01-15T09:59:59%2B01:00&to=2026-01-15T10:00:01Z&interval=hour", credential).is(t, 200, want).
			has(t, "Content-Type", "application/json").has(t, "Cache-Control", "no-store")
	}
	s.ask("GET", strings.Replace(path, id.String(), id.UUID(), 1)+"?from=2026-01-15T08:00:00Z&to=2026-01-15T11:00:00Z", "X-API-Key: "+reader).is(t, 200, want)

	for query, asked := range map[string]string{
		"":                               "2026-01-14T11:00:00Z 2026-01-15T11:00:00Z false",
		"?interval=day":                  "2025-12-17T00:00:00Z 2026-01-16T00:00:00Z true",
		"?interval=day&from=2026-01-01":  "2026-01-01T00:00:00Z 2026-01-16T00:00:00Z true",
		"?from=2025-12-15T11:00:00Z":     "2025-12-15T11:00:00Z 2026-01-15T11:00:00Z false",
		"?interval=day&to=2026-01-15":    "2025-12-16T00:00:00Z 2026-01-15T00:00:00Z true",
		"?to=2026-01-15&from=2026-01-14": "2026-01-14T00:00:00Z 2026-01-15T00:00:00Z false",
	} {
		if a := s.ask("GET", path+query, "X-API-Key: "+reader); a.status != 200 || used.asked != id.String()+" "+asked {
			t.Errorf("%s: got %d, asked %s, not %s", query, a.status, used.asked, asked)
		}
	}
}

func TestUsageErrors(t *testing.T) {
	t.Parallel()
	used := &counts{}
	s := start(t, func(o *keyhttp.Options) { o.Usage = used })
	reader, writer, foreign := s.key(acme, "read"), s.key(acme, "write"), s.key(other, "admin")
	own, theirs := s.keyID(reader).String(), s.keyID(foreign).String()
	for _, test := range []struct {
		name, organization, key, query, credential string
		status                                     int
		body                                       string
	}{
		{"no credential", "org_abc123", own, "", "X-Nothing: 1", 401, problem(401, "Unauthorized", "Missing or invalid authorization header", "unauthenticated", "")},
		{"no scope", "org_abc123", own, "", "X-API-Key: " + writer, 403, problem(403, "Forbidden", "The API key lacks the scope read", "forbidden", "")},
		{"another organization", "org_other", theirs, "", "X-API-Key: " + reader, 403, problem(403, "Forbidden", "Not a member of this organization", "forbidden", "")},
		{"another organization's key", "org_abc123", theirs, "", "X-API-Key: " + reader, 404, problem(404, "Not Found", "no such key", "not_found", "")},
		{"no key's id", "org_abc123", "x", "", "X-API-Key: " + reader, 404, problem(404, "Not Found", "no such key", "not_found", "")},
		{"an interval", "org_abc123", own, "?interval=week", "X-API-Key: " + reader, 400, badRequest("interval must be hour or day", "invalid", "interval")},
		{"an empty interval", "org_abc123", own, "?interval=", "X-API-Key: " + reader, 400, badRequest("interval must be hour or day", "invalid", "interval")},
		{"no time", "org_abc123", own, "?to=soon", "X-API-Key: " + reader, 400, badRequest("to must be an RFC 3339 time with a zone", "invalid", "to")},
		{"no zone", "org_abc123", own, "?from=2026-01-15T10:00:00", "X-API-Key: " + reader, 400, badRequest("from must be an RFC 3339 time with a zone", "invalid", "from")},
		{"two times", "org_abc123", own, "?from=2026-01-15&from=2026-01-15", "X-API-Key: " + reader, 400, badRequest("from must be given once", "invalid", "from")},
		{"backwards", "org_abc123", own, "?from=2026-01-15&to=2026-01-15", "X-API-Key: " + reader, 400, badRequest("from must be before to", "invalid", "from")},
		{"too many hours", "org_abc123", own, "?from=2025-12-15T10:59:59Z", "X-API-Key: " + reader, 400, badRequest("from must be at most 744 intervals before to", "invalid", "from")},
		{"too many days", "org_abc123", own, "?from=2025-01-14&interval=day", "X-API-Key: " + reader, 400, badRequest("from must be at most 366 intervals before to", "invalid", "from")},
		{"for ever", "org_abc123", own, "?from=0001-01-01&interval=day", "X-API-Key: " + reader, 400, badRequest("from must be at most 366 intervals before to", "invalid", "from")},
	} {
		t.Run(test.name, func(t *testing.T) {
			s.ask("GET", "/api/v1/organizations/"+test.organization+"/keys/"+test.key+"/usage"+test.query, test.credential).
				is(t, test.status, test.body).has(t, "Content-Type", "application/problem+json")
		})
	}
	used.err = errPostgresAway
	s.ask("GET", "/api/v1/organizations/org_abc123/keys/"+own+"/usage", "X-API-Key: "+reader).
		is(t, 503, problem(503, "Service Unavailable", "the ledger cannot be reached, try again", "unavailable", "")).has(t, "Retry-After", "1")
}
