package main_test

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"keyledger/internal/servertest"
	"keyledger/internal/testkit"
)

// verified is what keyledger audit verify --json prints.
type verified struct {
	OK     bool
	Faults []struct {
		Lane     string
		Position uint64
		Fault    string
	}
	Lanes []struct {
		Lane             string
		Through, Covered uint64
	}
}

func verify(t *testing.T, server *servertest.Server, code int, arguments ...string) verified {
	t.Helper()
	result := server.Run(append([]string{"audit", "verify", "--json"}, arguments...)...)
	var v verified
	if err := json.Unmarshal([]byte(result.Stdout), &v); err != nil || result.Code != code {
		t.Fatalf("verify ended with %d and printed %s (%v): %s", result.Code, result.Stdout, err, result.Stderr)
	}
	return v
}

// awaitCheckpoint gives a checkpoint that covers so many events of the lifecycle.
func awaitCheckpoint(t *testing.T, server *servertest.Server, size string) string {
	t.Helper()
	poll := time.NewTicker(50 * time.Millisecond)
	defer poll.Stop()
	for started := time.Now(); time.Since(started) < time.Minute; <-poll.C {
		note := call(t, http.MethodGet, server.URL()+"/api/v1/log/lifecycle/checkpoint", "").body
		if lines := strings.Split(note, "\n"); len(lines) > 2 && lines[1] == size {
			return note
		}
	}
	t.Fatal("no checkpoint covers " + size + " events")
	return ""
}

func TestWhatHappenedIsProvenAndVerified(t *testing.T) {
	t.Parallel()
	server := servertest.Start(t, servertest.Options{})
	admin := server.BootstrapKey("--organization", "org_1")
	address := server.URL() + "/api/v1/organization/org_1/api-keys"
	for _, name := range []string{"one", "two", "three"} {
		call(t, http.MethodPost, address, `{"name":"`+name+`"}`, "X-API-Key", admin.Key)
	}
	var list struct {
		APIKeys []struct{ ID, Name, Status string }
	}
	call(t, http.MethodGet, address, "", "X-API-Key", admin.Key).json(t, &list)
	call(t, http.MethodDelete, address+"/"+list.APIKeys[0].ID, "", "X-API-Key", admin.Key)
	dir := t.TempDir()
	checkpoint := filepath.Join(dir, "kept.note")
	if err := os.WriteFile(checkpoint, []byte(awaitCheckpoint(t, server, "6")), 0o600); err != nil {
		t.Fatal(err)
	}
	public := strings.TrimSpace(succeed(t, server, "audit", "key").Stdout)

	v := verify(t, server, 0, "--checkpoint", checkpoint, "--key", public)
	if !v.OK || len(v.Lanes) != 2 || v.Lanes[0].Covered != 6 {
		t.Errorf("the audit says %+v", v)
	}

	// The past, on the command line and over HTTP.
	if state := succeed(t, server, "audit", "state", "--at", "2", "--json").Stdout; strings.Count(state, `"id"`) != 2 {
		t.Errorf("at position 2 the keys are %s", state)
	}
	call(t, http.MethodGet, address+"?at=4", "", "X-API-Key", admin.Key).json(t, &list)
	if len(list.APIKeys) != 4 || list.APIKeys[0].Status != "active" {
		t.Errorf("at position 4 the list is %+v", list)
	}
	if told := succeed(t, server, "audit", "history", list.APIKeys[0].ID).Stdout; !strings.Contains(told, `as "three"`) || !strings.Contains(told, "revoked key") || !strings.Contains(told, "no verifier accepts") {
		t.Errorf("the key's life is told as %s", told)
	}
	if told := succeed(t, server, "audit", "diff", "--from", "4").Stdout; strings.Count(told, "\n") != 2 || !strings.Contains(told, "KeyRevoked") || !strings.Contains(told, "RevocationFenced") {
		t.Errorf("since position 4 this has changed: %s", told)
	}
	if told := succeed(t, server, "audit", "tail", "--types", "KeyCreated").Stdout; strings.Count(told, "\n") != 4 {
		t.Errorf("the tail is %s", told)
	}
	events := call(t, http.MethodGet, server.URL()+"/api/v1/organizations/org_1/audit-log?types=KeyRevoked", "", "X-API-Key", admin.Key)
	if events.status != 200 || strings.Count(events.body, `"position":5`) != 1 {
		t.Errorf("the audit log is %d %s", events.status, events.body)
	}

	// A proof, and a file, each verified with nothing but the public key.
	proof, file := filepath.Join(dir, "proof.json"), filepath.Join(dir, "log.ndjson.zst")
	succeed(t, server, "audit", "prove", "3", "--output", proof)
	alone := func(code int, arguments ...string) string {
		t.Helper()
		result := servertest.Run(t, servertest.Command{Args: arguments, Env: []string{"KEYLEDGER_DATA_DIR=" + filepath.Join(dir, "nothing")}})
		if result.Code != code {
			t.Errorf("%v ended with %d: %s%s", arguments, result.Code, result.Stdout, result.Stderr)
		}
		return result.Stdout
	}
	if told := alone(0, "audit", "check", proof, "--key", public); !strings.HasPrefix(told, "PROVEN: lifecycle 3 is a KeyCreated of org_1") {
		t.Errorf("the proof says %s", told)
	}
	alone(1, "audit", "check", proof, "--key", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=")
	succeed(t, server, "audit", "export", "-o", file, "--organization", "org_1")
	alone(0, "audit", "verify", "--file", file, "--key", public, "--checkpoint", checkpoint)

	// Somebody who owns the database changes one byte.
	conn, err := pgx.Connect(t.Context(), server.Endpoints().DatabaseAdmin)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context()) //nolint:errcheck // the test ends
	if _, err := conn.Exec(t.Context(), `SET session_replication_role = replica;
		UPDATE events SET data = set_byte(data, octet_length(data) - 4, get_byte(data, octet_length(data) - 4) # 1) WHERE lane = 'lifecycle' AND position = 3`); err != nil {
		t.Fatal(err)
	}
	v = verify(t, server, 1, "--checkpoint", checkpoint)
	if last := v.Faults[len(v.Faults)-1]; last.Position != 3 || last.Fault != "the stream's message is not the log's event" {
		t.Errorf("the stream was told something else, and the audit says %+v", v)
	}
	if v.OK || len(v.Faults) == 0 || v.Faults[0].Lane != "lifecycle" || v.Faults[0].Position != 3 {
		t.Errorf("the audit says %+v", v)
	}
	if result := server.Run("audit", "prove", "3"); result.Code != 1 || !strings.Contains(result.Stderr, "not the one that was signed") {
		t.Errorf("what was changed is proven: %d %s", result.Code, result.Stderr)
	}
}

func TestALedgerMovesByAFile(t *testing.T) {
	t.Parallel()
	server := servertest.Start(t, servertest.Options{})
	admin := server.BootstrapKey("--organization", "org_1", "--name", "moves along")
	awaitCheckpoint(t, server, "1")
	public := strings.TrimSpace(succeed(t, server, "audit", "key").Stdout)
	file := filepath.Join(t.TempDir(), "log.ndjson.zst")
	succeed(t, server, "audit", "export", "-o", file, "--data-keys")
	target := testkit.Dir(t)
	env := []string{"KEYLEDGER_DATA_DIR=" + target, "KEYLEDGER_MASTER_KEY_FILE=" + filepath.Join(server.DataDir(), "master.key")}
	if result := servertest.Run(t, servertest.Command{Args: []string{"audit", "import", file, "--key", public}, Env: env}); result.Code != 0 {
		t.Fatalf("import ended with %d: %s", result.Code, result.Stderr)
	}
	moved := servertest.Start(t, servertest.Options{DataDir: target, Env: env[1:]})
	if code := verdict(t, moved.URL(), admin.Key); code != "VALID" {
		t.Errorf("the key that moved along is %s", code)
	}
}
