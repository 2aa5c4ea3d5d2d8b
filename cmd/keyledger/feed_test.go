package main_test

import (
	"bufio"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	"keyledger/internal/servertest"
)

// The feeds of a whole server: what one key does is read by another.
func TestEventsAreReadOverHTTP(t *testing.T) {
	t.Parallel()
	server := servertest.Start(t, servertest.Options{})
	system := server.BootstrapKey("--system")
	mine, other := server.Bootstrap("org_abc123"), server.Bootstrap("org_other")
	open := func(key, method, path, accept, body string) io.Reader {
		t.Helper()
		request, err := http.NewRequestWithContext(t.Context(), method, server.URL()+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("X-API-Key", key)
		request.Header.Set("Accept", accept)
		request.Header.Set("Content-Type", "application/json")
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = response.Body.Close() })
		return response.Body
	}
	const feed = "/api/v1/organizations/org_abc123/events"
	stream := bufio.NewReader(open(mine, "GET", feed, "text/event-stream", ""))
	if first, err := stream.ReadString('\n'); err != nil || first != "retry: 2000\n" {
		t.Fatalf("got %q (%v)", first, err)
	}
	open(other, "POST", "/api/v1/organizations/org_other/api-keys", "*/*", `{"name":"theirs"}`)
	open(mine, "POST", "/api/v1/organizations/org_abc123/api-keys", "*/*", `{"name":"ours"}`)
	for {
		line, err := stream.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		data, ok := strings.CutPrefix(line, "data: ")
		if !ok {
			continue
		}
		var event struct {
			Type, Organization string
			Data               map[string]any
		}
		if err := json.Unmarshal([]byte(data), &event); err != nil || event.Organization != "org_abc123" || event.Type != "keyledger.key.created" || event.Data["digest"] != nil {
			t.Fatalf("got %s (%v)", data, err)
		}
		break
	}
	for path, key := range map[string]string{feed: mine, "/api/v1/events": system.Key} {
		for _, accept := range []string{"application/json", "application/x-ndjson"} {
			body, err := io.ReadAll(open(key, "GET", path, accept, ""))
			if err != nil {
				t.Fatal(err)
			}
			created := strings.Count(string(body), `"type":"keyledger.key.created"`)
			if path == feed && created != 2 || path != feed && created != 5 || strings.Contains(string(body), "digest") || strings.Contains(string(body), "ours") {
				t.Errorf("%s as %s: %s", path, accept, body)
			}
		}
	}
	server.Stop() // with the stream still open
	if _, err := io.Copy(io.Discard, stream); err != nil {
		t.Errorf("the stream was broken off: %v", err)
	}
}
