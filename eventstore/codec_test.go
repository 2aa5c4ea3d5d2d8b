package eventstore_test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"keyledger/domain"
	"keyledger/eventstore"
)

var update = flag.Bool("update", false, "write golden files anew; only for versions that were never released")

var testAddress = netip.MustParseAddr("192.0.2.7")

// golden is an event as it stands on disk, as a file that people can read.
type golden struct {
	Type     string          `json:"type"`
	Schema   uint16          `json:"schema"`
	Data     json.RawMessage `json:"data"`
	Metadata json.RawMessage `json:"metadata"`
}

func goldenEvents() map[string]domain.Event {
	at := time.Date(2026, 1, 15, 10, 0, 0, 123456000, time.UTC)
	key := domain.KeyID{0x01, 0x9b, 0xc0, 0x9a, 0x3e, 0x00, 0x7a, 0xaa, 0x8b, 0xbb, 1, 2, 3, 4, 5, 6}
	digest := domain.Digest(sha256.Sum256([]byte("bsk_live_a1b2c3d4e5f6a1b2c3d4e5f6a1b2c3d4")))
	return map[string]domain.Event{
		"KeyCreated.1": domain.KeyCreated{
			Key: key, Organization: "org_abc123", Digest: digest, Prefix: "bsk_live_a1b2", Scopes: domain.Scopes{"read", "members:*"},
			RateLimit: 1000, ExpiresAt: at.Add(time.Hour), At: at, Name: "Production Server", CreatedBy: "user_xyz",
		},
		"KeyCreated.1.unlimited": domain.KeyCreated{
			Key: key, Organization: "org_abc123", Digest: digest, Prefix: "bsk_live_a1b2", Scopes: domain.Scopes{"*"}, At: at, Name: "CI/CD",
		},
		"KeyCreated.1.quota": domain.KeyCreated{
			Key: key, Organization: "org_abc123", Digest: digest, Prefix: "bsk_live_a1b2", Scopes: domain.Scopes{"*"}, At: at, Name: "CI/CD",
			Quota: domain.Quota{Limit: 10_000, Refill: domain.RefillMonth},
		},
		"KeyRevoked.1": domain.KeyRevoked{Key: key, Organization: "org_abc123", At: at, Reason: "leaked"},
		"RevocationFenced.1": domain.RevocationFenced{
			Key: key, Organization: "org_abc123", Position: 42, Confirmed: []domain.ID{domain.ID(key)}, Expired: []domain.ID{{15: 1}}, Waited: 1060 * time.Millisecond, At: at,
		},
		"KeyUsed.1": domain.KeyUsed{Organization: "org_abc123", Boot: domain.ID(key), Flush: 3, At: at, Uses: []domain.Use{
			{Key: key, Outcome: domain.OutcomeValid, Count: 41, First: at, Last: at.Add(time.Second), DecidedAt: 7},
			{Key: key, Outcome: domain.OutcomeInsufficientScope, Count: 1, First: at, Last: at, DecidedAt: 6},
		}},
		"MemberAdded.1":                    domain.MemberAdded{Organization: "org_abc123", Role: "owner", At: at, User: "user_xyz"},
		"MemberRemoved.1":                  domain.MemberRemoved{Organization: "org_abc123", At: at, User: "user_xyz"},
		"OrganizationErased.1":             domain.OrganizationErased{Organization: "org_abc123", At: at, Reason: "ticket 4711"},
		"OrganizationErased.1.unexplained": domain.OrganizationErased{Organization: "org_abc123", At: at},
	}
}

func TestEventsAreWrittenToTheByteAsTheirGoldenFilesSay(t *testing.T) {
	t.Parallel()
	for name, event := range goldenEvents() {
		data, _, err := eventstore.Encode(event)
		if err != nil {
			t.Fatal(err)
		}
		metadata, err := eventstore.EncodeMetadata(someMetadata(domain.KeyID{15: 1}))
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join("testdata", "events", name+".json")
		if *update {
			text, err := json.Marshal(golden{Type: event.EventName(), Schema: 1, Data: data, Metadata: metadata})
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, append(text, '\n'), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var g golden
		if err := json.Unmarshal(text, &g); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(g.Data), string(data)); diff != "" {
			t.Errorf("%s is written otherwise: %s", name, diff)
		}
		if diff := cmp.Diff(string(g.Metadata), string(metadata)); diff != "" {
			t.Errorf("metadata is written otherwise: %s", diff)
		}
		back, err := eventstore.DecodeData(eventstore.Recorded{Type: g.Type, Schema: g.Schema, Data: g.Data})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(withoutPersonal(event), back); diff != "" {
			t.Errorf("%s is read otherwise: %s", name, diff)
		}
	}
}

func withoutPersonal(event domain.Event) domain.Event {
	switch e := event.(type) {
	case domain.KeyCreated:
		e.Name, e.CreatedBy = "", ""
		return e
	case domain.KeyRevoked:
		e.Reason = ""
		return e
	case domain.MemberAdded:
		e.User = ""
		return e
	case domain.MemberRemoved:
		e.User = ""
		return e
	}
	return event
}

// The vectors let another implementation check its envelope.
func TestTheEnvelopeIsWhatItsVectorsSay(t *testing.T) {
	t.Parallel()
	type vector struct {
		Lane, Stream, Organization, Type, Data, Metadata, RecordedAt string
		Ledger, ID                                                   string
		Epoch                                                        uint32
		Position, Version                                            uint64
		Schema                                                       uint16
		Sealed                                                       *string // hex
		Envelope, SHA256                                             string  // hex
	}
	file := filepath.Join("testdata", "envelope", "vectors.json")
	if *update {
		sealed := "01deadbeef"
		vectors := []vector{
			{Lane: "lifecycle", Stream: "key/019bc09a-3e00-7aaa-8bbb-010203040506", Organization: "org_abc123", Type: "KeyRevoked", Data: `{"a":1}`, Metadata: `{}`, RecordedAt: "2026-01-15T10:00:00.123456Z", Ledger: "019bc09a-3e00-7aaa-8bbb-010203040507", ID: "019bc09a-3e00-7aaa-8bbb-010203040508", Epoch: 1, Position: 17, Version: 2, Schema: 1, Sealed: &sealed},
			{Lane: "usage", Stream: "usage/019bc09a-3e00-7aaa-8bbb-010203040506", Organization: "o", Type: "KeyUsed", RecordedAt: "1969-12-31T23:59:59.999999Z", Ledger: "019bc09a-3e00-7aaa-8bbb-010203040507", ID: "019bc09a-3e00-7aaa-8bbb-010203040508", Epoch: 4294967295, Position: 9223372036854775807, Version: 1, Schema: 65535},
		}
		for i := range vectors {
			envelope := fromVector(t, vectors[i].Ledger, vectors[i].ID, vectors[i].RecordedAt, vectors[i].Sealed, eventstore.Recorded{
				Epoch: vectors[i].Epoch, Lane: domain.Lane(vectors[i].Lane), Position: domain.Position(vectors[i].Position), Stream: eventstore.Stream(vectors[i].Stream), Version: vectors[i].Version,
				Organization: domain.OrganizationID(vectors[i].Organization), Type: vectors[i].Type, Schema: vectors[i].Schema, Data: []byte(vectors[i].Data), Metadata: []byte(vectors[i].Metadata),
			})
			sum := sha256.Sum256(envelope)
			vectors[i].Envelope, vectors[i].SHA256 = hex.EncodeToString(envelope), hex.EncodeToString(sum[:])
		}
		text, err := json.MarshalIndent(vectors, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, append(text, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var vectors []vector
	if err := json.Unmarshal(text, &vectors); err != nil {
		t.Fatal(err)
	}
	for _, v := range vectors {
		envelope := fromVector(t, v.Ledger, v.ID, v.RecordedAt, v.Sealed, eventstore.Recorded{
			Epoch: v.Epoch, Lane: domain.Lane(v.Lane), Position: domain.Position(v.Position), Stream: eventstore.Stream(v.Stream), Version: v.Version,
			Organization: domain.OrganizationID(v.Organization), Type: v.Type, Schema: v.Schema, Data: []byte(v.Data), Metadata: []byte(v.Metadata),
		})
		if got := hex.EncodeToString(envelope); got != v.Envelope {
			t.Errorf("the envelope of %s %d is %s, not %s", v.Lane, v.Position, got, v.Envelope)
		}
	}
}

func fromVector(t *testing.T, ledger, id, at string, sealed *string, r eventstore.Recorded) []byte {
	t.Helper()
	var err error
	if r.Ledger, err = domain.ParseID(ledger); err != nil {
		t.Fatal(err)
	}
	if r.ID, err = domain.ParseID(id); err != nil {
		t.Fatal(err)
	}
	if r.RecordedAt, err = time.Parse(time.RFC3339Nano, at); err != nil {
		t.Fatal(err)
	}
	if sealed != nil {
		if r.Sealed, err = hex.DecodeString(*sealed); err != nil {
			t.Fatal(err)
		}
	}
	return r.Envelope()
}

func TestNoTwoEventsShareAnEnvelope(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		draw := func(label string) eventstore.Recorded {
			text := rapid.StringMatching(`[ab]{0,3}`)
			r := eventstore.Recorded{
				Lane: domain.Lane(text.Draw(t, label+" lane")), Stream: eventstore.Stream(text.Draw(t, label+" stream")), Organization: domain.OrganizationID(text.Draw(t, label+" organization")),
				Type: text.Draw(t, label+" type"), Position: domain.Position(rapid.Uint64Range(0, 3).Draw(t, label+" position")), Version: rapid.Uint64Range(0, 3).Draw(t, label+" version"),
				Data: []byte(text.Draw(t, label+" data")), Metadata: []byte(text.Draw(t, label+" metadata")), RecordedAt: time.UnixMicro(int64(rapid.IntRange(-1, 1).Draw(t, label+" time"))).UTC(),
			}
			if rapid.Bool().Draw(t, label+" is sealed") {
				r.Sealed = []byte(text.Draw(t, label+" sealed"))
			}
			return r
		}
		a, b := draw("a"), draw("b")
		if same := cmp.Equal(a, b); same != (string(a.Envelope()) == string(b.Envelope())) {
			t.Fatalf("events equal: %v, envelopes equal: %v", same, !same)
		}
	})
}

func TestWhatIsNotKnownIsAnErrorAndNeverSkipped(t *testing.T) {
	t.Parallel()
	good := `{"keyId":"key_01JNZ0000000000000000000AA","organizationId":"o","at":"2026-01-15T10:00:00.000000Z"}`
	for name, r := range map[string]eventstore.Recorded{
		"a type":          {Type: "KeyRenamed", Schema: 1, Data: []byte(good)},
		"a schema":        {Type: "KeyRevoked", Schema: 2, Data: []byte(good)},
		"a field":         {Type: "KeyRevoked", Schema: 1, Data: []byte(good[:len(good)-1] + `,"more":1}`)},
		"a doubled field": {Type: "KeyRevoked", Schema: 1, Data: []byte(good[:len(good)-1] + `,"at":"2026-01-15T10:00:00.000000Z"}`)},
		"broken JSON":     {Type: "KeyRevoked", Schema: 1, Data: []byte(good[:len(good)-1])},
	} {
		if _, err := eventstore.DecodeData(r); err == nil {
			t.Errorf("%s that is not known was read", name)
		}
	}
	if _, err := eventstore.DecodeData(eventstore.Recorded{Type: "KeyRevoked", Schema: 1, Data: []byte(good)}); err != nil {
		t.Error(err)
	}
}

func FuzzDecodeNeverPanics(f *testing.F) {
	for _, event := range goldenEvents() {
		data, _, err := eventstore.Encode(event)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(event.EventName(), data)
	}
	f.Fuzz(func(t *testing.T, name string, data []byte) {
		event, err := eventstore.DecodeData(eventstore.Recorded{Type: name, Schema: 1, Data: data})
		if err == nil && event == nil {
			t.Error("neither an event nor an error")
		}
	})
}
