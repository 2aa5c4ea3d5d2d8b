package faults_test

import (
	"context"
	"encoding/hex"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"keyledger/domain"
	"keyledger/eventstore"
	"keyledger/internal/audit"
	"keyledger/internal/postgres"
	"keyledger/internal/servertest"
	"keyledger/internal/testkit"
)

// external is a server on a Postgres and a NATS that the test can take away.
func external(t *testing.T, arguments ...string) (*servertest.Server, *testkit.Cluster, *testkit.NATSServer) {
	t.Helper()
	cluster, broker := testkit.Postgres(t, postgres.Options{}), testkit.NATS(t)
	return servertest.Start(t, servertest.Options{Args: arguments, Env: []string{
		"DATABASE_URL=" + cluster.URL(), "KEYLEDGER_DATABASE_ADMIN_URL=" + cluster.AdminURL(), "NATS_URL=" + broker.URL,
		"KEYLEDGER_MASTER_KEY=" + hex.EncodeToString(make([]byte, eventstore.MasterKeySize)),
	}}), cluster, broker
}

func TestWithoutPostgresWritesAndListsAreUnavailableAndGoodKeysStayGood(t *testing.T) {
	t.Parallel()
	server, cluster, _ := external(t)
	c := client{t: t, base: server.URL(), key: server.Bootstrap(organization, "--rate-limit", "0")}
	if status, _, body := c.do(http.MethodPost, c.keys(), `{"name":"before"}`); status != http.StatusCreated {
		t.Fatalf("a create is answered with %d: %s", status, body)
	}

	cluster.Stop()
	for name, call := range map[string]func() (int, http.Header, string){
		"a create": func() (int, http.Header, string) { return c.do(http.MethodPost, c.keys(), `{"name":"during"}`) },
		"a list":   func() (int, http.Header, string) { return c.do(http.MethodGet, c.keys(), "") },
		"BunShip's list": func() (int, http.Header, string) {
			return c.do(http.MethodGet, "/api/v1/organizations/"+organization+"/api-keys", "")
		},
		"a revoke": func() (int, http.Header, string) {
			return c.do(http.MethodDelete, c.keys()+"/"+domain.KeyID{15: 1}.UUID(), "")
		},
	} {
		status, header, body := call()
		if status != http.StatusServiceUnavailable || header.Get("Retry-After") == "" {
			t.Errorf("without Postgres %s is answered with %d, Retry-After %q: %s", name, status, header.Get("Retry-After"), body)
		}
	}
	await(t, "the end of the lease", func() bool {
		status, header, body := c.verify()
		switch {
		case status == http.StatusServiceUnavailable && header.Get("Retry-After") != "":
			return true
		case status != http.StatusOK || !strings.Contains(body, `"VALID"`):
			t.Fatalf("without Postgres a good key is answered with %d: %s", status, body)
		}
		return false
	})
	if status, _, _ := c.do(http.MethodGet, "/readyz", ""); status != http.StatusOK {
		t.Errorf("without Postgres /readyz says %d: every node would be drained at once", status)
	}

	cluster.Start()
	await(t, "a create after Postgres has come back", func() bool {
		status, _, _ := c.do(http.MethodPost, c.keys(), `{"name":"after"}`)
		return status == http.StatusCreated
	})
	if status, _, body := c.do(http.MethodGet, c.keys(), ""); status != http.StatusOK || !strings.Contains(body, "after") || strings.Contains(body, "during") {
		t.Errorf("after Postgres has come back the list is answered with %d: %s", status, body)
	}
	server.Stop() // while there is a database to take the last uses
}

// Whoever would rather serve what is known than refuse says so, and is told which
// answers are stale.
func TestWithoutPostgresGoodKeysStayGoodWhereTheDeploymentSaysSo(t *testing.T) {
	t.Parallel()
	server, cluster, _ := external(t, "--stale", "serve", "--max-stale", "10m")
	c := client{t: t, base: server.URL(), key: server.Bootstrap(organization, "--rate-limit", "0")}
	cluster.Stop()
	await(t, "a stale answer", func() bool {
		status, _, body := c.verify()
		if status != http.StatusOK || !strings.Contains(body, `"valid":true`) {
			t.Fatalf("without Postgres a good key is answered with %d: %s", status, body)
		}
		return strings.Contains(body, `"stale":true`)
	})
	cluster.Start()
	await(t, "an answer that is not stale", func() bool {
		_, _, body := c.verify()
		return !strings.Contains(body, `"stale":true`)
	})
	server.Stop()
}

func TestWithoutNATSEverythingGoesOnAndTheStreamCatchesUp(t *testing.T) {
	t.Parallel()
	server, cluster, broker := external(t, "--lease", "10s") // none ends because the machine is busy
	c := client{t: t, base: server.URL(), key: server.Bootstrap(organization, "--rate-limit", "0")}
	create := func() {
		t.Helper()
		if status, _, body := c.do(http.MethodPost, c.keys(), `{"name":"a key"}`); status != http.StatusCreated {
			t.Fatalf("a create is answered with %d: %s", status, body)
		}
	}
	create()
	broker.Stop()
	for range 20 {
		create()
	}
	if status, _, body := c.verify(); status != http.StatusOK || !strings.Contains(body, `"VALID"`) {
		t.Errorf("without NATS a good key is answered with %d: %s", status, body)
	}
	broker.Start()
	create()
	awaitStream(t, broker.URL, 23)
	report, err := audit.Run(t.Context(), audit.Ledger{DatabaseURL: cluster.AdminURL(), NATSURL: broker.URL})
	if err != nil {
		t.Fatal(err)
	}
	for _, fault := range report.Faults {
		if fault.Lane == domain.Lifecycle {
			t.Error(fault)
		}
	}
}

// client makes single requests.
type client struct {
	t    testing.TB
	base string
	key  string
}

func (c client) keys() string { return "/api/v1/organization/" + organization + "/api-keys" }

func (c client) verify() (int, http.Header, string) {
	return c.do(http.MethodPost, "/api/v1/keys/verify", fmt.Sprintf(`{"key":%q}`, c.key))
}

func (c client) do(method, path, body string) (int, http.Header, string) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), time.Minute)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, method, c.base+path, strings.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	request.Header.Set("X-API-Key", c.key)
	request.Header.Set("Content-Type", "application/json")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		c.t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	return response.StatusCode, response.Header, readAll(c.t, response.Body)
}

// await asks again and again until the answer is yes.
func await(t testing.TB, what string, yes func() bool) {
	t.Helper()
	poll := time.NewTicker(20 * time.Millisecond)
	defer poll.Stop()
	deadline := time.After(time.Minute)
	for !yes() {
		select {
		case <-poll.C:
		case <-deadline:
			t.Fatalf("%s does not come", what)
		}
	}
}
