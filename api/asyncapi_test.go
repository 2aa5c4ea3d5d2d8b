package api_test

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"keyledger/domain"
	"keyledger/eventstore"
	"keyledger/internal/asyncapitest"
	"keyledger/publisher"
)

// golden gives every event that was ever written as the message that it becomes.
func golden(t *testing.T) map[string]*nats.Msg {
	t.Helper()
	files, err := filepath.Glob("../eventstore/testdata/events/*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("no events: %v", err)
	}
	messages := map[string]*nats.Msg{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var e struct {
			Type   string
			Schema uint16
			Data   json.RawMessage
		}
		if err := json.Unmarshal(text, &e); err != nil {
			t.Fatal(err)
		}
		r := eventstore.Recorded{
			Ledger: domain.ID{6: 0x70, 8: 0x80}, Epoch: 1, Lane: domain.Lifecycle, Position: 42, ID: domain.ID{1, 6: 0x70, 8: 0x80}, Stream: eventstore.KeyStream(domain.KeyID{2}),
			Version: 2, Organization: "org_abc123", Type: e.Type, Schema: e.Schema, RecordedAt: time.Date(2026, 1, 15, 10, 0, 0, 0, time.UTC), Data: e.Data,
		}
		if e.Type == (domain.KeyUsed{}).EventName() {
			r.Lane = domain.Usage
		}
		message, err := publisher.Message(r)
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		messages[filepath.Base(file)] = message
	}
	return messages
}

func TestEveryEventIsAsTheDocumentSays(t *testing.T) {
	t.Parallel()
	document := asyncapitest.Read(t)
	described := map[string]bool{}
	for name, message := range golden(t) {
		described[document.Check(t, name, message)] = true
	}
	for _, lane := range domain.Lanes() {
		for _, typ := range publisher.Types(lane) {
			if !described[typ] {
				t.Errorf("no message of type %s was looked at", typ)
			}
			delete(described, typ)
		}
	}
	if len(described) != 0 {
		t.Errorf("these types are described and do not exist: %v", slices.Collect(maps.Keys(described)))
	}
}

// What the document promises, somebody relies on: it must refuse what breaks it.
func TestTheDocumentRefusesWhatIsNotAsItSays(t *testing.T) {
	t.Parallel()
	document := asyncapitest.Read(t)
	for name, spoil := range map[string]func(m *nats.Msg){
		"a header is missing":    func(m *nats.Msg) { m.Header.Del("ce-epoch") },
		"a header is unknown":    func(m *nats.Msg) { m.Header["ce-more"] = []string{"x"} },
		"a header is malformed":  func(m *nats.Msg) { m.Header["ce-position"] = []string{"-1"} },
		"the type is another's":  func(m *nats.Msg) { m.Header["ce-type"] = []string{"keyledger.key.created"} },
		"the subject is unknown": func(m *nats.Msg) { m.Subject += ".more" },
		"a field is missing": func(m *nats.Msg) {
			m.Data = []byte(`{"organizationId":"org_abc123","at":"2026-01-15T10:00:00.123456Z"}`)
		},
		"a field is not declared": func(m *nats.Msg) { m.Data = []byte(strings.Replace(string(m.Data), "{", `{"name":"Ada",`, 1)) },
		"a time is otherwise":     func(m *nats.Msg) { m.Data = []byte(strings.Replace(string(m.Data), ".123456Z", "Z", 1)) },
	} {
		message := golden(t)["KeyRevoked.1.json"]
		message.Header = maps.Clone(message.Header)
		spoil(message)
		if _, err := document.Compare(message); err == nil {
			t.Errorf("%s, and the document takes it", name)
		}
	}
}

// No subject of the program's is missing in the document: they are looked for in the sources.
func TestEverySubjectIsInTheDocument(t *testing.T) {
	t.Parallel()
	document := asyncapitest.Read(t)
	prefix := regexp.MustCompile(`^(?:keyledger|svc)\.[a-z]+\.`)
	literal := regexp.MustCompile(`= "((?:keyledger|svc)\.[a-z]+\.[^"*>]*)"`)
	suffix := regexp.MustCompile(`= fenceSubjects \+ "([a-z]+)"`)
	found := 0
	for _, file := range []string{"../publisher/names.go", "../natsapi/service.go"} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range literal.FindAllStringSubmatch(string(text), -1) {
			found++
			if !slices.ContainsFunc(document.Addresses(), func(a string) bool { return strings.HasPrefix(a, prefix.FindString(m[1])) }) {
				t.Errorf("%s is not in the document", m[1])
			}
		}
		for _, m := range suffix.FindAllStringSubmatch(string(text), -1) {
			found++
			if !slices.Contains(document.Addresses(), "keyledger.fence."+m[1]) {
				t.Errorf("keyledger.fence.%s is not in the document", m[1])
			}
		}
	}
	if found < 8 {
		t.Errorf("only %d subjects were found in the sources", found)
	}
}

// The constants of headers are those of the document, and no others.
func TestEveryHeaderIsInTheDocument(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../publisher/names.go")
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, m := range regexp.MustCompile(`Header\w+ += "([\w-]+)"`).FindAllStringSubmatch(string(text), -1) {
		want = append(want, m[1])
	}
	slices.Sort(want)
	if got := asyncapitest.Read(t).Headers(); len(want) == 0 || !slices.Equal(got, want) {
		t.Errorf("the document says %v, the sources %v", got, want)
	}
}
