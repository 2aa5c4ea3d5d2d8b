package faults_test

import (
	"bytes"
	"encoding/json"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"keyledger/internal/servertest"
)

// A plain key is shown once. It stands in no file of the data directory (tables,
// write-ahead log, streams, Postgres's own log), in no log line at the most
// talkative level, and in no answer but the one that shows it.
func TestAPlainKeyStandsNowhere(t *testing.T) {
	t.Parallel()
	server := servertest.Start(t, servertest.Options{Env: []string{"LOG_LEVEL=debug"}})
	c := client{t: t, base: server.URL(), key: server.Bootstrap(organization, "--rate-limit", "0")}
	canaries := []string{c.key}
	var answers []string
	call := func(method, path, body string) string {
		t.Helper()
		_, _, text := c.do(method, path, body)
		return text
	}

	var bullseye struct {
		Key   struct{ ID string } `json:"apiKey"`
		Plain string              `json:"plainKey"`
	}
	mustUnmarshal(t, call(http.MethodPost, c.keys(), `{"name":"one"}`), &bullseye)
	var bunship struct {
		Data struct{ ID, Key string } `json:"data"`
	}
	bunshipKeys := "/api/v1/organizations/" + organization + "/api-keys"
	mustUnmarshal(t, call(http.MethodPost, bunshipKeys, `{"name":"two","scopes":["read"]}`), &bunship)
	canaries = append(canaries, bullseye.Plain, bunship.Data.Key)

	for _, canary := range canaries[1:] {
		quoted, err := json.Marshal(canary)
		if err != nil {
			t.Fatal(err)
		}
		for _, body := range []string{
			`{"key":` + string(quoted) + `}`, `{"key":` + string(quoted) + `,"scopes":["write"]}`, `{"key":` + string(quoted) + `,"key":1}`, `{"name":` + string(quoted) + `,`,
			`{"key":` + string(quoted) + `,"scopes":[` + string(quoted) + `]}`, `{"key":` + string(quoted) + `,"organizationId":` + string(quoted) + `}`, canary,
		} {
			answers = append(answers, call(http.MethodPost, "/api/v1/keys/verify", body), call(http.MethodPost, c.keys(), strings.Replace(body, `"key"`, `"expiresAt"`, 1)))
		}
		answers = append(answers,
			call(http.MethodGet, "/api/v1/"+canary, ""), call(http.MethodGet, c.keys()+"/"+canary, ""), call(http.MethodDelete, c.keys()+"/"+canary, ""),
			call(http.MethodGet, bunshipKeys+"?cursor="+canary, ""), call(http.MethodGet, "/api/v1/organization/"+canary+"/api-keys", ""))
	}
	for _, key := range []string{bullseye.Plain, bunship.Data.Key} { // as credentials, good and then revoked
		used := client{t: t, base: c.base, key: key}
		_, _, text := used.do(http.MethodGet, c.keys(), "")
		answers = append(answers, text)
	}
	answers = append(answers, call(http.MethodDelete, c.keys()+"/"+bullseye.Key.ID, ""), call(http.MethodDelete, bunshipKeys+"/"+bunship.Data.ID, ""))
	for _, key := range []string{bullseye.Plain, bunship.Data.Key} {
		used := client{t: t, base: c.base, key: key}
		_, _, text := used.do(http.MethodGet, c.keys(), "")
		answers = append(answers, text)
	}
	answers = append(answers, call(http.MethodGet, c.keys(), ""), call(http.MethodGet, bunshipKeys, ""), call(http.MethodGet, "/metrics", ""), call(http.MethodGet, "/healthz", ""))
	server.Stop() // uses are flushed, files are written

	for _, canary := range canaries {
		secret := canary[13:] // what is not shown as the key's prefix
		for _, answer := range answers {
			if strings.Contains(answer, secret) {
				t.Errorf("an answer holds a plain key: %s", answer)
			}
		}
		if strings.Contains(server.Logs(), secret) || strings.Contains(server.Output(), secret) {
			t.Error("a log line holds a plain key")
		}
	}
	err := filepath.WalkDir(server.DataDir(), func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, canary := range canaries {
			if bytes.Contains(content, []byte(canary[13:])) {
				t.Errorf("%s holds a plain key", path)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func mustUnmarshal(t testing.TB, text string, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), into); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
}

func readAll(t testing.TB, r io.Reader) string {
	t.Helper()
	text, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
