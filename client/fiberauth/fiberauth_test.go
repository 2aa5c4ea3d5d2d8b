package fiberauth_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gofiber/fiber/v2"

	"keyledger/client"
	"keyledger/client/fiberauth"
)

// checker answers as a key says, and keeps what it was asked.
type checker struct {
	mu    sync.Mutex
	asked []client.Question
}

func (c *checker) Verify(ctx context.Context, q client.Question) (client.Verdict, error) {
	c.mu.Lock()
	c.asked = append(c.asked, q)
	c.mu.Unlock()
	v := client.Verdict{Code: client.Code(q.Key), OrganizationID: "org_abc123", KeyID: client.KeyID{1}, Scopes: client.Scopes{"orders:*"}, RateLimit: client.RateLimit{Limit: 9, Remaining: 3, Reset: time.Now().Add(30 * time.Second)}}
	switch {
	case strings.HasPrefix(q.Key, "good"):
		v.Valid, v.Code, v.Name = true, client.Valid, q.Key
	case q.Key == "away":
		return client.Verdict{}, &client.Error{Code: "unavailable"}
	case q.Key == "slow":
		<-ctx.Done()
		return client.Verdict{}, ctx.Err()
	}
	return v, nil
}

// orders sees the verdict in both places.
func orders(c *fiber.Ctx) error {
	v, ok := fiberauth.FromContext(c)
	again, ok2 := fiberauth.FromUserContext(c.UserContext())
	return c.SendString(fmt.Sprint(ok && ok2 && v.Name == again.Name, " ", v.Name))
}

func ask(t *testing.T, app *fiber.App, path string, header ...string) (int, http.Header, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range header {
		name, value, _ := strings.Cut(line, ": ")
		r.Header.Add(name, value)
	}
	response, err := app.Test(r, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, response.Header, string(body)
}

func TestOnlyAValidKeyReachesAHandler(t *testing.T) {
	t.Parallel()
	app := fiber.New()
	app.Use("/orders", fiberauth.Middleware(&checker{}, fiberauth.Options{Timeout: 10 * time.Millisecond}))
	app.Get("/orders", fiberauth.Require("orders:read"), orders)
	app.Get("/orders/all", fiberauth.Require("orders:read", "admin"), orders)
	app.Get("/open", fiberauth.Require("orders:read"), orders)
	for _, c := range []struct {
		path   string
		header []string
		status int
	}{
		{"/orders", []string{"X-API-Key: good"}, 200},
		{"/orders", []string{"Authorization: Bearer good"}, 200},
		{"/orders", []string{"X-API-Key: good", "Authorization: Bearer good"}, 200},
		{"/orders", []string{"X-API-Key: good", "Authorization: Bearer other"}, 400},
		{"/orders", []string{"X-API-Key: good", "X-API-Key: other"}, 400},
		{"/orders", []string{"X-API-Key: good", "Authorization: Basic Z29vZA=="}, 400},
		{"/orders", nil, 401},
		{"/orders", []string{"Authorization: Basic Z29vZA=="}, 401},
		{"/orders", []string{"X-API-Key: REVOKED"}, 401},
		{"/orders", []string{"X-API-Key: INSUFFICIENT_SCOPE"}, 403},
		{"/orders/all", []string{"X-API-Key: good"}, 403},
		{"/orders", []string{"X-API-Key: RATE_LIMITED"}, 429},
		{"/orders", []string{"X-API-Key: away"}, 503},
		{"/orders", []string{"X-API-Key: slow"}, 503},
		{"/open", []string{"X-API-Key: good"}, 500}, // nothing has verified
	} {
		status, h, body := ask(t, app, c.path, c.header...)
		if status != c.status || c.status == 200 && body != "true good" || c.status == 200 && h.Get("X-RateLimit-Remaining") != "3" ||
			c.status != 200 && h.Get("Content-Type") != "application/problem+json" || (h.Get("WWW-Authenticate") != "") != (c.status == 401) ||
			(h.Get("Retry-After") != "") != (c.status == 429 || c.status == 503) {
			t.Errorf("%s %v: got %d %v %s", c.path, c.header, status, h, body)
		}
	}
}

// Fiber's strings point into buffers that the connection's next request overwrites.
func TestWhatIsKeptOfARequestIsNotChangedByTheNext(t *testing.T) {
	t.Parallel()
	keeper := &checker{}
	var kept []client.Verdict
	app := fiber.New(fiber.Config{DisableStartupMessage: true})
	app.Use(fiberauth.Middleware(keeper, fiberauth.Options{}))
	app.Get("/", func(c *fiber.Ctx) error {
		v, _ := fiberauth.FromContext(c)
		kept = append(kept, v)
		return nil
	})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- app.Listener(listener) }()
	transport := &http.Transport{MaxConnsPerHost: 1} // one connection, and so one buffer
	for i := range 100 {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+listener.Addr().String()+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		key := fmt.Sprintf("good%0100d", i)
		if r.Header.Set("X-API-Key", key); i%2 == 1 {
			r.Header = http.Header{"Authorization": {"Bearer " + key}}
		}
		response, err := transport.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = response.Body.Close()
	}
	transport.CloseIdleConnections()
	if err := app.Shutdown(); err != nil {
		t.Fatal(err)
	}
	if err := <-served; err != nil {
		t.Fatal(err)
	}
	for i, v := range kept {
		if want := fmt.Sprintf("good%0100d", i); v.Name != want || keeper.asked[i].Key != want {
			t.Fatalf("request %d was of %s, and not of %s and %s", i, want, v.Name, keeper.asked[i].Key)
		}
	}
	if len(kept) != 100 {
		t.Errorf("%d requests", len(kept))
	}
}

func TestAServiceMayRefuseInItsOwnWay(t *testing.T) {
	t.Parallel()
	teapot := func(c *fiber.Ctx, refusal *client.Refusal) error {
		return c.Status(fiber.StatusTeapot).SendString(refusal.Code)
	}
	app := fiber.New()
	app.Get("/", fiberauth.Middleware(&checker{}, fiberauth.Options{Refuse: teapot}), fiberauth.RequireOr(teapot, "admin"), orders)
	for key, code := range map[string]string{"good": "forbidden", "REVOKED": "unauthenticated", "away": "unavailable"} {
		if status, _, body := ask(t, app, "/", "X-API-Key: "+key); status != fiber.StatusTeapot || body != code {
			t.Errorf("%s: got %d %s", key, status, body)
		}
	}
	defer func() {
		if recover() == nil {
			t.Error("a mistake in a scope is not noticed")
		}
	}()
	fiberauth.Require("orders read")
}
