package httpauth_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"keyledger/client"
	"keyledger/client/httpauth"
	"keyledger/internal/servertest"
	"keyledger/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// checker answers as a key says.
type checker func(ctx context.Context, q client.Question) (client.Verdict, error)

func (c checker) Verify(ctx context.Context, q client.Question) (client.Verdict, error) {
	return c(ctx, q)
}

var reset = time.Now().Add(time.Hour)

func verdicts(ctx context.Context, q client.Question) (client.Verdict, error) {
	v := client.Verdict{Code: client.Code(q.Key), OrganizationID: "org_abc123", KeyID: client.KeyID{1}, Scopes: client.Scopes{"orders:*"}, RateLimit: client.RateLimit{Limit: 9, Remaining: 3, Reset: reset}}
	switch q.Key {
	case "good":
		v.Valid, v.Code = true, client.Valid
	case "unlimited":
		v.Valid, v.Code, v.RateLimit = true, client.Valid, client.RateLimit{}
	case "contradiction":
		v.Valid, v.Code = true, client.Revoked
	case "away":
		return client.Verdict{}, &client.Error{Code: "unavailable"}
	case "misconfigured": // our own credential is not good
		return client.Verdict{Valid: true, Code: client.Valid}, &client.Error{Status: 401, Code: "unauthenticated"}
	case "slow":
		<-ctx.Done()
		return client.Verdict{}, ctx.Err()
	case "NOT_FOUND":
		v = client.Verdict{Code: client.NotFound}
	}
	return v, nil
}

var orders = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	v, ok := httpauth.FromContext(r.Context())
	_, _ = fmt.Fprintf(w, "%v %s", ok, v.OrganizationID)
})

// answer is what came back.
type answer struct {
	status int
	header http.Header
	body   string
}

func ask(handler http.Handler, header ...string) answer {
	r := httptest.NewRequest(http.MethodGet, "/orders", nil)
	for _, line := range header {
		name, value, _ := strings.Cut(line, ": ")
		r.Header.Add(name, value)
	}
	w := httptest.NewRecorder()
	handler.ServeHTTP(w, r)
	return answer{w.Code, w.Header(), w.Body.String()}
}

func TestOnlyAValidKeyReachesAHandler(t *testing.T) {
	t.Parallel()
	handler := httpauth.Middleware(checker(verdicts), httpauth.Options{Timeout: 10 * time.Millisecond})(orders)
	for _, c := range []struct {
		header []string
		status int
		code   string
	}{
		{[]string{"X-API-Key: good"}, 200, ""},
		{[]string{"Authorization: Bearer good"}, 200, ""},
		{[]string{"Authorization: bearer   good"}, 200, ""},
		{[]string{"X-API-Key: good", "X-API-Key: good", "Authorization: Bearer good"}, 200, ""},
		{[]string{"X-API-Key: unlimited"}, 200, ""},
		{[]string{"X-API-Key: good", "Authorization: Bearer other"}, 400, "invalid"},
		{[]string{"X-API-Key: good", "X-API-Key: other"}, 400, "invalid"},
		{[]string{"Authorization: Bearer good", "Authorization: Bearer other"}, 400, "invalid"},
		{[]string{"X-API-Key: good", "Authorization: Basic Z29vZA=="}, 400, "invalid"},
		{nil, 401, "unauthenticated"},
		{[]string{"X-API-Key: "}, 401, "unauthenticated"},
		{[]string{"Authorization: good"}, 401, "unauthenticated"},
		{[]string{"Authorization: Bearer "}, 401, "unauthenticated"},
		{[]string{"Authorization: Basic Z29vZA=="}, 401, "unauthenticated"},
		{[]string{"X-API-Key: NOT_FOUND"}, 401, "unauthenticated"},
		{[]string{"X-API-Key: REVOKED"}, 401, "unauthenticated"},
		{[]string{"X-API-Key: EXPIRED"}, 401, "unauthenticated"},
		{[]string{"X-API-Key: DISABLED"}, 401, "unauthenticated"},
		{[]string{"X-API-Key: OF_A_LATER_VERSION"}, 401, "unauthenticated"},
		{[]string{"X-API-Key: contradiction"}, 401, "unauthenticated"},
		{[]string{"X-API-Key: INSUFFICIENT_SCOPE"}, 403, "forbidden"},
		{[]string{"X-API-Key: RATE_LIMITED"}, 429, "rate_limited"},
		{[]string{"X-API-Key: away"}, 503, "unavailable"},
		{[]string{"X-API-Key: misconfigured"}, 503, "unavailable"},
		{[]string{"X-API-Key: slow"}, 503, "unavailable"},
	} {
		a := ask(handler, c.header...)
		h, body := a.header, a.body
		if a.status != c.status {
			t.Errorf("%v: got %d %s, not %d", c.header, a.status, body, c.status)
			continue
		}
		if c.status == 200 {
			if body != "true org_abc123" {
				t.Errorf("%v: the handler saw %s", c.header, body)
			}
			if limited := h.Get("X-RateLimit-Limit") == "9" && h.Get("X-RateLimit-Remaining") == "3" && h.Get("X-RateLimit-Reset") != ""; limited == strings.Contains(c.header[0], "unlimited") {
				t.Errorf("%v: the headers are %v", c.header, h)
			}
			continue
		}
		if !strings.Contains(body, fmt.Sprintf(`"code":%q`, c.code)) || h.Get("Content-Type") != "application/problem+json" ||
			(h.Get("WWW-Authenticate") != "") != (c.status == 401) || (h.Get("Retry-After") != "") != (c.status == 429 || c.status == 503) {
			t.Errorf("%v: got %v %s", c.header, h, body)
		}
		if c.status == 429 && h.Get("Retry-After") == "1" {
			t.Errorf("it may come back after %s s", h.Get("Retry-After"))
		}
	}
}

func TestAGuardDeniesByDefault(t *testing.T) {
	t.Parallel()
	verified := httpauth.Middleware(checker(verdicts), httpauth.Options{})
	for _, c := range []struct {
		name    string
		handler http.Handler
		status  int
	}{
		{"a scope that is implied", verified(httpauth.Require("orders:read")(orders)), 200},
		{"a scope that is not there", verified(httpauth.Require("invoices:read")(orders)), 403},
		{"one of two", verified(httpauth.Require("orders:read", "admin")(orders)), 403},
		{"nothing has verified", httpauth.Require("orders:read")(orders), 500},
		{"the wrong way round", httpauth.Require("orders:read")(verified(orders)), 500},
	} {
		if a := ask(c.handler, "X-API-Key: good"); a.status != c.status {
			t.Errorf("%s: got %d", c.name, a.status)
		}
	}
	if _, ok := httpauth.FromContext(t.Context()); ok {
		t.Error("a verdict comes from nowhere")
	}
	defer func() {
		if recover() == nil {
			t.Error("a mistake in a scope is not noticed")
		}
	}()
	httpauth.Require("orders read")
}

func TestAServiceMayRefuseInItsOwnWay(t *testing.T) {
	t.Parallel()
	teapot := func(w http.ResponseWriter, _ *http.Request, refusal *client.Refusal) {
		w.WriteHeader(http.StatusTeapot)
		_, _ = io.WriteString(w, refusal.Code)
	}
	handler := httpauth.Middleware(checker(verdicts), httpauth.Options{Refuse: teapot})(httpauth.RequireOr(teapot, "admin")(orders))
	for _, key := range []string{"good", "REVOKED", "away"} {
		if a := ask(handler, "X-API-Key: "+key); a.status != 418 {
			t.Errorf("%s: got %d", key, a.status)
		}
	}
}

func TestOverARealServer(t *testing.T) {
	t.Parallel()
	// A lease that does not end because the machine is busy.
	server := servertest.Start(t, servertest.Options{Env: []string{"KEYLEDGER_LEASE=10s"}})
	admin := connect(t, server.URL(), server.Bootstrap("org_abc123"))
	embedded, err := client.NewVerifier(client.VerifierOptions{URL: server.URL(), Key: server.BootstrapKey("--system").Key, HTTPClient: &http.Client{Transport: transport(t)}})
	if err != nil {
		t.Fatal(err)
	}
	ran := make(chan error, 1)
	go func() { ran <- embedded.Run(context.WithoutCancel(t.Context())) }()
	defer func() {
		embedded.Close()
		<-ran
	}()
	if err := embedded.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	checkers := map[string]client.Checker{"a server": connect(t, server.URL(), ""), "an embedded verifier": embedded}
	for name, c := range checkers {
		made, err := admin.CreateKey(t.Context(), "org_abc123", client.NewKey{Name: "n", Scopes: client.Scopes{"orders:read"}, RateLimit: 2})
		if err != nil {
			t.Fatal(err)
		}
		position := made.Position
		handler := httpauth.Middleware(c, httpauth.Options{Organization: "org_abc123"})(httpauth.Require("orders:read")(orders))
		elsewhere := httpauth.Middleware(c, httpauth.Options{Organization: "org_other"})(orders)
		key := "X-API-Key: " + made.Secret.Reveal()
		ask := func(handler http.Handler) answer {
			return ask(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				handler.ServeHTTP(w, r.WithContext(client.WithMinPosition(r.Context(), position)))
			}), key)
		}
		for i, want := range []int{200, 200, 429} {
			if a := ask(handler); a.status != want || a.header.Get("X-RateLimit-Limit") != "2" {
				t.Errorf("%s: request %d: got %d %v", name, i, a.status, a.header)
			}
		}
		if a := ask(elsewhere); a.status != 401 {
			t.Errorf("%s: got %d", name, a.status)
		}
		if _, err := admin.RevokeKey(t.Context(), "org_abc123", made.ID, ""); err != nil {
			t.Fatal(err)
		}
		if a := ask(handler); a.status != 401 {
			t.Errorf("%s: got %d", name, a.status)
		}
	}
	// Nothing of ours is there any more.
	embedded.Close()
	server.Stop()
	for name, c := range checkers {
		handler := httpauth.Middleware(c, httpauth.Options{})(orders)
		for late := time.After(time.Minute); ; {
			a := ask(handler, "X-API-Key: bsk_live_00000000000000000000000000000000")
			if a.status == 503 {
				break
			}
			select {
			case <-late:
				t.Fatalf("%s: got %d", name, a.status)
			case <-time.After(10 * time.Millisecond):
			}
		}
	}
}

func transport(t *testing.T) *http.Transport {
	t.Helper()
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	return transport
}

func connect(t *testing.T, url, credential string) *client.Client {
	t.Helper()
	c, err := client.New(url, credential, client.WithHTTPClient(&http.Client{Transport: transport(t)}), client.WithAttempts(1))
	if err != nil {
		t.Fatal(err)
	}
	return c
}
