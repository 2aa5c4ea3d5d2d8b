package main

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"keyledger/client"
	"keyledger/internal/servertest"
	"keyledger/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

func TestTheServiceAsksForKeysAndScopes(t *testing.T) {
	t.Parallel()
	server := servertest.Start(t, servertest.Options{})
	admin, err := client.New(server.URL(), server.Bootstrap("org_abc123"))
	if err != nil {
		t.Fatal(err)
	}
	checker, err := client.New(server.URL(), "")
	if err != nil {
		t.Fatal(err)
	}
	handler := service(checker)
	key, err := admin.CreateKey(t.Context(), "org_abc123", client.NewKey{Name: "reader", Scopes: client.Scopes{"orders:read"}})
	if err != nil {
		t.Fatal(err)
	}
	ask := func(method, key string, status int, body string) {
		t.Helper()
		r := httptest.NewRequest(method, "/orders", nil)
		r.Header.Set("X-API-Key", key)
		w := httptest.NewRecorder()
		if handler.ServeHTTP(w, r); w.Code != status || !strings.Contains(w.Body.String(), body) {
			t.Errorf("%s: got %d %s", method, w.Code, w.Body)
		}
	}
	ask("GET", key.Secret.Reveal(), http.StatusOK, "the orders of org_abc123")
	ask("POST", key.Secret.Reveal(), http.StatusForbidden, `"code":"forbidden"`)
	ask("GET", "", http.StatusUnauthorized, `"code":"unauthenticated"`)
	if _, err := admin.RevokeKey(t.Context(), "org_abc123", key.ID, ""); err != nil {
		t.Fatal(err)
	}
	ask("GET", key.Secret.Reveal(), http.StatusUnauthorized, `"code":"unauthenticated"`)
}
