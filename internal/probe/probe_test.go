package probe_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"keyledger/domain"
	"keyledger/internal/probe"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func secret(t *testing.T) domain.Secret {
	t.Helper()
	s, err := domain.ParseSecret("bsk_live_0123456789abcdef0123456789abcdef")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// serve answers with one status after the other, and with the last one for ever.
func serve(t *testing.T, look func(*http.Request), statuses ...int) *probe.Server {
	t.Helper()
	var asked atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		look(r)
		w.WriteHeader(statuses[min(int(asked.Add(1)), len(statuses))-1])
	}))
	t.Cleanup(server.Close)
	return probe.At(server.URL)
}

func TestItWaitsForAPositionWithoutUsingTheNewKey(t *testing.T) {
	t.Parallel()
	server := serve(t, func(r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if r.URL.Path != "/api/v1/keys/verify" || r.Header.Get("X-Keyledger-Min-Position") != "2:lifecycle:7" {
			t.Errorf("it asks %s for %q", r.URL.Path, r.Header.Get("X-Keyledger-Min-Position"))
		}
		if strings.Contains(string(body), secret(t).Reveal()) || r.Header.Get("X-Api-Key") != "" {
			t.Error("it uses the new key")
		}
	}, http.StatusServiceUnavailable, http.StatusConflict, http.StatusOK)
	if err := server.AwaitPosition(t.Context(), domain.Token{Epoch: 2, Lane: domain.Lifecycle, Position: 7}, secret(t)); err != nil {
		t.Error(err)
	}
}

func TestWhereVerifiersNeedAKeyTheNewOneIsKnownWhenItIsNotRefusedAsUnknown(t *testing.T) {
	t.Parallel()
	var presented atomic.Bool
	server := serve(t, func(r *http.Request) {
		presented.Store(r.Header.Get("X-Api-Key") == secret(t).Reveal())
	}, http.StatusUnauthorized, http.StatusUnauthorized, http.StatusForbidden)
	if err := server.AwaitPosition(t.Context(), domain.Token{}, secret(t)); err != nil || !presented.Load() {
		t.Errorf("presented %v: %v", presented.Load(), err)
	}
}

func TestItDoesNotWaitForWhatWillNotCome(t *testing.T) {
	t.Parallel()
	if err := serve(t, func(*http.Request) {}, http.StatusNotFound).AwaitPosition(t.Context(), domain.Token{}, secret(t)); err == nil {
		t.Error("it takes another program for the server")
	}
	late := errors.New("too late")
	ctx, cancel := context.WithCancelCause(t.Context())
	server := serve(t, func(*http.Request) { cancel(late) }, http.StatusConflict)
	if err := server.AwaitPosition(ctx, domain.Token{}, secret(t)); !errors.Is(err, late) {
		t.Errorf("it ends with %v", err)
	}
}

func TestAServerThatListensEverywhereIsReachedOnLoopback(t *testing.T) {
	t.Parallel()
	for listen, want := range map[string]string{
		":8080": "http://127.0.0.1:8080", "0.0.0.0:80": "http://127.0.0.1:80", "[::]:80": "http://127.0.0.1:80",
		"[::1]:80": "http://[::1]:80", "localhost:80": "http://localhost:80", "192.0.2.1:80": "http://192.0.2.1:80",
	} {
		if got, err := probe.URL(listen, false); err != nil || got != want {
			t.Errorf("%s is reached at %s, %v; want %s", listen, got, err, want)
		}
	}
	if got, err := probe.URL(":443", true); err != nil || got != "https://127.0.0.1:443" {
		t.Errorf("with TLS it is reached at %s, %v", got, err)
	}
	if _, err := probe.URL("8080", false); err == nil || !strings.Contains(err.Error(), "--listen") {
		t.Errorf("without a host it is %v", err)
	}
}
