package main_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"keyledger/internal/servertest"
)

// One key goes through every door of a real server, and every use of it is counted.
func TestEveryDoorVerifiesAndCounts(t *testing.T) {
	t.Parallel()
	server := servertest.Start(t, servertest.Options{Args: []string{"--flush-interval", "50ms"}})
	key, other := server.BootstrapKey("--organization", "org_abc123"), server.Bootstrap("org_abc123")
	askAs := func(key, method, path, body string) (int, http.Header, string) {
		t.Helper()
		request, err := http.NewRequestWithContext(t.Context(), method, server.URL()+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("X-API-Key", key)
		request.Header.Set("Content-Type", "application/json")
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = response.Body.Close() }()
		answer, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		return response.StatusCode, response.Header, string(answer)
	}
	ask := func(method, path, body string) (int, http.Header, string) {
		t.Helper()
		return askAs(key.Key, method, path, body)
	}
	question := fmt.Sprintf(`{"key":%q,"scopes":["read"]}`, key.Key)
	accepted := 0

	if _, _, body := ask("POST", "/api/v1/keys/verify", question); !strings.Contains(body, `"valid":true`) {
		t.Errorf("a verification says %s", body)
	}
	accepted++
	if _, _, body := ask("POST", "/api/v1/keys/verify/batch", `{"keys":[`+question+`,{"key":"x"},`+question+`]}`); strings.Count(body, `"valid":true`) != 2 {
		t.Errorf("a batch says %s", body)
	}
	accepted += 2
	if status, header, _ := ask("PUT", "/forward-auth/scope=write/-/files?scope=none", ""); status != http.StatusOK || header.Get("X-Keyledger-Organization-Id") != "org_abc123" {
		t.Errorf("a gateway is told %d %v", status, header)
	}
	accepted++
	if status, _, body := ask("GET", "/forward-auth?scope=system:audit", ""); status != http.StatusForbidden {
		t.Errorf("a gateway that asks for more is told %d %s", status, body)
	}

	conn, err := nats.Connect(server.Endpoints().NATS)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	reply, err := conn.Request("svc.keyledger.verify", []byte(question), 10*time.Second)
	if err != nil || !strings.Contains(string(reply.Data), `"valid":true`) {
		t.Errorf("over NATS it says %v (%v)", reply, err)
	}
	accepted++
	reply, err = conn.Request("svc.keyledger.verify", []byte(`{`), 10*time.Second)
	if err != nil || reply.Header.Get(micro.ErrorCodeHeader) != "400" {
		t.Errorf("over NATS a bad question gets %v (%v)", reply, err)
	}

	want := fmt.Sprintf(`"total":{"accepted":%d,"refused":1,"outcomes":{"VALID":%d,"INSUFFICIENT_SCOPE":1}}`, accepted, accepted)
	deadline := time.NewTimer(time.Minute)
	defer deadline.Stop()
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for {
		status, _, body := askAs(other, "GET", "/api/v1/organizations/org_abc123/keys/"+key.ID+"/usage?interval=day", "")
		if status != http.StatusOK {
			t.Fatalf("the usage is %d %s", status, body)
		}
		if strings.Contains(body, want) {
			return
		}
		select {
		case <-again.C:
		case <-deadline.C:
			t.Fatalf("the usage never says %s but %s", want, body)
		}
	}
}
