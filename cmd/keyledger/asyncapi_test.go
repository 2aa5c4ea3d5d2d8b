package main_test

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"keyledger/api"
	"keyledger/internal/asyncapitest"
	"keyledger/internal/servertest"
)

// What a whole server says on NATS is what the document says that it says.
func TestMessagesAreAsTheAsyncAPIDocumentSays(t *testing.T) {
	t.Parallel()
	document := asyncapitest.Read(t)
	server := servertest.Start(t, servertest.Options{Args: []string{"--flush-interval", "50ms"}})
	nc, err := nats.Connect(server.Endpoints().NATS)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	between := make(chan *nats.Msg, 1000)
	for _, subject := range []string{"keyledger.wake.*", "keyledger.fence.*"} {
		if _, err := nc.ChanSubscribe(subject, between); err != nil {
			t.Fatal(err)
		}
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	admin, key := server.Bootstrap("org_abc123"), server.BootstrapKey("--organization", "org_abc123")
	server.Run("members", "add", "--organization", "org_abc123", "--user", "ada", "--role", "owner")
	ask := func(question string) *nats.Msg {
		t.Helper()
		answer, err := nc.Request("svc.keyledger.verify", []byte(question), 10*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		return answer
	}
	for _, question := range []string{`{"key":"` + key.Key + `","scopes":["read"]}`, `{"key":"nonsense"}`} {
		for message, text := range map[string][]byte{"question": []byte(question), "verdict": ask(question).Data} {
			if err := document.ComparePayload(message, text); err != nil {
				t.Errorf("%s: %v", text, err)
			}
		}
	}
	failure := ask(`{"keys":1}`)
	if err := document.ComparePayload("failure", failure.Data); err != nil || failure.Header.Get("Nats-Service-Error-Code") != "400" {
		t.Errorf("%s %v: %v", failure.Data, failure.Header, err)
	}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodDelete, server.URL()+"/api/v1/organizations/org_abc123/api-keys/"+key.ID, nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("X-API-Key", admin)
	response, err := http.DefaultClient.Do(request)
	if err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("%v %v", response, err)
	}
	_ = response.Body.Close()

	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	wanted := map[string]bool{
		"keyledger.key.created": true, "keyledger.key.revoked": true, "keyledger.key.fenced": true, "keyledger.key.used": true, "keyledger.organization.member_added": true,
	}
	for _, stream := range []string{"KEYLEDGER_LIFECYCLE", "KEYLEDGER_USAGE"} {
		consumer, err := js.OrderedConsumer(t.Context(), stream, jetstream.OrderedConsumerConfig{})
		if err != nil {
			t.Fatal(err)
		}
		for len(wanted) > 0 && (stream != "KEYLEDGER_LIFECYCLE" || len(wanted) > 1) {
			message, err := consumer.Next(jetstream.FetchMaxWait(30 * time.Second))
			if err != nil {
				t.Fatalf("%v are missing: %v", wanted, err)
			}
			delete(wanted, document.Check(t, message.Subject(), &nats.Msg{Subject: message.Subject(), Header: message.Headers(), Data: message.Data()}))
		}
	}
	for subject := ""; !strings.HasPrefix(subject, "keyledger.wake."); {
		message := <-between
		subject = message.Subject
		name := map[string]string{"keyledger.fence.confirmed": "confirmed", "keyledger.fence.ask": "ask", "keyledger.fence.softask": "ask"}[subject]
		if strings.HasPrefix(subject, "keyledger.wake.") {
			name = "wake"
		}
		if err := document.ComparePayload(name, append(append([]byte{'"'}, message.Data...), '"')); err != nil {
			t.Errorf("%s %s: %v", subject, message.Data, err)
		}
	}

	response, err = http.Get(server.URL() + "/api/v1/asyncapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	if served, err := io.ReadAll(response.Body); err != nil || !bytes.Equal(served, api.AsyncAPI) || response.Header.Get("Content-Type") != "application/yaml" {
		t.Errorf("%d bytes are served (%v)", len(served), err)
	}
}
