package client_test

import (
	"context"
	"errors"
	"net/http"
	"testing"
	"time"

	"keyledger/client"
)

// A quota is one, wherever its key is verified: embedded verifiers ask.
func TestAQuotaIsOneForServersAndVerifiers(t *testing.T) {
	t.Parallel()
	server := startLongLeased(t)
	c := connect(t, server, acme)
	create := func(q client.NewQuota) client.CreatedKey {
		t.Helper()
		made, err := c.CreateKey(t.Context(), acme, client.NewKey{Name: "a key", Scopes: client.Scopes{"read"}, Quota: q})
		if err != nil {
			t.Fatal(err)
		}
		return made
	}
	before := create(client.NewQuota{Limit: 4, Refill: client.RefillMonth})
	if q := before.Quota; q.Limit != 4 || q.Refill != client.RefillMonth || q.Remaining != 4 || !q.Known || !q.ResetsAt.After(time.Now()) || q.ResetsAt.Day() != 1 {
		t.Errorf("made with %+v", q)
	}
	way := newLink(t, server.URL())
	v := startVerifier(t, client.VerifierOptions{URL: way.url, Key: systemKey(server), ReportEvery: 20 * time.Millisecond})
	after := create(client.NewQuota{Limit: 2, Refill: client.RefillNone})

	ask := func(checker client.Checker, key client.CreatedKey, code client.Code, remaining uint64) client.Verdict {
		t.Helper()
		got, err := checker.Verify(client.WithMinPosition(t.Context(), key.Position), client.Question{Key: key.Secret.Reveal()})
		if err != nil || got.Code != code || got.Valid != (code == client.Valid) || got.KeyID != key.ID || got.Quota.Remaining != remaining || !got.Quota.Known {
			t.Errorf("%+v, %v, want %s and %d", got, err, code, remaining)
		}
		return got
	}
	for _, key := range []struct {
		key   client.CreatedKey
		limit uint64
	}{{before, 4}, {after, 2}} {
		for left := key.limit; left > 0; left -= 2 {
			ask(c, key.key, client.Valid, left-1)
			ask(v, key.key, client.Valid, left-2)
		}
		for _, checker := range []client.Checker{c, v} {
			verdict := ask(checker, key.key, client.QuotaExceeded, 0)
			refusal := client.Refuse(verdict, nil)
			if refusal == nil || refusal.Status != http.StatusTooManyRequests || refusal.Code != "quota_exceeded" || (refusal.RetryAfter > 0) != (verdict.Quota.Refill == client.RefillMonth) {
				t.Errorf("refused with %+v", refusal)
			}
		}
	}

	// What else is against a key, a verifier knows by itself.
	way.down.Store(true)
	if got := verdictOf(t, v, client.Question{Key: before.Secret.Reveal(), Scopes: client.Scopes{"write"}}); got.Code != client.InsufficientScope {
		t.Errorf("%+v", got)
	}
	soon, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := v.Verify(soon, client.Question{Key: before.Secret.Reveal()})
	if !errors.Is(err, client.ErrUnavailable) {
		t.Errorf("cut off: %v", err)
	}

	own := clientOf(t, server.URL(), after.Secret.Reveal(), client.WithAttempts(3))
	_, err = own.GetKey(t.Context(), acme, after.ID)
	var e *client.Error
	if !errors.Is(err, client.ErrQuotaExceeded) || errors.Is(err, client.ErrRateLimited) || !errors.As(err, &e) || e.RetryAfter != 0 {
		t.Errorf("with a quota that is used up: %+v", err)
	}
	if _, err := c.CreateKey(t.Context(), acme, client.NewKey{Name: "n", Scopes: client.Scopes{"read"}, Quota: client.NewQuota{Limit: 1}}); !errors.Is(err, client.ErrInvalid) || !errors.As(err, &e) || e.Field != "quota.refill" {
		t.Errorf("without a refill: %v", err)
	}
}
