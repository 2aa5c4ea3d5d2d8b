package main_test

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"keyledger/internal/servertest"
	"keyledger/internal/testkit"
)

// succeed runs a command that is expected to end well.
func succeed(t *testing.T, server *servertest.Server, arguments ...string) servertest.Result {
	t.Helper()
	result := server.Run(arguments...)
	if result.Code != 0 {
		t.Fatalf("%v ended with %d: %s", arguments, result.Code, result.Stderr)
	}
	return result
}

func TestCommandsWorkBesideARunningServer(t *testing.T) {
	t.Parallel()
	server := servertest.Start(t, servertest.Options{})

	// A key goes to standard output alone, and the server knows it at once.
	result := succeed(t, server, "bootstrap", "--organization", "org_1", "--user", "user_1", "--name", "CI", "--rate-limit", "0")
	key := strings.TrimSuffix(result.Stdout, "\n")
	if !regexp.MustCompile(`^bsk_live_[0-9a-f]{32}$`).MatchString(key) || strings.Contains(result.Stderr, key) {
		t.Errorf("bootstrap printed %q and said %q", result.Stdout, result.Stderr)
	}
	var verdict struct {
		Code, Name string
		Scopes     []string
		RateLimit  *struct{}
	}
	call(t, http.MethodPost, server.URL()+"/api/v1/keys/verify", `{"key":"`+key+`"}`).json(t, &verdict)
	if verdict.Code != "VALID" || verdict.Name != "CI" || verdict.RateLimit != nil || strings.Join(verdict.Scopes, " ") != "admin *" {
		t.Errorf("the key is %+v", verdict)
	}

	result = succeed(t, server, "bootstrap", "--organization", "org_1", "--scopes", "read,agency:read", "--json")
	if !regexp.MustCompile(`^\{"id":"key_[0-9A-Z]{26}","organizationId":"org_1","key":"bsk_live_[0-9a-f]{32}"\}\n$`).MatchString(result.Stdout) {
		t.Errorf("bootstrap --json printed %q", result.Stdout)
	}
	system := server.BootstrapKey("--system")
	call(t, http.MethodPost, server.URL()+"/api/v1/keys/verify", `{"key":"`+system.Key+`","scopes":["system:audit"]}`).json(t, &verdict)
	if verdict.Code != "VALID" || system.OrganizationID != "system" {
		t.Errorf("the system key of %s is %+v", system.OrganizationID, verdict)
	}
	// Waiting for the server has used none of the keys.
	var list struct {
		Data []struct{ LastUsedAt *string }
	}
	call(t, http.MethodGet, server.URL()+"/api/v1/organizations/org_1/api-keys", "", "X-API-Key", key).json(t, &list)
	if len(list.Data) != 2 || list.Data[0].LastUsedAt != nil {
		t.Errorf("the list is %+v", list)
	}

	holdsMembers(t, server)
	holdsTokens(t, server)
	holdsStatus(t, server)

	if result := succeed(t, server, "migrate"); !strings.Contains(result.Stderr, "is at version") {
		t.Errorf("migrate said %q", result.Stderr)
	}
	if result := server.Run("stream", "rebuild"); result.Code != 2 || !strings.Contains(result.Stderr, "Say --yes") {
		t.Errorf("stream rebuild without --yes ended with %d: %s", result.Code, result.Stderr)
	}
	if result := succeed(t, server, "stream", "rebuild", "--yes"); !strings.Contains(result.Stderr, "Stream KEYLEDGER_LIFECYCLE has the log up to position") {
		t.Errorf("stream rebuild said %q", result.Stderr)
	}
}

func holdsMembers(t *testing.T, server *servertest.Server) {
	t.Helper()
	succeed(t, server, "members", "add", "--organization", "org_1", "--user", "user_2", "--role", "owner")
	succeed(t, server, "members", "add", "--organization", "org_1", "--user", "user_1")
	if result := succeed(t, server, "members", "add", "--organization", "org_1", "--user", "user_1"); !strings.Contains(result.Stderr, "already") {
		t.Errorf("adding a member again said %q", result.Stderr)
	}
	var members []struct{ User, Role string }
	if err := json.Unmarshal([]byte(succeed(t, server, "members", "list", "--organization", "org_1", "--json").Stdout), &members); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]struct{ User, Role string }{{"user_1", "member"}, {"user_2", "owner"}}, members); diff != "" {
		t.Error(diff)
	}
	table := succeed(t, server, "members", "list", "--organization", "org_1").Stdout
	if !regexp.MustCompile(`^USER +ROLE +SINCE\nuser_1 +member +2\S+Z\nuser_2 +owner +2\S+Z\n$`).MatchString(table) {
		t.Errorf("the table is\n%s", table)
	}
	succeed(t, server, "members", "remove", "--organization", "org_1", "--user", "user_2")
	if text := succeed(t, server, "members", "list", "--organization", "org_1").Stdout; strings.Contains(text, "user_2") {
		t.Errorf("after the removal the table is\n%s", text)
	}
}

func holdsTokens(t *testing.T, server *servertest.Server) {
	t.Helper()
	status := func(organization string, arguments ...string) int {
		token := strings.TrimSpace(succeed(t, server, append([]string{"token"}, arguments...)...).Stdout)
		return call(t, http.MethodGet, server.URL()+"/api/v1/organizations/"+organization+"/api-keys", "", "Authorization", "Bearer "+token).status
	}
	for _, test := range []struct {
		organization string
		arguments    []string
		want         int
	}{
		{"org_1", []string{"--user", "user_9", "--organization", "org_1"}, http.StatusOK},
		{"org_1", []string{"--user", "user_1"}, http.StatusOK},        // a member, as the ledger says
		{"org_1", []string{"--user", "user_2"}, http.StatusForbidden}, // no member any more
		{"org_2", []string{"--user", "user_9", "--organization", "org_1"}, http.StatusForbidden},
		{"org_1", []string{"--user", "user_1", "--jwt-secret", "another secret than the server's"}, http.StatusUnauthorized},
	} {
		if got := status(test.organization, test.arguments...); got != test.want {
			t.Errorf("a token of %v gets %d for %s, want %d", test.arguments, got, test.organization, test.want)
		}
	}
	var printed struct{ Token, ExpiresAt string }
	if err := json.Unmarshal([]byte(succeed(t, server, "token", "--user", "user_1", "--json").Stdout), &printed); err != nil || printed.Token == "" || printed.ExpiresAt == "" {
		t.Errorf("token --json printed %+v: %v", printed, err)
	}
}

func holdsStatus(t *testing.T, server *servertest.Server) {
	t.Helper()
	type following struct {
		Name, State   string
		Position, Lag int
	}
	var status struct {
		Epoch  int
		Server *struct{ Ready bool }
		Log    []struct {
			Lane     string
			Position int
		}
		Streams, Projections []following
	}
	if err := json.Unmarshal([]byte(succeed(t, server, "status", "--json").Stdout), &status); err != nil {
		t.Fatal(err)
	}
	if status.Epoch != 1 || status.Server == nil || !status.Server.Ready || len(status.Log) != 2 || status.Log[0].Position == 0 {
		t.Errorf("the status is %+v", status)
	}
	var names []string
	for _, f := range append(status.Streams, status.Projections...) {
		names = append(names, f.Name)
		if f.State != "ok" && f.State != "behind" || f.Position == 0 && f.Lag == 0 && f.Name != "usage" && f.Name != "KEYLEDGER_USAGE" {
			t.Errorf("%s is %+v", f.Name, f)
		}
	}
	if diff := cmp.Diff([]string{"KEYLEDGER_LIFECYCLE", "KEYLEDGER_USAGE", "keylist", "usage", "organizations", "verification"}, names); diff != "" {
		t.Error(diff)
	}
	if table := succeed(t, server, "status").Stdout; !strings.Contains(table, "KEYLEDGER_LIFECYCLE  lifecycle") || !strings.Contains(table, "Server "+server.URL()) {
		t.Errorf("the table is\n%s", table)
	}
}

func TestCommandsWorkWithoutAServer(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(testkit.Dir(t), "data")
	run := func(arguments ...string) servertest.Result {
		t.Helper()
		return servertest.Run(t, servertest.Command{Args: arguments, Env: []string{"KEYLEDGER_DATA_DIR=" + dir}})
	}
	result := run("bootstrap", "--organization", "org_1")
	if result.Code != 0 || !strings.HasPrefix(result.Stdout, "bsk_live_") {
		t.Fatalf("bootstrap ended with %d: %s", result.Code, result.Stderr)
	}
	key := strings.TrimSpace(result.Stdout)
	if _, err := os.Stat(filepath.Join(dir, "postgres", "data", "postmaster.pid")); err == nil {
		t.Error("bootstrap left its Postgres behind")
	}
	if result := run("members", "add", "--organization", "org_1", "--user", "user_1"); result.Code != 0 {
		t.Errorf("members add ended with %d: %s", result.Code, result.Stderr)
	}
	if result := run("status"); result.Code != 0 || !strings.Contains(result.Stdout, "No server runs") || !strings.Contains(result.Stdout, "missing") {
		t.Errorf("status ended with %d: %s%s", result.Code, result.Stdout, result.Stderr)
	}
	if result := run("replay"); result.Code != 0 || !strings.Contains(result.Stderr, "keylist: the result equals what stood there") {
		t.Errorf("replay ended with %d: %s", result.Code, result.Stderr)
	}
	token := strings.TrimSpace(run("token", "--user", "user_1").Stdout)

	server := servertest.Start(t, servertest.Options{DataDir: dir})
	if got := verdict(t, server.URL(), key); got != "VALID" {
		t.Errorf("the server finds the key %s", got)
	}
	if got := call(t, http.MethodGet, server.URL()+"/api/v1/organizations/org_1/api-keys", "", "Authorization", "Bearer "+token); got.status != http.StatusOK {
		t.Errorf("the server answers the token with %d: %s", got.status, got.body)
	}
}

func TestAReplaySaysWhetherTheProjectionsAreWhatTheLogSays(t *testing.T) {
	t.Parallel()
	server := servertest.Start(t, servertest.Options{})
	key := server.Bootstrap("org_1")
	verdict(t, server.URL(), key)
	if result := succeed(t, server, "replay"); !strings.Contains(result.Stderr, "keylist: the result equals what stood there") ||
		!strings.Contains(result.Stderr, "usage: the result equals what stood there") {
		t.Errorf("replay said %s", result.Stderr)
	}

	conn, err := pgx.Connect(t.Context(), server.Endpoints().DatabaseAdmin)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	if _, err := conn.Exec(t.Context(), `UPDATE keylist SET name = 'somebody changed this'`); err != nil {
		t.Fatal(err)
	}
	for _, arguments := range [][]string{{"replay", "--dry-run"}, {"replay", "--json"}} {
		result := server.Run(arguments...)
		if result.Code != 1 || !strings.Contains(result.Stderr, "keylist: DIFFERENT in keylist") {
			t.Errorf("%v ended with %d: %s", arguments, result.Code, result.Stderr)
		}
		if arguments[1] == "--json" {
			var reports []struct {
				Projection      string
				Equal, Replaced bool
			}
			if err := json.Unmarshal([]byte(result.Stdout), &reports); err != nil || len(reports) != 3 || reports[0].Equal || !reports[0].Replaced || !reports[1].Equal || !reports[2].Equal {
				t.Errorf("replay --json printed %s: %v", result.Stdout, err)
			}
		}
	}
	succeed(t, server, "replay") // it was put right
}

func TestARaisedEpochEndsTheServerAndAReplayLetsItStart(t *testing.T) {
	t.Parallel()
	server := servertest.Start(t, servertest.Options{})
	key := server.Bootstrap("org_1")
	result := succeed(t, server, "epoch", "raise", "--reason", "a test", "--yes")
	if !strings.Contains(result.Stderr, "is in epoch 2 now") {
		t.Errorf("epoch raise said %s", result.Stderr)
	}
	if code := server.Wait(); code != 3 || !strings.Contains(server.Logs(), "Start it again") {
		t.Fatalf("the server ended with %d:\n%s", code, server.Logs())
	}
	if result := server.Run("replay"); result.Code != 1 || !strings.Contains(result.Stderr, "the replayed state is in place") {
		t.Errorf("replay ended with %d: %s", result.Code, result.Stderr)
	}
	succeed(t, server, "stream", "rebuild", "--yes")
	server = servertest.Start(t, servertest.Options{DataDir: server.DataDir()})
	if got := verdict(t, server.URL(), key); got != "VALID" {
		t.Errorf("in the new epoch the key is %s", got)
	}
}
