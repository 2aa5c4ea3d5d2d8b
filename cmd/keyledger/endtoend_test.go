package main_test

import (
	"encoding/json"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"keyledger/internal/servertest"
)

// From an HTTP request to an event in a subscriber's hand, through both dialects.
func TestAKeysLifeReachesBothDialectsAndASubscriber(t *testing.T) {
	t.Parallel()
	server := servertest.Start(t, servertest.Options{})
	admin := server.Bootstrap("org_abc123")
	bullseye := server.URL() + "/api/v1/organization/org_abc123/api-keys"
	bunship := server.URL() + "/api/v1/organizations/org_abc123/api-keys"

	// Bullseye creates.
	got := call(t, http.MethodPost, bullseye, `{"name":"CI/CD Pipeline","scopes":["read","write"]}`, "X-API-Key", admin)
	var created struct {
		APIKey   struct{ ID, Name, KeyPrefix, Status string }
		PlainKey string
	}
	if got.json(t, &created); got.status != http.StatusCreated || created.APIKey.Status != "active" || !strings.HasPrefix(created.PlainKey, created.APIKey.KeyPrefix) {
		t.Fatalf("create answered %d: %s", got.status, got.body)
	}
	if !regexp.MustCompile(`^1:lifecycle:[0-9]+$`).MatchString(got.header.Get("X-Keyledger-Position")) {
		t.Errorf("the position is %q", got.header.Get("X-Keyledger-Position"))
	}
	if got := verdict(t, server.URL(), created.PlainKey); got != "VALID" {
		t.Errorf("the new key is %s", got)
	}

	// BunShip lists it, with a member's token, and shows it under its other id.
	token := strings.TrimSpace(succeed(t, server, "token", "--user", "user_1", "--organization", "org_abc123").Stdout)
	var list struct {
		Success bool
		Data    []struct {
			ID, Name string
			IsActive bool
		}
	}
	got = call(t, http.MethodGet, bunship, "", "Authorization", "Bearer "+token)
	got.json(t, &list)
	if got.status != http.StatusOK || len(list.Data) != 2 || list.Data[0].Name != "CI/CD Pipeline" || !list.Data[0].IsActive {
		t.Fatalf("list answered %d: %s", got.status, got.body)
	}

	// BunShip revokes it, and Bullseye shows it revoked. It is refused at once.
	if got := call(t, http.MethodDelete, bunship+"/"+list.Data[0].ID, "", "Authorization", "Bearer "+token); got.status != http.StatusOK {
		t.Fatalf("revoke answered %d: %s", got.status, got.body)
	}
	if got := verdict(t, server.URL(), created.PlainKey); got != "REVOKED" {
		t.Errorf("the revoked key is %s", got)
	}
	if got := call(t, http.MethodGet, bullseye, "", "X-API-Key", created.PlainKey); got.status != http.StatusUnauthorized {
		t.Errorf("the revoked key is answered with %d: %s", got.status, got.body)
	}
	var keys struct{ APIKeys []struct{ ID, Status string } }
	call(t, http.MethodGet, bullseye, "", "X-API-Key", admin).json(t, &keys)
	if len(keys.APIKeys) != 2 || keys.APIKeys[0].ID != created.APIKey.ID || keys.APIKeys[0].Status != "revoked" {
		t.Errorf("the list is %+v", keys)
	}

	// A subscriber has all of it, in order, and nothing personal or secret.
	want := []string{"keyledger.key.created", "keyledger.key.created", "keyledger.key.revoked"}
	for i, e := range events(t, server.Endpoints().NATS, len(want)) {
		if e.Header.Get("ce-type") != want[i] || number(t, e.Header.Get("ce-position")) != i+1 || !json.Valid(e.Data) {
			t.Errorf("event %d is %v %s", i+1, e.Header, e.Data)
		}
		if text := string(e.Data); strings.Contains(text, "CI/CD") || strings.Contains(text, "user_1") || strings.Contains(text, created.PlainKey) {
			t.Errorf("event %d shows too much: %s", i+1, text)
		}
		if i == 2 && e.Subject != "keyledger.lifecycle.org_abc123."+list.Data[0].ID+".revoked" {
			t.Errorf("the revocation's subject is %s", e.Subject)
		}
	}

	for _, path := range []string{"/livez", "/readyz", "/healthz", "/version", "/metrics"} {
		if got := call(t, http.MethodGet, server.URL()+path, ""); got.status != http.StatusOK {
			t.Errorf("%s answered %d: %s", path, got.status, got.body)
		}
	}
	metrics := call(t, http.MethodGet, server.URL()+"/metrics", "").body
	for _, name := range []string{"go_goroutines", "process_resident_memory_bytes", "keyledger_log_position", "keyledger_append_batch_commands", "keyledger_relay_lag_positions"} {
		if !strings.Contains(metrics, "\n"+name) {
			t.Errorf("/metrics lacks %s", name)
		}
	}
}
