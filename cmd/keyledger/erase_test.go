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
	"github.com/klauspost/compress/zstd"
	"github.com/nats-io/nats.go"

	"keyledger/internal/servertest"
	"keyledger/publisher"
)

const canary = "canary-7f3a9c"

// Everything that people put in is called canary; after the erasure it is nowhere.
func TestAnErasedOrganizationIsNowhereToBeRead(t *testing.T) {
	t.Parallel()
	server := servertest.Start(t, servertest.Options{})
	admin := server.BootstrapKey("--organization", "org_1", "--name", canary+" first", "--user", canary+"-ada")
	other := server.BootstrapKey("--organization", "org_2", "--name", "stays")
	address := server.URL() + "/api/v1/organization/org_1/api-keys"
	var made struct {
		APIKey   struct{ ID string }
		PlainKey string
	}
	call(t, http.MethodPost, address, `{"name":"`+canary+` second"}`, "X-API-Key", admin.Key).json(t, &made)
	call(t, http.MethodPost, address, `{"name":"`+canary+` third"}`, "X-API-Key", admin.Key)
	call(t, http.MethodDelete, address+"/"+made.APIKey.ID, "", "X-API-Key", admin.Key)
	succeed(t, server, "members", "add", "--organization", "org_1", "--user", canary+"-bob")
	token := strings.TrimSpace(succeed(t, server, "token", "--user", canary+"-bob", "--organization", "org_1").Stdout)
	bearer := []string{"Authorization", "Bearer " + token}
	if list := call(t, http.MethodGet, address, "", bearer...); strings.Count(list.body, canary+" ") != 3 {
		t.Fatalf("the names are not in the list: %s", list.body)
	}
	if told := verification(t, server, admin.Key); told.Name == nil || told.Code != "VALID" {
		t.Fatalf("the verdict is %+v", told)
	}
	if told := succeed(t, server, "audit", "tail").Stdout; !strings.Contains(told, canary) {
		t.Fatalf("the tail is %s", told)
	}
	hooks := server.URL() + "/api/v1/organizations/org_1/webhooks"
	hook := `{"url":"https://hooks.example.com/` + canary + `","description":"` + canary + `","enabled":false}`
	if made := call(t, http.MethodPost, hooks, hook, "X-API-Key", admin.Key); made.status != http.StatusCreated {
		t.Fatalf("no webhook is made: %d %s", made.status, made.body)
	}
	note := awaitCheckpoint(t, server, "7")
	dir := t.TempDir()
	proof, checkpoint, file := filepath.Join(dir, "proof.json"), filepath.Join(dir, "kept.note"), filepath.Join(dir, "log.ndjson.zst")
	if err := os.WriteFile(checkpoint, []byte(note), 0o600); err != nil {
		t.Fatal(err)
	}
	public := strings.TrimSpace(succeed(t, server, "audit", "key").Stdout)
	succeed(t, server, "audit", "prove", "1", "--output", proof)

	// What would be done, and that it is not done unasked.
	var would struct{ Keys, Active, Members int }
	result := succeed(t, server, "erase", "--organization", "org_1", "--dry-run", "--json")
	if err := json.Unmarshal([]byte(result.Stdout), &would); err != nil || would.Keys != 3 || would.Active != 2 || would.Members != 1 {
		t.Errorf("the dry run says %s (%v)", result.Stdout, err)
	}
	if result := server.Run("erase", "--organization", "org_1"); result.Code != 2 || !strings.Contains(result.Stderr, "2 active keys") {
		t.Errorf("nobody was asked: %d %s", result.Code, result.Stderr)
	}
	if result := server.Run("erase", "--organization", "org_nobody", "--yes"); result.Code != 1 {
		t.Errorf("an organization that nobody knows is erased: %d %s", result.Code, result.Stderr)
	}
	if code := verdict(t, server.URL(), admin.Key); code != "VALID" {
		t.Errorf("before the erasure the key is %s", code)
	}

	var done struct {
		Changed bool
		Revoked int
	}
	result = succeed(t, server, "erase", "--organization", "org_1", "--reason", "ticket 4711", "--yes", "--json")
	if err := json.Unmarshal([]byte(result.Stdout), &done); err != nil || !done.Changed || done.Revoked != 2 {
		t.Errorf("the erasure says %s (%v)", result.Stdout, err)
	}
	if result = succeed(t, server, "erase", "--organization", "org_1", "--yes", "--json"); !strings.Contains(result.Stdout, `"changed":false`) {
		t.Errorf("the second erasure says %s", result.Stdout)
	}

	// The server that ran all along.
	told := verification(t, server, admin.Key)
	for poll := time.NewTicker(20 * time.Millisecond); told.Name != nil; <-poll.C {
		told = verification(t, server, admin.Key)
	}
	if told.Code != "REVOKED" {
		t.Errorf("the verdict is %+v", told)
	}
	nowhere := func(what, text string) {
		t.Helper()
		if i := strings.Index(text, canary); i >= 0 {
			t.Errorf("%s still has %.200s", what, text[max(0, i-80):])
		}
	}
	everywhere := func() {
		t.Helper()
		list := call(t, http.MethodGet, address, "", bearer...)
		if list.status != 200 || strings.Count(list.body, `"name":null`) != 3 || strings.Count(list.body, `"createdByUserId":null`) != 3 {
			t.Errorf("the list is %d %s", list.status, list.body)
		}
		nowhere("the list", list.body)
		nowhere("the list of the past", call(t, http.MethodGet, address+"?at=3", "", bearer...).body)
		log := call(t, http.MethodGet, server.URL()+"/api/v1/organizations/org_1/audit-log", "", bearer...)
		if log.status != 200 || !strings.Contains(log.body, "[erased]") || !strings.Contains(log.body, "ticket 4711") {
			t.Errorf("the audit log is %d %s", log.status, log.body)
		}
		nowhere("the audit log", log.body)
		for _, command := range [][]string{
			{"audit", "tail"},
			{"audit", "tail", "--json"},
			{"audit", "state", "--json"},
			{"audit", "state", "--at", "4"},
			{"audit", "diff", "--from", "1"},
			{"audit", "history", made.APIKey.ID},
			{"members", "list", "--organization", "org_1", "--json"},
		} {
			nowhere(strings.Join(command, " "), succeed(t, server, command...).Stdout)
		}
	}
	everywhere()
	if refused := call(t, http.MethodPost, address, `{"name":"again"}`, bearer...); refused.status != http.StatusForbidden {
		t.Errorf("a key is made in an erased organization: %d %s", refused.status, refused.body)
	}
	if refused := call(t, http.MethodPost, hooks, hook, bearer...); refused.status != http.StatusForbidden {
		t.Errorf("a webhook is made for an erased organization: %d %s", refused.status, refused.body)
	}
	if result := server.Run("members", "add", "--organization", "org_1", "--user", "user_new"); result.Code != 1 || !strings.Contains(result.Stderr, "erased") {
		t.Errorf("a member is added to an erased organization: %d %s", result.Code, result.Stderr)
	}
	if code := verdict(t, server.URL(), other.Key); code != "VALID" {
		t.Errorf("a key of another organization is %s", code)
	}

	// Proofs and audits hold; the file names who is erased.
	if told := succeed(t, server, "audit", "check", proof, "--key", public).Stdout; !strings.HasPrefix(told, "PROVEN") {
		t.Errorf("the proof of before says %s", told)
	}
	succeed(t, server, "audit", "prove", "1", "--output", proof)
	if v := verify(t, server, 0, "--checkpoint", checkpoint, "--key", public); !v.OK {
		t.Errorf("the audit says %+v", v)
	}
	succeed(t, server, "audit", "export", "-o", file, "--data-keys")
	exported := readZstd(t, file)
	nowhere("the export", exported)
	if header, _, _ := strings.Cut(exported, "\n"); !strings.Contains(header, `"erased":["org_1"]`) || strings.Contains(header, `"organization":"org_1"`) {
		t.Errorf("the export begins with %s", header)
	}
	succeed(t, server, "audit", "verify", "--file", file, "--key", public)

	// What lies below: tables, streams, and what the server said.
	conn, err := pgx.Connect(t.Context(), server.Endpoints().DatabaseAdmin)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context()) //nolint:errcheck // the test ends
	rows, err := conn.Query(t.Context(), `SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname = 'public'`)
	if err != nil {
		t.Fatal(err)
	}
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil || len(tables) < 10 {
		t.Fatalf("there are %d tables (%v)", len(tables), err)
	}
	for _, table := range tables {
		var text strings.Builder
		if _, err := conn.PgConn().CopyTo(t.Context(), &text, `COPY (SELECT * FROM `+table+`) TO STDOUT`); err != nil {
			t.Fatal(err)
		}
		nowhere(table, text.String())
	}
	nowhere("the server's log", server.Logs())
	nc, err := nats.Connect(server.Endpoints().NATS)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := nc.JetStream()
	if err != nil {
		t.Fatal(err)
	}
	stream, err := js.StreamInfo(publisher.LifecycleStream)
	if err != nil {
		t.Fatal(err)
	}
	for sequence := stream.State.FirstSeq; sequence <= stream.State.LastSeq; sequence++ {
		message, err := js.GetMsg(publisher.LifecycleStream, sequence)
		if err != nil {
			t.Fatal(err)
		}
		nowhere("a message", string(message.Data))
	}

	// A fold of the log alone, and a server that never knew.
	succeed(t, server, "replay", "--dry-run")
	succeed(t, server, "replay")
	everywhere()
	server.Stop()
	server = servertest.Start(t, servertest.Options{DataDir: server.DataDir()})
	address = server.URL() + "/api/v1/organization/org_1/api-keys"
	if told := verification(t, server, admin.Key); told.Code != "REVOKED" || told.Name != nil {
		t.Errorf("after a restart the verdict is %+v", told)
	}
	everywhere()
}

type toldOfKey struct {
	Code string
	Name *string
}

func verification(t *testing.T, server *servertest.Server, key string) (told toldOfKey) {
	t.Helper()
	call(t, http.MethodPost, server.URL()+"/api/v1/keys/verify", `{"key":"`+key+`"}`).json(t, &told)
	return told
}

func readZstd(t *testing.T, path string) string {
	t.Helper()
	compressed, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	decoder, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer decoder.Close()
	text, err := decoder.DecodeAll(compressed, nil)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
