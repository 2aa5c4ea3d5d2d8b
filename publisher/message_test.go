package publisher_test

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/v2/binding"
	"github.com/cloudevents/sdk-go/v2/binding/spec"
	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"

	"keyledger/domain"
	"keyledger/eventstore"
	"keyledger/publisher"
)

var recordedAt = time.Date(2026, 1, 15, 10, 0, 0, 123456000, time.UTC)

func sample(e domain.Event) eventstore.Recorded {
	r := event(id("ledger", 0, 1), 3, domain.Lifecycle, 42, recordedAt)
	r.Type, r.Stream, r.Version = e.EventName(), eventstore.OrganizationStream("org_abc123"), 7
	r.Data = []byte(`{"organizationId":"org_abc123"}`)
	switch e.(type) {
	case domain.KeyCreated, domain.KeyRevoked, domain.RevocationFenced:
		r.Stream = eventstore.KeyStream(domain.KeyID(id("key", 0, 1)))
	case domain.KeyUsed:
		r.Lane, r.Stream = domain.Usage, eventstore.UsageStream(id("boot", 0, 1))
	}
	return r
}

func everyEvent() []domain.Event {
	return []domain.Event{domain.KeyCreated{}, domain.KeyRevoked{}, domain.RevocationFenced{}, domain.KeyUsed{}, domain.MemberAdded{}, domain.MemberRemoved{}, domain.OrganizationErased{}}
}

// What stands here is what subscribers have been written against: it never changes.
func TestTheWireStaysAsItIs(t *testing.T) {
	t.Parallel()
	key := domain.KeyID(id("key", 0, 1)).String()
	organization := "org_abc123"
	want := map[string]struct{ subject, typ, about, lane string }{
		"KeyCreated":         {"keyledger.lifecycle.org_abc123." + key + ".created", "keyledger.key.created", key, "lifecycle"},
		"KeyRevoked":         {"keyledger.lifecycle.org_abc123." + key + ".revoked", "keyledger.key.revoked", key, "lifecycle"},
		"RevocationFenced":   {"keyledger.lifecycle.org_abc123." + key + ".fenced", "keyledger.key.fenced", key, "lifecycle"},
		"KeyUsed":            {"keyledger.usage.org_abc123.used", "keyledger.key.used", organization, "usage"},
		"MemberAdded":        {"keyledger.lifecycle.org_abc123.-.member_added", "keyledger.organization.member_added", organization, "lifecycle"},
		"MemberRemoved":      {"keyledger.lifecycle.org_abc123.-.member_removed", "keyledger.organization.member_removed", organization, "lifecycle"},
		"OrganizationErased": {"keyledger.lifecycle.org_abc123.-.erased", "keyledger.organization.erased", organization, "lifecycle"},
	}
	for _, e := range everyEvent() {
		r := sample(e)
		w := want[e.EventName()]
		message, err := publisher.Message(r)
		if err != nil {
			t.Fatal(err)
		}
		header := nats.Header{
			"ce-specversion": {"1.0"}, "ce-id": {r.ID.UUID()}, "ce-source": {"/keyledger/" + r.Ledger.UUID()}, "ce-type": {w.typ}, "ce-subject": {w.about},
			"ce-time": {"2026-01-15T10:00:00.123456Z"}, "ce-datacontenttype": {"application/json"}, "ce-ledger": {r.Ledger.UUID()}, "ce-epoch": {"3"},
			"ce-lane": {w.lane}, "ce-position": {"42"}, "ce-organization": {organization}, "ce-streamversion": {"7"}, "ce-schema": {"1"},
		}
		if diff := cmp.Diff(&nats.Msg{Subject: w.subject, Header: header, Data: r.Data}, message, cmp.AllowUnexported(nats.Msg{})); diff != "" {
			t.Errorf("%s: %s", e.EventName(), diff)
		}
	}
}

func TestEveryMessageIsAValidCloudEvent(t *testing.T) {
	t.Parallel()
	for _, e := range everyEvent() {
		r := sample(e)
		message, err := publisher.Message(r)
		if err != nil {
			t.Fatal(err)
		}
		got, err := binding.ToEvent(t.Context(), received{message})
		if err != nil {
			t.Fatalf("%s: %v", e.EventName(), err)
		}
		if err := got.Validate(); err != nil {
			t.Errorf("%s: %v", e.EventName(), err)
		}
		if got.ID() != r.ID.UUID() || !got.Time().Equal(recordedAt) || got.DataContentType() != "application/json" || !bytes.Equal(got.Data(), r.Data) {
			t.Errorf("%s arrives as %v", e.EventName(), got)
		}
		for name := range got.Extensions() {
			if len(name) > 20 || strings.ToLower(name) != name || strings.ContainsAny(name, "-_.") {
				t.Errorf("the attribute %q is named against the standard's advice", name)
			}
		}
	}
}

// received lets the CloudEvents SDK read a NATS message as the binding's binary mode has it.
type received struct{ *nats.Msg }

func (received) ReadEncoding() binding.Encoding { return binding.EncodingBinary }
func (received) Finish(error) error             { return nil }
func (received) ReadStructured(context.Context, binding.StructuredWriter) error {
	return binding.ErrNotStructured
}

func (m received) GetAttribute(kind spec.Kind) (spec.Attribute, any) {
	attribute := spec.WithPrefix("ce-").Version("1.0").AttributeFromKind(kind)
	return attribute, m.Header.Get(attribute.PrefixedName())
}
func (m received) GetExtension(name string) any { return m.Header.Get("ce-" + name) }

func (m received) ReadBinary(_ context.Context, w binding.BinaryWriter) error {
	version := spec.WithPrefix("ce-").Version(m.Header.Get("ce-specversion"))
	for name, values := range m.Header {
		if attribute := version.Attribute(name); attribute != nil {
			if err := w.SetAttribute(attribute, values[0]); err != nil {
				return err
			}
		} else if err := w.SetExtension(strings.TrimPrefix(name, "ce-"), values[0]); err != nil {
			return err
		}
	}
	return w.SetData(bytes.NewReader(m.Data))
}

func TestNothingSealedIsPublished(t *testing.T) {
	t.Parallel()
	for _, e := range everyEvent() {
		r := sample(e)
		r.Sealed, r.Metadata = []byte("who it was"), []byte(`{"actor":{"kind":"user"},"requestId":"from-where"}`)
		message, err := publisher.Message(r)
		if err != nil {
			t.Fatal(err)
		}
		wire := message.Subject + string(message.Data)
		for name, values := range message.Header {
			wire += name + strings.Join(values, "")
		}
		if strings.Contains(wire, "who it was") || strings.Contains(wire, "from-where") {
			t.Errorf("%s gives away %q", e.EventName(), wire)
		}
	}
}

func TestWhatHasNoPublicNameIsRefused(t *testing.T) {
	t.Parallel()
	tests := map[string]func(*eventstore.Recorded){
		"an unknown type":                         func(r *eventstore.Recorded) { r.Type = "KeyPainted" },
		"a lane that is not the event's":          func(r *eventstore.Recorded) { r.Lane = domain.Usage },
		"a key's event outside of a key's stream": func(r *eventstore.Recorded) { r.Stream = eventstore.OrganizationStream("org_abc123") },
		"an organization with a wildcard":         func(r *eventstore.Recorded) { r.Organization = "*" },
		"an organization with a dot":              func(r *eventstore.Recorded) { r.Organization = "org.other" },
		"an organization with a space":            func(r *eventstore.Recorded) { r.Organization = "org other" },
	}
	for name, spoil := range tests {
		r := sample(domain.KeyRevoked{})
		spoil(&r)
		if message, err := publisher.Message(r); err == nil {
			t.Errorf("%s is published as %s", name, message.Subject)
		}
	}
}

// The page that subscribers read tells of every name and shows every payload as it
// is stored.
func TestThePageOnEventsIsComplete(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../docs/events.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(text)
	for _, e := range everyEvent() {
		message, err := publisher.Message(sample(e))
		if err != nil {
			t.Fatal(err)
		}
		names := []string{message.Header.Get(publisher.HeaderType), message.Subject[strings.LastIndexByte(message.Subject, '.'):] + "` |"}
		for name := range message.Header {
			names = append(names, "| `"+name+"` |")
		}
		for _, name := range names {
			if !strings.Contains(page, name) {
				t.Errorf("%s: the page does not mention %s", e.EventName(), name)
			}
		}
		golden, err := os.ReadFile("../eventstore/testdata/events/" + e.EventName() + ".1.json")
		if err != nil {
			t.Fatal(err)
		}
		var stored struct{ Data json.RawMessage }
		if err := json.Unmarshal(golden, &stored); err != nil {
			t.Fatal(err)
		}
		if !slices.Contains(examples(t, page), string(stored.Data)) {
			t.Errorf("%s: the page does not show %s", e.EventName(), stored.Data)
		}
	}
}

func examples(t *testing.T, page string) (found []string) {
	t.Helper()
	for _, block := range strings.Split(page, "```json\n")[1:] {
		text, _, _ := strings.Cut(block, "```")
		var compact bytes.Buffer
		if err := json.Compact(&compact, []byte(text)); err != nil {
			t.Fatalf("%v in %s", err, text)
		}
		found = append(found, compact.String())
	}
	return found
}
