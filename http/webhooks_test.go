package http_test

import (
	"slices"
	"strings"
	"testing"

	"keyledger/domain"
	"keyledger/eventstore"
	keyhttp "keyledger/http"
	"keyledger/internal/testkit"
	"keyledger/projections"
	"keyledger/projections/organizations"
	"keyledger/publisher"
	"keyledger/webhooks"
)

const hooksPath = "/api/v1/organizations/" + string(acme) + "/webhooks"

// startWebhooks is a server with real webhooks that deliver nothing.
func startWebhooks(t *testing.T) *site {
	t.Helper()
	pool, err := eventstore.Connect(t.Context(), testkit.Database(t).URL, eventstore.ConnectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	store, err := eventstore.Open(t.Context(), eventstore.Options{Pool: pool, MasterKey: make([]byte, 32)})
	if err != nil {
		t.Fatal(err)
	}
	places := projections.NewFollower(store, organizations.New(pool), projections.FollowerOptions{})
	feed := publisher.NewFeed(struct {
		*eventstore.Store
		*organizations.Reader
	}{store, organizations.NewReader(pool, store, places)}, nil)
	hooks, err := webhooks.New(webhooks.Options{Pool: pool, Feed: feed, Key: make([]byte, 32)})
	if err != nil {
		t.Fatal(err)
	}
	return start(t, func(o *keyhttp.Options) { o.Webhooks = hooks })
}

type webhookAnswer struct {
	Webhook struct {
		ID, URL, Description         string
		Types                        []string
		Enabled                      bool
		DisabledReason               *string
		Position                     uint64
		CreatedAt, FormerSecretUntil *string
		FailingSince, NextAttemptAt  *string
		FailedAttempts               int
		LastError, DisabledAt        *string
	}
	Secret string
}

func TestAWebhookIsMadeShownChangedAndRemoved(t *testing.T) {
	t.Parallel()
	s := startWebhooks(t)
	key := "X-API-Key: " + s.key(acme, "admin")
	first := s.ask("POST", hooksPath, key, `{"url":"https://hooks.example.com/a?b=c","description":"Zoë's","types":["keyledger.key.revoked","keyledger.key.created","keyledger.key.revoked"]}`)
	made := decode[webhookAnswer](t, first.body)
	w := made.Webhook
	if first.status != 201 || !strings.HasPrefix(made.Secret, "whsec_") || !w.Enabled || w.URL != "https://hooks.example.com/a?b=c" || w.Description != "Zoë's" ||
		!slices.Equal(w.Types, []string{"keyledger.key.created", "keyledger.key.revoked"}) || w.CreatedAt == nil || w.DisabledReason != nil || w.LastError != nil {
		t.Fatalf("got %d %s", first.status, first.body)
	}
	one := hooksPath + "/" + w.ID
	first.has(t, "Location", one).has(t, "Cache-Control", "no-store")
	for _, path := range []string{one, hooksPath} {
		if a := s.ask("GET", path, key); a.status != 200 || !strings.Contains(a.body, `"id":"`+w.ID+`"`) || strings.Contains(a.body, "whsec") {
			t.Errorf("got %d %s", a.status, a.body)
		}
	}
	changed := decode[webhookAnswer](t, s.ask("PATCH", one, key, `{"types":[],"enabled":false,"url":null}`).body).Webhook
	if changed.Enabled || len(changed.Types) != 0 || changed.DisabledReason == nil || changed.URL != w.URL || changed.Description != w.Description {
		t.Errorf("got %+v", changed)
	}
	rotated := decode[webhookAnswer](t, s.ask("POST", one+"/rotate", key).body)
	if rotated.Secret == made.Secret || !strings.HasPrefix(rotated.Secret, "whsec_") || rotated.Webhook.FormerSecretUntil == nil {
		t.Errorf("got %+v", rotated)
	}
	if a := s.ask("POST", one+"/replay", key, `{"after":"3:lifecycle:0"}`); a.status != 200 {
		t.Errorf("got %d %s", a.status, a.body)
	}
	s.ask("GET", one+"/dead-letters", key).is(t, 200, `{"deadLetters":[]}`)
	s.ask("DELETE", one, key).is(t, 204, "")
	if a := s.ask("DELETE", one, key); a.status != 404 {
		t.Errorf("got %d %s", a.status, a.body)
	}
	if log := s.log.String(); strings.Contains(log, "whsec") || strings.Contains(log, "hooks.example.com") || !strings.Contains(log, `"a webhook was removed"`) {
		t.Errorf("the log says %s", log)
	}
}

func TestWebhooksAreForThoseWhoAdminister(t *testing.T) {
	t.Parallel()
	s := startWebhooks(t)
	for name, try := range map[string]struct {
		key    string
		status int
	}{
		"admin":                 {s.key(acme, "admin"), 200},
		"everything":            {s.key(acme, "*"), 200},
		"reading and writing":   {s.key(acme, "read", "write", "events:read"), 403},
		"another organization":  {s.key(other, "*"), 403},
		"a key of the service":  {s.key(domain.SystemOrganization, domain.ScopeSystemEvents), 403},
		"a key that is unknown": {canary, 401},
	} {
		if a := s.ask("GET", hooksPath, "X-API-Key: "+try.key); a.status != try.status {
			t.Errorf("%s: got %d %s", name, a.status, a.body)
		}
	}
}

func TestBadWebhooksNameTheirField(t *testing.T) {
	t.Parallel()
	s := startWebhooks(t)
	key := "X-API-Key: " + s.key(acme, "admin")
	one := hooksPath + "/" + decode[webhookAnswer](t, s.ask("POST", hooksPath, key, `{"url":"https://example.com"}`).body).Webhook.ID
	for _, try := range []struct {
		method, path, body string
		status             int
		field              string
	}{
		{"POST", hooksPath, `{}`, 400, "url"},
		{"POST", hooksPath, `{"url":"http://example.com"}`, 400, "url"},
		{"POST", hooksPath, `{"url":"https://u:` + canary + `@example.com"}`, 400, "url"},
		{"POST", hooksPath, `{"url":7}`, 400, "url"},
		{"POST", hooksPath, `{"url":"https://example.com","types":["` + canary + `"]}`, 400, "types"},
		{"POST", hooksPath, `{"url":"https://example.com","types":"x"}`, 400, "types"},
		{"POST", hooksPath, `{"url":"https://example.com","description":"` + strings.Repeat("x", 201) + `"}`, 400, "description"},
		{"POST", hooksPath, `{"url":"https://example.com","enabled":"yes"}`, 400, "enabled"},
		{"PATCH", one, `{"url":"ftp://example.com"}`, 400, "url"},
		{"POST", one + "/rotate", `{"overlapSeconds":-1}`, 400, "overlapSeconds"},
		{"POST", one + "/rotate", `{"overlapSeconds":99999999}`, 400, "overlapSeconds"},
		{"POST", one + "/replay", `{}`, 400, "after"},
		{"POST", one + "/replay", `{"after":-1}`, 400, "after"},
		{"POST", one + "/replay", `{"after":1.5}`, 400, "after"},
		{"POST", one + "/replay", `{"after":1000}`, 400, "after"},
		{"POST", one + "/replay", `{"after":"2:lifecycle:0"}`, 409, "after"},
		{"POST", one + "/dead-letters/7/redeliver", ``, 404, ""},
		{"POST", one + "/dead-letters/x/redeliver", ``, 404, ""},
		{"GET", one + "/dead-letters?limit=0", ``, 400, "limit"},
		{"GET", one + "/dead-letters?before=x", ``, 400, "before"},
		{"GET", hooksPath + "/nonsense", ``, 404, ""},
		{"GET", hooksPath + "/wh_01KF09MFG0FAN8QER1081G8186", ``, 404, ""},
	} {
		rest := []string{key}
		if try.body != "" {
			rest = append(rest, try.body)
		}
		a := s.ask(try.method, try.path, rest...)
		if a.status != try.status || try.field != "" && !strings.Contains(a.body, `"field":"`+try.field+`"`) || strings.Contains(a.body, canary) {
			t.Errorf("%s %s %s: got %d %s", try.method, try.path, try.body, a.status, a.body)
		}
	}
}
