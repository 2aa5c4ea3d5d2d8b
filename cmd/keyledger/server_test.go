package main_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"keyledger/internal/servertest"
)

func TestWithNothingConfiguredItRunsOnEmbeddedParts(t *testing.T) {
	t.Parallel()
	server := servertest.Start(t, servertest.Options{Args: []string{"--bootstrap", "org_abc123"}})
	for _, line := range []string{"running on the embedded Postgres; DATABASE_URL replaces it", "running on the embedded NATS; NATS_URL replaces it"} {
		if n := strings.Count(server.Logs(), line); n != 1 {
			t.Errorf("it says %q %d times", line, n)
		}
	}
	holdsEndpoints(t, server)

	// The first key stands in a file that only its owner can read, and works.
	path := filepath.Join(server.DataDir(), "bootstrap-org_abc123.key")
	key := readPrivate(t, path)
	if !strings.Contains(server.Logs(), path) || strings.Contains(server.Logs(), key) {
		t.Error("the log does not name the file of the first key, or shows the key itself")
	}
	if got := verdict(t, server.URL(), key); got != "VALID" {
		t.Errorf("the first key is %s", got)
	}
	postgres := server.PostgresPid()
	if postgres == 0 {
		t.Error("no Postgres runs in the data directory")
	}

	server.Stop()
	if _, err := os.Stat(filepath.Join(server.DataDir(), "endpoints.json")); !os.IsNotExist(err) {
		t.Errorf("endpoints.json is still there: %v", err)
	}
	if err := syscall.Kill(postgres, 0); err == nil {
		t.Error("Postgres outlived the server")
	}

	// The second start finds everything, and makes no second key.
	server = servertest.Start(t, servertest.Options{DataDir: server.DataDir(), Args: []string{"--bootstrap", "org_abc123"}})
	if got := verdict(t, server.URL(), key); got != "VALID" {
		t.Errorf("after another start the first key is %s", got)
	}
	if !strings.Contains(server.Logs(), "no first key is needed") {
		t.Error("the second start does not say that the organization has a key")
	}
	// Uses are written when a server stops, and were not lost.
	var list struct {
		APIKeys []struct{ LastUsedAt *string }
	}
	call(t, http.MethodGet, server.URL()+"/api/v1/organization/org_abc123/api-keys", "", "X-API-Key", key).json(t, &list)
	if len(list.APIKeys) != 1 || list.APIKeys[0].LastUsedAt == nil {
		t.Errorf("after another start the list is %+v", list)
	}
}

func holdsEndpoints(t *testing.T, server *servertest.Server) {
	t.Helper()
	var endpoints map[string]string
	if err := json.Unmarshal([]byte(readPrivate(t, filepath.Join(server.DataDir(), "endpoints.json"))), &endpoints); err != nil {
		t.Fatal(err)
	}
	names := make([]string, 0, len(endpoints))
	for name, url := range endpoints {
		names = append(names, name)
		if name != "http" && !strings.Contains(url, ":") && !strings.Contains(url, "@127.0.0.1:") {
			t.Errorf("endpoints.json: %s has no credentials: %s", name, url)
		}
	}
	slices.Sort(names)
	if diff := cmp.Diff([]string{"database", "database_admin", "http", "nats"}, names); diff != "" {
		t.Error(diff)
	}
}

// readPrivate reads a file that only its owner can read.
func readPrivate(t *testing.T, path string) string {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("%s has the mode %s", path, info.Mode().Perm())
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

func TestAServerThatWasKilledStartsAgain(t *testing.T) {
	t.Parallel()
	server := servertest.Start(t, servertest.Options{})
	key := server.Bootstrap("org_1")
	stale := server.Endpoints()
	// A Postgres that is stopped cannot end with its server: it is an orphan.
	orphan := server.PostgresPid()
	if err := syscall.Kill(orphan, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	server.Kill()
	server = servertest.Start(t, servertest.Options{DataDir: server.DataDir()})
	if server.PostgresPid() == orphan {
		t.Error("it runs on the orphan of the killed server")
	}
	if server.URL() == stale.HTTP {
		t.Error("endpoints.json is the killed server's")
	}
	if got := verdict(t, server.URL(), key); got != "VALID" {
		t.Errorf("after the kill the key is %s", got)
	}
}

func TestWhatCannotBeSharedIsRefused(t *testing.T) {
	t.Parallel()
	server := servertest.Start(t, servertest.Options{})
	address := strings.TrimPrefix(server.URL(), "http://")

	second := servertest.Launch(t, servertest.Options{DataDir: server.DataDir()})
	if code := second.Wait(); code != 1 || !strings.Contains(second.Logs(), "is already in use by process") {
		t.Errorf("a second server on the directory ended with %d:\n%s", code, second.Logs())
	}
	taken := servertest.Launch(t, servertest.Options{Listen: address})
	if code := taken.Wait(); code != 1 || !strings.Contains(taken.Logs(), "the address "+address+" is taken by another process: stop it, or choose another address with --listen") {
		t.Errorf("a second server on the address ended with %d:\n%s", code, taken.Logs())
	}
	if _, err := os.Stat(filepath.Join(taken.DataDir(), "postgres")); err == nil {
		t.Error("the address was found to be taken after Postgres was started")
	}
	// Neither did any harm to the first.
	if got := server.Run("healthcheck"); got.Code != 0 {
		t.Errorf("healthcheck ended with %d: %s", got.Code, got.Stderr)
	}
}

func TestAStopFinishesWhatIsUnderWayAndASecondSignalDoesNot(t *testing.T) {
	t.Parallel()
	server := servertest.Start(t, servertest.Options{Args: []string{"--drain-delay", "10m"}})
	key := server.Bootstrap("org_1")
	server.Signal(syscall.SIGTERM)
	server.AwaitLog("keyledger stops")
	// Balancers are told to go away, and who is still there is served.
	awaitStatus(t, server.URL()+"/readyz", http.StatusServiceUnavailable)
	if got := verdict(t, server.URL(), key); got != "VALID" {
		t.Errorf("while it drains the key is %s", got)
	}
	server.Signal(syscall.SIGINT)
	if code := server.Wait(); code != 130 || !strings.Contains(server.Logs(), "a second signal: ending at once") {
		t.Errorf("it ended with %d:\n%s", code, server.Logs())
	}
}

func awaitStatus(t *testing.T, url string, status int) {
	t.Helper()
	for call(t, http.MethodGet, url, "").status != status {
		if t.Context().Err() != nil {
			t.Fatal(t.Context().Err())
		}
	}
}

func TestAServerStopsWhileItStarts(t *testing.T) {
	t.Parallel()
	server := servertest.Launch(t, servertest.Options{})
	server.AwaitLog("keyledger starts")
	server.Stop()
}

func TestNoSecretIsLogged(t *testing.T) {
	t.Parallel()
	const canary = "c4n4ry-c4n4ry-c4n4ry-c4n4ry-c4n4ry"
	server := servertest.Start(t, servertest.Options{Env: []string{"KEYLEDGER_JWT_SECRET=" + canary, "LOG_LEVEL=debug"}})
	key := server.Bootstrap("org_1")
	verdict(t, server.URL(), key)
	call(t, http.MethodGet, server.URL()+"/api/v1/organization/org_1/api-keys?key="+key, "", "X-API-Key", key)
	server.Stop()
	for _, secret := range []string{canary, key, server.Endpoints().Database, server.Endpoints().NATS} {
		if strings.Contains(server.Logs()+server.Output(), secret) {
			t.Errorf("%q was logged", secret)
		}
	}
	if !strings.Contains(server.Logs(), `"jwt-secret":"[redacted]"`) {
		t.Errorf("the settings are not shown:\n%s", server.Logs())
	}
}

func TestItServesTLS(t *testing.T) {
	t.Parallel()
	certificate, key := selfSigned(t)
	server := servertest.Start(t, servertest.Options{Env: []string{"KEYLEDGER_TLS_CERT=" + certificate, "KEYLEDGER_TLS_KEY=" + key}})
	if !strings.HasPrefix(server.URL(), "https://127.0.0.1:") {
		t.Errorf("it serves at %s", server.URL())
	}
	if result := server.Run("healthcheck"); result.Code != 0 {
		t.Errorf("healthcheck ended with %d: %s", result.Code, result.Stderr)
	}
	server.Bootstrap("org_1") // waits for the server
	if result := server.Run("status", "--json"); !strings.Contains(result.Stdout, `"ready":true`) {
		t.Errorf("status says %s %s", result.Stdout, result.Stderr)
	}
}

func selfSigned(t *testing.T) (certificate, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	about := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "keys.example"}, DNSNames: []string{"keys.example"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	public, err := x509.CreateCertificate(rand.Reader, about, about, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	certificate, key = filepath.Join(t.TempDir(), "tls.crt"), filepath.Join(t.TempDir(), "tls.key")
	for path, block := range map[string]*pem.Block{certificate: {Type: "CERTIFICATE", Bytes: public}, key: {Type: "PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certificate, key
}

func TestItSendsTracesWhereOpenTelemetrysVariablesSay(t *testing.T) {
	t.Parallel()
	arrived := make(chan string, 1)
	collector := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case arrived <- r.URL.Path:
		default:
		}
	}))
	defer collector.Close()
	server := servertest.Start(t, servertest.Options{Env: []string{"OTEL_EXPORTER_OTLP_ENDPOINT=" + collector.URL}})
	server.Bootstrap("org_1")
	server.Stop() // sends what has not been sent
	select {
	case path := <-arrived:
		if path != "/v1/traces" {
			t.Errorf("the collector was called at %s", path)
		}
	default:
		t.Error("no traces arrived")
	}
}

// listener takes a free address.
func listener(t *testing.T, address string) net.Listener {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}
