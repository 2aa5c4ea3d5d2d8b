package main_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"

	"keyledger/internal/servertest"
)

// An organization is called when one of its keys is revoked.
func TestARevocationIsSentToAWebhook(t *testing.T) {
	t.Parallel()
	type call struct {
		header http.Header
		body   []byte
	}
	calls := make(chan call, 100)
	receiver := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		calls <- call{r.Header, body}
	}))
	t.Cleanup(receiver.Close)
	server := servertest.Start(t, servertest.Options{Args: []string{"--webhook-insecure"}})
	admin := server.Bootstrap("org_abc123")
	ask := func(method, path, body string) string {
		t.Helper()
		request, err := http.NewRequestWithContext(t.Context(), method, server.URL()+"/api/v1/organizations/org_abc123/"+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("X-API-Key", admin)
		request.Header.Set("Content-Type", "application/json")
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = response.Body.Close() }()
		answer, err := io.ReadAll(response.Body)
		if err != nil || response.StatusCode/100 != 2 {
			t.Fatalf("%s %s: %d %s (%v)", method, path, response.StatusCode, answer, err)
		}
		return string(answer)
	}
	var hook struct{ Secret string }
	if err := json.Unmarshal([]byte(ask("POST", "webhooks", `{"url":"`+receiver.URL+`","types":["keyledger.key.revoked"]}`)), &hook); err != nil {
		t.Fatal(err)
	}
	key := server.BootstrapKey("--organization", "org_abc123")
	ask("DELETE", "api-keys/"+key.ID, "")
	got := <-calls
	secret, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(hook.Secret, "whsec_"))
	if err != nil {
		t.Fatal(err)
	}
	mac := hmac.New(sha256.New, secret)
	fmt.Fprintf(mac, "%s.%s.%s", got.header.Get("webhook-id"), got.header.Get("webhook-timestamp"), got.body)
	if got.header.Get("webhook-signature") != "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)) {
		t.Errorf("it is not signed: %v", got.header)
	}
	var event struct{ Type, Subject, ID string }
	if err := json.Unmarshal(got.body, &event); err != nil || event.Type != "keyledger.key.revoked" || event.Subject != key.ID || event.ID != got.header.Get("webhook-id") {
		t.Errorf("got %s (%v)", got.body, err)
	}
}

// A server that is killed in the middle of a delivery comes back and delivers again, under the
// same id, and what follows after it.
func TestAKilledServerDeliversAgain(t *testing.T) {
	t.Parallel()
	ids, release := make(chan string, 100), make(chan struct{})
	var hung atomic.Bool
	receiver := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		hang := hung.CompareAndSwap(false, true)
		ids <- r.Header.Get("webhook-id")
		if hang {
			<-release
		}
	}))
	t.Cleanup(receiver.Close)
	t.Cleanup(func() { close(release) })
	options := servertest.Options{Args: []string{"--webhook-insecure"}}
	server := servertest.Start(t, options)
	admin := server.Bootstrap("org_abc123")
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL()+"/api/v1/organizations/org_abc123/webhooks", strings.NewReader(`{"url":"`+receiver.URL+`"}`))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("X-API-Key", admin)
	request.Header.Set("Content-Type", "application/json")
	response, err := http.DefaultClient.Do(request)
	if err != nil || response.StatusCode != http.StatusCreated {
		t.Fatalf("%v %v", response, err)
	}
	_ = response.Body.Close()
	server.Bootstrap("org_abc123", "--name", "one")
	interrupted := <-ids
	server.Kill()

	options.DataDir = server.DataDir()
	server = servertest.Start(t, options)
	conn, err := pgx.Connect(t.Context(), server.Endpoints().DatabaseAdmin)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	if _, err := conn.Exec(t.Context(), `UPDATE webhooks SET due_at = now()`); err != nil { // as if the claim had run out
		t.Fatal(err)
	}
	if again := <-ids; again != interrupted {
		t.Errorf("%s is delivered after %s was interrupted", again, interrupted)
	}
	server.Bootstrap("org_abc123", "--name", "two")
	if next := <-ids; next == interrupted {
		t.Error("it is delivered once more")
	}
}
