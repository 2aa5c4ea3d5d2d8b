package main

import (
	"io"
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
	app := service(checker)
	key, err := admin.CreateKey(t.Context(), "org_abc123", client.NewKey{Name: "writer", Scopes: client.Scopes{"orders:write"}})
	if err != nil {
		t.Fatal(err)
	}
	ask := func(method, key string, status int, body string) {
		t.Helper()
		r := httptest.NewRequest(method, "/orders", nil)
		r.Header.Set("X-API-Key", key)
		response, err := app.Test(r, -1)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = response.Body.Close() }()
		got, err := io.ReadAll(response.Body)
		if err != nil || response.StatusCode != status || !strings.Contains(string(got), body) {
			t.Errorf("%s: got %d %s", method, response.StatusCode, got)
		}
	}
	ask("POST", key.Secret.Reveal(), 201, "an order of org_abc123, placed with "+key.ID.String())
	ask("GET", key.Secret.Reveal(), 403, `"code":"forbidden"`)
	ask("POST", "bsk_live_00000000000000000000000000000000", 401, `"code":"unauthenticated"`)
}
