package client_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"keyledger/client"
	"keyledger/internal/servertest"
	"keyledger/internal/testkit"
)

const acme = client.OrganizationID("org_abc123")

// connect gives a client with an admin key of an organization.
func connect(t *testing.T, server *servertest.Server, organization client.OrganizationID, options ...client.Option) *client.Client {
	t.Helper()
	return clientOf(t, server.URL(), server.Bootstrap(string(organization), "--rate-limit", "0"), options...)
}

func clientOf(t *testing.T, url, credential string, options ...client.Option) *client.Client {
	t.Helper()
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	c, err := client.New(url, credential, append([]client.Option{client.WithHTTPClient(&http.Client{Transport: transport})}, options...)...)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestTheWholeAPIOnARealServer(t *testing.T) {
	t.Parallel()
	server := servertest.Start(t, servertest.Options{Env: []string{"KEYLEDGER_FLUSH_INTERVAL=20ms"}})
	t.Run("keys are made, shown, verified and revoked", func(t *testing.T) {
		t.Parallel()
		ctx := t.Context()
		c := connect(t, server, "org_keys")
		expires := time.Now().Add(time.Hour).UTC().Truncate(time.Second)
		made, err := c.CreateKey(ctx, "org_keys", client.NewKey{Name: "Production", Scopes: client.Scopes{"orders:*"}, RateLimit: 2, ExpiresAt: expires, Environment: client.Test})
		if err != nil {
			t.Fatal(err)
		}
		if k := made.Key; !strings.HasPrefix(made.Secret.Reveal(), "bsk_test_") || k.Name != "Production" || k.Environment != client.Test || k.RateLimit != 2 ||
			!k.ExpiresAt.Equal(expires) || k.Status != client.StatusActive || k.CreatedAt.IsZero() || k.Organization != "org_keys" || made.Position != c.Position() {
			t.Errorf("made %+v", made)
		}
		got, err := c.GetKey(client.WithMinPosition(ctx, made.Position), "org_keys", made.ID)
		if err != nil || got.ID != made.ID || got.Status != client.StatusActive {
			t.Errorf("got %+v, %v", got, err)
		}
		ask := client.Question{Key: made.Secret.Reveal(), Scopes: client.Scopes{"orders:read"}, Organization: "org_keys"}
		v, err := c.Verify(ctx, ask)
		if err != nil || !v.Valid || v.Code != client.Valid || v.KeyID != made.ID || v.OrganizationID != "org_keys" || v.Name != "Production" || !v.Scopes.Imply("orders:x") ||
			!v.ExpiresAt.Equal(expires) || v.RateLimit.Limit != 2 || v.RateLimit.Remaining != 1 || v.RateLimit.Reset.IsZero() || v.Position < made.Position.Position {
			t.Errorf("got %+v, %v", v, err)
		}
		verdicts, err := c.VerifyBatch(ctx, []client.Question{
			{Key: made.Secret.Reveal(), Scopes: client.Scopes{"invoices:read"}},
			{Key: "nonsense"},
			{Key: made.Secret.Reveal(), Organization: "org_other"},
			{Key: made.Secret.Reveal()},
			{Key: made.Secret.Reveal()},
			{Key: strings.Repeat("long", 30_000)},
			{Key: "\xff\n"},
		})
		var codes []client.Code
		for _, v := range verdicts {
			codes = append(codes, v.Code)
		}
		if want := "[INSUFFICIENT_SCOPE NOT_FOUND NOT_FOUND VALID RATE_LIMITED NOT_FOUND NOT_FOUND]"; err != nil || fmt.Sprint(codes) != want {
			t.Errorf("got %v, %v", codes, err)
		}
		forever, err := c.CreateKey(ctx, "org_keys", client.NewKey{Name: "durable", Scopes: client.Scopes{"read"}})
		if err != nil {
			t.Fatal(err)
		}
		if v, err := c.Verify(ctx, client.Question{Key: forever.Secret.Reveal(), Durable: true}); err != nil || !v.Valid {
			t.Errorf("got %+v, %v", v, err)
		}
		if u, err := c.KeyUsage(ctx, "org_keys", forever.ID, client.UsageOptions{}); err != nil || u.Total.Accepted != 1 || len(u.Intervals) != 24 {
			t.Errorf("a durable use is not in the log: %+v, %v", u, err)
		}
		ended, err := c.RevokeKey(ctx, "org_keys", made.ID, "the test is over")
		if err != nil || !ended.Changed || !ended.Fenced || ended.Confirmed+ended.Expired < 1 || ended.Key.Status != client.StatusRevoked || ended.Key.RevokedAt.IsZero() || ended.Position.Position <= made.Position.Position {
			t.Errorf("got %+v, %v", ended, err)
		}
		if again, err := c.RevokeKey(ctx, "org_keys", made.ID, ""); err != nil || again.Changed || !again.Key.RevokedAt.Equal(ended.Key.RevokedAt) {
			t.Errorf("got %+v, %v", again, err)
		}
		other, err := c.CreateKey(ctx, "org_keys", client.NewKey{Name: "later", Scopes: client.Scopes{"read"}})
		if err != nil {
			t.Fatal(err)
		}
		if later, err := c.RevokeKeyAsync(ctx, "org_keys", other.ID, ""); err != nil || !later.Changed || later.Fenced || time.Until(later.FenceBy) > time.Minute || later.FenceBy.IsZero() {
			t.Errorf("got %+v, %v", later, err)
		}
		if v, err := c.Verify(ctx, ask); err != nil || v.Valid || v.Code != client.Revoked {
			t.Errorf("got %+v, %v", v, err)
		}
		page, err := c.AuditLog(ctx, "org_keys", client.AuditOptions{Key: made.ID, Types: []string{"KeyRevoked"}})
		if err != nil || len(page.Entries) != 1 || page.Entries[0].Reason != "the test is over" || page.Entries[0].Key != made.ID || page.Entries[0].Actor.Kind != "key" {
			t.Errorf("got %+v, %v", page, err)
		}
		entries := 0
		for e, err := range c.Audit(ctx, "org_keys", client.AuditOptions{Limit: 1}) {
			if err != nil || e.Position == 0 {
				t.Fatal(err)
			}
			entries++
		}
		if entries < 3 {
			t.Errorf("the audit log has %d entries", entries)
		}
		for {
			u, err := c.KeyUsage(ctx, "org_keys", made.ID, client.UsageOptions{Daily: true})
			if err != nil || len(u.Intervals) != 30 {
				t.Fatalf("got %+v, %v", u, err)
			}
			if u.Total.Accepted == 2 && u.Total.Outcomes[client.RateLimited] == 1 && u.Total.Outcomes[client.Revoked] == 1 {
				break
			}
		}
	})
	t.Run("lists are walked through", func(t *testing.T) {
		t.Parallel()
		ctx := t.Context()
		c := connect(t, server, "org_lists", client.ReadYourWrites())
		for i := range 5 {
			if _, err := c.CreateKey(ctx, "org_lists", client.NewKey{Name: fmt.Sprint(i), Scopes: client.Scopes{"read"}, RateLimit: client.NoRateLimit}); err != nil {
				t.Fatal(err)
			}
		}
		var names []string
		for k, err := range c.Keys(ctx, "org_lists", client.ListOptions{Limit: 2}) {
			if err != nil {
				t.Fatal(err)
			}
			names = append(names, k.Name)
		}
		if fmt.Sprint(names) != "[4 3 2 1 0 bootstrap]" {
			t.Errorf("got %v", names)
		}
		at := fmt.Sprint(c.Position().Position)
		if page, err := c.ListKeys(ctx, "org_lists", client.ListOptions{At: at}); err != nil || len(page.Keys) != 6 || page.Keys[0].RateLimit != 0 {
			t.Errorf("got %+v, %v", page, err)
		}
		if page, err := c.ListKeys(ctx, "org_lists", client.ListOptions{At: "1h"}); err != nil || len(page.Keys) != 0 {
			t.Errorf("got %+v, %v", page, err)
		}
	})
	t.Run("failures are of a kind", func(t *testing.T) {
		t.Parallel()
		ctx := t.Context()
		c := connect(t, server, "org_failures")
		reader, err := c.CreateKey(ctx, "org_failures", client.NewKey{Name: "reader", Scopes: client.Scopes{"read"}, RateLimit: 4})
		if err != nil {
			t.Fatal(err)
		}
		r := clientOf(t, server.URL(), reader.Secret.Reveal(), client.WithAttempts(1))
		stranger := clientOf(t, server.URL(), "bsk_live_00000000000000000000000000000000")
		key := client.NewKey{Name: "n", Scopes: client.Scopes{"read"}}
		later := client.Token{Epoch: reader.Position.Epoch, Lane: client.Lifecycle, Position: 1 << 40}
		gone := client.Token{Epoch: reader.Position.Epoch + 7, Lane: client.Lifecycle, Position: 1}
		for name, f := range map[string]struct {
			do     func() error
			kind   error
			status int
			field  string
		}{
			"no name": {func() error {
				_, err := c.CreateKey(ctx, "org_failures", client.NewKey{Scopes: client.Scopes{"read"}})
				return err
			}, client.ErrInvalid, 400, "name"},
			"no organization":      {func() error { _, err := c.CreateKey(ctx, "../x", key); return err }, client.ErrInvalid, 0, "organizationId"},
			"another organization": {func() error { _, err := c.CreateKey(ctx, "org_other", key); return err }, client.ErrForbidden, 403, ""},
			"no right":             {func() error { _, err := r.CreateKey(ctx, "org_failures", key); return err }, client.ErrForbidden, 403, ""},
			"no such key":          {func() error { _, err := c.GetKey(ctx, "org_failures", client.KeyID{1}); return err }, client.ErrNotFound, 404, ""},
			"a bad credential":     {func() error { _, err := stranger.GetKey(ctx, "org_failures", reader.ID); return err }, client.ErrUnauthenticated, 401, ""},
			"a position to come": {func() error {
				_, err := c.GetKey(client.WithWait(client.WithMinPosition(ctx, later), 10*time.Millisecond), "org_failures", reader.ID)
				return err
			}, client.ErrStale, 409, "X-Keyledger-Min-Position"},
			"a position of another epoch": {func() error {
				_, err := c.Verify(client.WithMinPosition(ctx, gone), client.Question{Key: "x"})
				return err
			}, client.ErrAnotherHistory, 409, "X-Keyledger-Min-Position"},
			"no scope": {func() error {
				_, err := c.Verify(ctx, client.Question{Key: "x", Scopes: client.Scopes{"not a scope"}})
				return err
			}, client.ErrInvalid, 400, "scopes"},
		} {
			err := f.do()
			var e *client.Error
			if !errors.Is(err, f.kind) || !errors.As(err, &e) || e.Status != f.status || e.Field != f.field || (e.Status != 0) != (e.RequestID != "") {
				t.Errorf("%s: got %+v", name, err)
			}
		}
		var limited error
		for range 5 {
			_, limited = r.GetKey(ctx, "org_failures", reader.ID)
		}
		var e *client.Error
		if !errors.Is(limited, client.ErrRateLimited) || !errors.As(limited, &e) || e.RetryAfter < time.Second {
			t.Errorf("over the limit: %v", limited)
		}
		// The same name for another call.
		named := client.WithIdempotencyKey(ctx, "once")
		first, err := c.CreateKey(named, "org_failures", key)
		if err != nil {
			t.Fatal(err)
		}
		again, err := c.CreateKey(named, "org_failures", key)
		if !errors.Is(err, client.ErrSecretLost) || again.ID != first.ID || !again.Secret.IsZero() {
			t.Errorf("got %+v, %v", again, err)
		}
		if _, err := c.CreateKey(named, "org_failures", client.NewKey{Name: "other", Scopes: client.Scopes{"read"}}); !errors.Is(err, client.ErrIdempotencyReused) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("the log and the node can be looked at", func(t *testing.T) {
		t.Parallel()
		ctx := t.Context()
		c := connect(t, server, "org_log")
		auditor := clientOf(t, server.URL(), server.BootstrapKey("--system").Key)
		var note []byte
		for note == nil {
			var err error
			if note, err = c.Checkpoint(ctx, client.Lifecycle); err != nil && !errors.Is(err, client.ErrNotFound) {
				t.Fatal(err)
			}
		}
		var size client.Position
		if _, err := fmt.Sscanf(strings.Split(string(note), "\n")[1], "%d", &size); err != nil {
			t.Fatal(err)
		}
		if p, err := c.ProveInclusion(ctx, client.Lifecycle, 1, size); err != nil || len(p.LeafHash) != 32 || p.Size != size {
			t.Errorf("got %+v, %v", p, err)
		}
		if _, err := c.ProveConsistency(ctx, client.Lifecycle, 1, size); err != nil {
			t.Error(err)
		}
		if hashes, err := c.Tile(ctx, client.Lifecycle, 0, 0, int(size)); err != nil || len(hashes) != 32*int(size) {
			t.Errorf("got %d bytes, %v", len(hashes), err)
		}
		if entries, err := auditor.Entries(ctx, client.Lifecycle, 0, int(size)); err != nil || len(entries) != int(size) {
			t.Errorf("got %d entries, %v", len(entries), err)
		}
		if _, err := c.Entries(ctx, client.Lifecycle, 0, int(size)); !errors.Is(err, client.ErrForbidden) {
			t.Errorf("got %v", err)
		}
		if h, err := c.Health(ctx); err != nil || !h.Ready || len(h.Checks) == 0 || h.Position == 0 {
			t.Errorf("got %+v, %v", h, err)
		}
		if v, err := c.Version(ctx); err != nil || v.Go == "" {
			t.Errorf("got %+v, %v", v, err)
		}
		if err := c.Ready(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Run("events are read and subscribed to", func(t *testing.T) {
		t.Parallel()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		c := connect(t, server, "org_events")
		made, err := c.CreateKey(ctx, "org_events", client.NewKey{Name: "n", Scopes: client.Scopes{"read", "events:read"}})
		if err != nil {
			t.Fatal(err)
		}
		auditor := clientOf(t, server.URL(), server.BootstrapKey("--system").Key)
		own, err := clientOf(t, server.URL(), made.Secret.Reveal()).Events(ctx, client.EventOptions{Filter: client.Filter{Organization: "org_events"}})
		if err != nil || len(own.Events) != 2 || own.Events[1].Key != made.ID || own.Events[1].Type != client.TypeKeyCreated || own.Events[1].Position != made.Position.Position {
			t.Fatalf("got %+v, %v", own, err)
		}
		if _, err := c.Events(ctx, client.EventOptions{}); !errors.Is(err, client.ErrForbidden) {
			t.Errorf("got %v", err)
		}
		// The same event comes on NATS, byte for byte but for the digest.
		seen := errors.New("seen")
		o := client.SubscribeOptions{URL: server.Endpoints().NATS, Client: auditor, Filter: client.Filter{Organization: "org_events", Types: []string{client.TypeKeyCreated}}}
		err = client.Subscribe(ctx, o, func(_ context.Context, e client.Event) error {
			if e.Key != made.ID {
				return nil
			}
			if logged := own.Events[1]; e.Cursor != logged.Cursor || !e.Time.Equal(logged.Time) || e.Version != logged.Version || e.Schema != logged.Schema || e.Lane != logged.Lane || e.Organization != logged.Organization {
				t.Errorf("the stream has %+v, the log %+v", e, logged)
			}
			if !strings.Contains(string(e.Data), `"digest"`) || strings.Contains(string(own.Events[1].Data), `"digest"`) {
				t.Errorf("the stream has %s, the log %s", e.Data, own.Events[1].Data)
			}
			return seen
		})
		if !errors.Is(err, seen) {
			t.Errorf("it ended with %v", err)
		}
		if _, err := c.Verify(ctx, client.Question{Key: made.Secret.Reveal()}); err != nil {
			t.Fatal(err)
		}
		err = client.Subscribe(ctx, client.SubscribeOptions{URL: server.Endpoints().NATS, Filter: client.Filter{Lane: client.Uses, Organization: "org_events"}}, func(_ context.Context, e client.Event) error {
			if e.Type != client.TypeKeyUsed || e.Lane != client.Uses || !e.Key.IsZero() {
				t.Errorf("got %+v", e)
			}
			if !strings.Contains(string(e.Data), made.ID.String()) {
				return nil // the use of another key
			}
			return seen
		})
		if !errors.Is(err, seen) {
			t.Errorf("it ended with %v", err)
		}
	})
	t.Run("webhooks are looked after", func(t *testing.T) {
		t.Parallel()
		ctx := t.Context()
		c := connect(t, server, "org_hooks")
		url, about, types, off := "https://hooks.example/keys", "Edge caches", []string{client.TypeKeyRevoked}, false
		made, secret, err := c.CreateWebhook(ctx, "org_hooks", client.WebhookChange{URL: &url, Types: &types})
		if err != nil || made.URL != url || !made.Enabled || made.Organization != "org_hooks" || made.CreatedAt.IsZero() || !strings.HasPrefix(secret.Reveal(), "whsec_") {
			t.Fatalf("got %+v, %v", made, err)
		}
		changed, err := c.ChangeWebhook(ctx, "org_hooks", made.ID, client.WebhookChange{Description: &about, Enabled: &off})
		if err != nil || changed.Description != about || changed.Enabled || changed.DisabledAt.IsZero() || changed.URL != url {
			t.Errorf("got %+v, %v", changed, err)
		}
		rotated, another, err := c.RotateWebhook(ctx, "org_hooks", made.ID, time.Hour)
		if err != nil || another.IsZero() || another == secret || time.Until(rotated.FormerSecretUntil) < 50*time.Minute {
			t.Errorf("got %+v, %v", rotated, err)
		}
		if replayed, err := c.ReplayWebhook(ctx, "org_hooks", made.ID, 0); err != nil || replayed.Position != 0 {
			t.Errorf("got %+v, %v", replayed, err)
		}
		if all, err := c.Webhooks(ctx, "org_hooks"); err != nil || len(all) != 1 || all[0].ID != made.ID || len(all[0].Types) != 1 {
			t.Errorf("got %+v, %v", all, err)
		}
		if letters, err := c.DeadLetters(ctx, "org_hooks", made.ID, 0, 10); err != nil || len(letters) != 0 {
			t.Errorf("got %+v, %v", letters, err)
		}
		if _, err := c.Redeliver(ctx, "org_hooks", made.ID, 7); !errors.Is(err, client.ErrNotFound) {
			t.Errorf("got %v", err)
		}
		if err := c.RemoveWebhook(ctx, "org_hooks", made.ID); err != nil {
			t.Error(err)
		}
		if _, err := c.GetWebhook(ctx, "org_hooks", made.ID); !errors.Is(err, client.ErrNotFound) {
			t.Errorf("got %v", err)
		}
		if _, err := c.GetWebhook(ctx, "org_hooks", ".."); !errors.Is(err, client.ErrInvalid) {
			t.Errorf("got %v", err)
		}
		inside := "http://hooks.example/"
		var e *client.Error
		if _, _, err := c.CreateWebhook(ctx, "org_hooks", client.WebhookChange{URL: &inside}); !errors.As(err, &e) || e.Field != "url" {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a write whose answers are lost happens once", func(t *testing.T) {
		t.Parallel()
		ctx := t.Context()
		admin := server.Bootstrap("org_lossy", "--rate-limit", "0")
		target, err := url.Parse(server.URL())
		if err != nil {
			t.Fatal(err)
		}
		// The request arrives, and its answer does not, twice in three.
		var n atomic.Int64
		lossy := httputil.NewSingleHostReverseProxy(target)
		lossy.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
		lossy.ModifyResponse = func(*http.Response) error {
			if n.Add(1)%3 != 0 {
				panic(http.ErrAbortHandler)
			}
			return nil
		}
		proxy := httptest.NewServer(lossy)
		defer proxy.Close()
		c := clientOf(t, proxy.URL, admin)
		for i := range 4 {
			made, err := c.CreateKey(ctx, "org_lossy", client.NewKey{Name: fmt.Sprint(i), Scopes: client.Scopes{"read"}})
			if !errors.Is(err, client.ErrSecretLost) {
				t.Fatalf("got %+v, %v", made, err)
			}
			if r, err := c.RevokeKey(ctx, "org_lossy", made.ID, ""); err != nil || !r.Changed {
				t.Errorf("got %+v, %v", r, err)
			}
		}
		keys := 0
		for _, err := range clientOf(t, server.URL(), admin).Keys(ctx, "org_lossy", client.ListOptions{}) {
			if err != nil {
				t.Fatal(err)
			}
			keys++
		}
		if keys != 5 {
			t.Errorf("%d keys, not 4 and the first", keys)
		}
	})
}

// scripted answers as a test says, and keeps what it was asked.
type scripted struct {
	mu       sync.Mutex
	requests []*http.Request
	bodies   []string
	answers  []func(w http.ResponseWriter)
}

func (s *scripted) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	s.mu.Lock()
	s.requests, s.bodies = append(s.requests, r), append(s.bodies, string(body))
	answer := s.answers[min(len(s.requests), len(s.answers))-1]
	s.mu.Unlock()
	answer(w)
}

func script(t *testing.T, answers ...func(w http.ResponseWriter)) (*scripted, string) {
	t.Helper()
	s := &scripted{answers: answers}
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	return s, server.URL
}

func status(code int, header ...string) func(w http.ResponseWriter) {
	return func(w http.ResponseWriter) {
		for i := 0; i < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(code)
	}
}

func cut(http.ResponseWriter) { panic(http.ErrAbortHandler) }

func text(body string, header ...string) func(w http.ResponseWriter) {
	return func(w http.ResponseWriter) {
		status(200, header...)(w)
		_, _ = io.WriteString(w, body)
	}
}

const noKey = `{"valid":false,"code":"NOT_FOUND","keyId":null,"position":7}`

func TestWhatMayBeRepeatedIsRepeatedUnderOneName(t *testing.T) {
	t.Parallel()
	revoked := text(`{"key":{"id":"key_01KF09MFG0FAN8QER1081G8186"},"changed":true,"fenced":true,"waitedMs":1.5,"confirmed":2,"expired":1}`, "X-Keyledger-Position", "3:lifecycle:9")
	s, url := script(t, status(503, "Retry-After", "0"), cut, status(429), status(502), revoked)
	c := clientOf(t, url, "bsk_live_x", client.WithAttempts(5))
	r, err := c.RevokeKey(t.Context(), acme, client.KeyID{1}, "why")
	if err != nil || !r.Fenced || r.Confirmed != 2 || r.Expired != 1 || r.Waited != 1500*time.Microsecond || r.Position.String() != "3:lifecycle:9" {
		t.Fatalf("got %+v, %v", r, err)
	}
	if len(s.requests) != 5 {
		t.Fatalf("%d requests", len(s.requests))
	}
	for i, request := range s.requests {
		if name := request.Header.Get("Idempotency-Key"); name == "" || name != s.requests[0].Header.Get("Idempotency-Key") || s.bodies[i] != s.bodies[0] || request.Header.Get("X-API-Key") != "bsk_live_x" {
			t.Errorf("request %d is %v %s", i, request.Header, s.bodies[i])
		}
	}
	if _, err := c.RevokeKey(t.Context(), acme, client.KeyID{1}, "why"); err != nil || s.requests[5].Header.Get("Idempotency-Key") == s.requests[0].Header.Get("Idempotency-Key") {
		t.Errorf("another call has the same name: %v", err)
	}
}

func TestWhatAnotherAttemptCannotMendIsNotRepeated(t *testing.T) {
	t.Parallel()
	for _, answer := range []func(http.ResponseWriter){
		status(400), status(401), status(403), status(404), status(409), status(422), status(500), status(302, "Location", "http://127.0.0.1:1/"), status(503, "Retry-After", "3600"), text("{"), text("null"),
	} {
		s, url := script(t, answer)
		if v, err := clientOf(t, url, "").Verify(t.Context(), client.Question{Key: "x"}); err == nil || len(s.requests) != 1 {
			t.Errorf("got %+v, %v after %d requests", v, err, len(s.requests))
		}
	}
	s, url := script(t, status(503))
	if _, err := clientOf(t, url, "", client.WithAttempts(2)).Verify(t.Context(), client.Question{Key: "x"}); !errors.Is(err, client.ErrUnavailable) || len(s.requests) != 2 {
		t.Errorf("got %v after %d requests", err, len(s.requests))
	}
}

func TestRetryAfterIsHonoured(t *testing.T) {
	t.Parallel()
	s, url := script(t, status(503, "Retry-After", "1"), text(noKey))
	began := time.Now()
	if _, err := clientOf(t, url, "").Verify(t.Context(), client.Question{Key: "x"}); err != nil || len(s.requests) != 2 || time.Since(began) < time.Second {
		t.Errorf("got %v after %d requests and %s", err, len(s.requests), time.Since(began))
	}
	// There is no time for it: the answer comes at once.
	_, url = script(t, status(503, "Retry-After", "20"))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	began = time.Now()
	if _, err := clientOf(t, url, "").Verify(ctx, client.Question{Key: "x"}); !errors.Is(err, client.ErrUnavailable) || time.Since(began) > 5*time.Second {
		t.Errorf("got %v after %s", err, time.Since(began))
	}
}

func TestWhatSaysNothingOfAKeyIsNoVerdict(t *testing.T) {
	t.Parallel()
	away := fmt.Sprintf("http://127.0.0.1:%d", testkit.Port(t)) // where nobody is
	if v, err := clientOf(t, away, "", client.WithAttempts(1)).Verify(t.Context(), client.Question{Key: "x"}); !errors.Is(err, client.ErrUnavailable) || v.Valid || v.Code != "" {
		t.Errorf("got %+v, %v", v, err)
	}
	for _, body := range []string{`{}`, `{"valid":true}`, `{"valid":true,"code":"REVOKED"}`, `{"valid":true,"code":"VALID","keyId":null}`, `{"valid":false,"code":"VALID"}`, `[]`, ``, `{"valid":true,"code":"VALID","keyId":"x","organizationId":"o"}`} {
		_, url := script(t, text(body))
		if v, err := clientOf(t, url, "").Verify(t.Context(), client.Question{Key: "x"}); !errors.Is(err, client.ErrInternal) || v.Valid {
			t.Errorf("%s: got %+v, %v", body, v, err)
		}
	}
	// An endless answer.
	_, url := script(t, func(w http.ResponseWriter) {
		for range 1000 {
			if _, err := w.Write(make([]byte, 4096)); err != nil {
				return
			}
		}
	})
	if _, err := clientOf(t, url, "").Verify(t.Context(), client.Question{Key: "x"}); !errors.Is(err, client.ErrInternal) || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := clientOf(t, away, "").Verify(ctx, client.Question{Key: "x"}); !errors.Is(err, context.Canceled) || !errors.Is(err, client.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
}

// The service slows those who keep presenting unknown keys, and no others.
func TestTooManyUnknownKeysAreUnknown(t *testing.T) {
	t.Parallel()
	s, url := script(t, func(w http.ResponseWriter) {
		status(429, "Content-Type", "application/problem+json", "Retry-After", "7")(w)
		_, _ = io.WriteString(w, `{"status":429,"code":"rate_limited"}`)
	})
	c := clientOf(t, url, "")
	if v, err := c.Verify(t.Context(), client.Question{Key: "x"}); err != nil || v.Valid || v.Code != client.NotFound {
		t.Errorf("got %+v, %v", v, err)
	}
	if v, err := c.VerifyBatch(t.Context(), []client.Question{{Key: "x"}, {Key: "y"}}); err != nil || len(v) != 2 || v[1].Code != client.NotFound || len(s.requests) != 2 {
		t.Errorf("got %+v, %v", v, err)
	}
	_, url = script(t, status(429)) // of a proxy
	if v, err := clientOf(t, url, "", client.WithAttempts(1)).Verify(t.Context(), client.Question{Key: "x"}); !errors.Is(err, client.ErrRateLimited) {
		t.Errorf("got %+v, %v", v, err)
	}
}

func TestAClientReadsItsWrites(t *testing.T) {
	t.Parallel()
	made := func(position string) func(http.ResponseWriter) {
		return text(`{"key":{"id":"key_01KF09MFG0FAN8QER1081G8186"},"secret":"bsk_live_x"}`, "X-Keyledger-Position", position)
	}
	s, url := script(t, made("3:lifecycle:9"), made("3:lifecycle:4"), text(noKey), text(noKey),
		status(409, "X-Keyledger-Epoch", "4"), text(noKey), made("4:lifecycle:2"), text(noKey))
	c := clientOf(t, url, "k", client.ReadYourWrites())
	create := func() {
		t.Helper()
		if _, err := c.CreateKey(t.Context(), acme, client.NewKey{Name: "n"}); err != nil {
			t.Fatal(err)
		}
	}
	verify := func(ctx context.Context) error { _, err := c.Verify(ctx, client.Question{Key: "x"}); return err }
	create()
	create()
	other, err := client.ParseToken("3:lifecycle:7")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(verify(t.Context()), verify(client.WithWait(client.WithMinPosition(t.Context(), other), 2*time.Second))); err != nil {
		t.Fatal(err)
	}
	// The ledger was restored: one call says so, and the next ones go on.
	if err := verify(t.Context()); !errors.Is(err, client.ErrAnotherHistory) || !errors.Is(err, client.ErrStale) {
		t.Errorf("got %v", err)
	}
	if err := verify(t.Context()); err != nil {
		t.Fatal(err)
	}
	create()
	if err := verify(t.Context()); err != nil {
		t.Fatal(err)
	}
	var asked []string
	for _, r := range s.requests {
		asked = append(asked, r.Header.Get("X-Keyledger-Min-Position")+r.URL.RawQuery)
	}
	if want := []string{"", "", "3:lifecycle:9", "3:lifecycle:7wait=2s", "3:lifecycle:9", "", "", "4:lifecycle:2"}; fmt.Sprint(asked) != fmt.Sprint(want) {
		t.Errorf("got %q", asked)
	}
}

func TestNothingPrintsAKey(t *testing.T) {
	t.Parallel()
	const canary = "bsk_live_c0ffee00c0ffee00c0ffee00c0ffee00"
	_, url := script(t, cut)
	c := clientOf(t, url, canary, client.WithAttempts(1))
	q := client.Question{Key: canary, Scopes: client.Scopes{"read"}}
	_, failed := c.Verify(t.Context(), q)
	marshalled, err := json.Marshal(map[string]any{"q": q, "p": &q})
	if err != nil {
		t.Fatal(err)
	}
	var logged strings.Builder
	slog.New(slog.NewJSONHandler(&logged, nil)).Info("x", "q", q, "c", c, "err", failed)
	for _, said := range []string{fmt.Sprintf("%v %+v %#v %s %q", q, q, q, q, q), fmt.Sprintf("%v %+v %#v", c, c, c), fmt.Sprintf("%+v", struct{ Q any }{&q}), failed.Error(), string(marshalled), logged.String()} {
		if strings.Contains(said, canary) {
			t.Errorf("it says %s", said)
		}
	}
	if _, err := client.New("https://user:"+canary+"@keys.example", ""); err == nil || strings.Contains(err.Error(), canary) {
		t.Errorf("got %v", err)
	}
	if _, err := client.New(url, canary+"\n"); err == nil || strings.Contains(err.Error(), canary) {
		t.Errorf("got %v", err)
	}
}
