package eventstore

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"keyledger/domain"
)

// The bytes of events are an API: names and schema versions stay for ever, and a
// golden file for every version that was ever written stands in testdata/events.
// They are written by hand, field by field, so that no library's idea of JSON
// can change them; reading refuses what it does not know.

// schema is the version of an event type's data that this code writes.
func schema(event domain.Event) uint16 {
	switch event.(type) {
	case domain.KeyCreated, domain.KeyRevoked, domain.RevocationFenced, domain.KeyUsed, domain.MemberAdded, domain.MemberRemoved, domain.OrganizationErased:
		return 1
	}
	return 0
}

// personal are the fields of an event and of its metadata that can name a person.
type personal struct {
	Name      string `json:"name,omitempty"`
	CreatedBy string `json:"createdBy,omitempty"`
	Reason    string `json:"reason,omitempty"`
	User      string `json:"user,omitempty"`
	ActorUser string `json:"actorUser,omitempty"`
	Source    string `json:"source,omitempty"`
}

// encode writes an event's data and splits off what is personal.
func encode(event domain.Event) (data []byte, p personal, err error) {
	var o object
	switch e := event.(type) {
	case domain.KeyCreated:
		o.text("keyId", e.Key.String()).text("organizationId", string(e.Organization)).text("digest", e.Digest.Hex()).text("prefix", e.Prefix)
		o.texts("scopes", e.Scopes.Strings()).numberOrNull("rateLimit", uint64(e.RateLimit)).timeOrNull("expiresAt", e.ExpiresAt).timeOrNull("at", e.At)
		if e.Quota.Given() { // what was written before there were quotas stays as it is
			var quota object
			inner, err := quota.number("limit", e.Quota.Limit).text("refill", string(e.Quota.Refill)).close()
			if err != nil {
				return nil, p, err
			}
			o.raw("quota", inner)
		}
		p = personal{Name: e.Name, CreatedBy: string(e.CreatedBy)}
	case domain.KeyRevoked:
		o.text("keyId", e.Key.String()).text("organizationId", string(e.Organization)).timeOrNull("at", e.At)
		p = personal{Reason: e.Reason}
	case domain.RevocationFenced:
		o.text("keyId", e.Key.String()).text("organizationId", string(e.Organization)).number("position", uint64(e.Position))
		o.texts("confirmed", uuids(e.Confirmed)).texts("expired", uuids(e.Expired)).number("waitedMs", uint64(max(e.Waited, 0)/time.Millisecond)).timeOrNull("at", e.At)
	case domain.KeyUsed:
		o.b = make([]byte, 0, 256+sizeOfUse*len(e.Uses)) // not once more each time that it is full
		o.text("organizationId", string(e.Organization)).text("boot", e.Boot.UUID()).number("flush", e.Flush).timeOrNull("at", e.At)
		o.column("keys", e.Uses, func(b []byte, u domain.Use) []byte { return append(append(append(b, '"'), u.Key.String()...), '"') })
		o.column("outcomes", e.Uses, func(b []byte, u domain.Use) []byte { return append(append(append(b, '"'), u.Outcome.String()...), '"') })
		o.column("counts", e.Uses, func(b []byte, u domain.Use) []byte { return strconv.AppendUint(b, u.Count, 10) })
		o.column("first", e.Uses, func(b []byte, u domain.Use) []byte { return strconv.AppendInt(b, u.First.UnixMicro(), 10) })
		o.column("last", e.Uses, func(b []byte, u domain.Use) []byte { return strconv.AppendInt(b, u.Last.UnixMicro(), 10) })
		o.column("decidedAt", e.Uses, func(b []byte, u domain.Use) []byte { return strconv.AppendUint(b, uint64(u.DecidedAt), 10) })
	case domain.MemberAdded:
		o.text("organizationId", string(e.Organization)).text("role", e.Role).timeOrNull("at", e.At)
		p = personal{User: string(e.User)}
	case domain.MemberRemoved:
		o.text("organizationId", string(e.Organization)).timeOrNull("at", e.At)
		p = personal{User: string(e.User)}
	case domain.OrganizationErased:
		o.text("organizationId", string(e.Organization)).textOrNull("reason", e.Reason).timeOrNull("at", e.At)
	default:
		return nil, p, fmt.Errorf("encode: unknown event %T", event)
	}
	data, err = o.close()
	return data, p, err
}

// encodeMetadata writes what is not personal of it.
func encodeMetadata(m domain.Metadata) ([]byte, error) {
	var actor, o object
	actor.text("kind", string(m.Actor.Kind))
	if !m.Actor.Key.IsZero() {
		actor.text("keyId", m.Actor.Key.String())
	}
	inner, err := actor.close()
	if err != nil {
		return nil, err
	}
	o.raw("actor", inner)
	if m.RequestID != "" {
		o.text("requestId", m.RequestID)
	}
	if m.TraceID != "" {
		o.text("traceId", m.TraceID)
	}
	return o.close()
}

// encodeSealed gives the plain text of the sealed section; nil when nothing is personal.
func encodeSealed(p personal, m domain.Metadata) ([]byte, error) {
	p.ActorUser = string(m.Actor.User)
	if m.Source.IsValid() {
		p.Source = m.Source.String()
	}
	if p == (personal{}) {
		return nil, nil
	}
	return json.Marshal(p, json.Deterministic(true))
}

// Decode gives what an event says, personal fields included where their data
// key still exists.
func (s *Store) Decode(ctx context.Context, r Recorded) (Event, error) {
	if e, ok := s.tails[r.Lane].decoded(r); ok {
		return e, nil
	}
	var p personal
	e := Event{Recorded: r}
	if r.Sealed != nil {
		plain, erased, err := s.keyring.open(ctx, r)
		if err != nil {
			return Event{}, err
		}
		if e.Erased = erased; !erased {
			if err := json.Unmarshal(plain, &p, json.RejectUnknownMembers(true)); err != nil {
				return Event{}, fmt.Errorf("decode the sealed section of %s %d: %w", r.Lane, r.Position, err)
			}
		}
	}
	var err error
	if e.Event, err = decode(r, p); err != nil {
		return Event{}, err
	}
	e.EventMetadata, err = decodeMetadata(r, p)
	return e, err
}

// DecodeData gives what an event says without its personal fields. It needs no
// database.
func DecodeData(r Recorded) (domain.Event, error) { return decode(r, personal{}) }

func decode(r Recorded, p personal) (domain.Event, error) {
	if r.Schema != 1 {
		return nil, fmt.Errorf("decode %s %d: %s in schema %d was written by a newer version of Keyledger", r.Lane, r.Position, r.Type, r.Schema)
	}
	var event domain.Event
	var err error
	switch r.Type {
	case domain.KeyCreated{}.EventName():
		event, err = decodeKeyCreated(r.Data, p)
	case domain.KeyRevoked{}.EventName():
		event, err = decodeKeyRevoked(r.Data, p)
	case domain.RevocationFenced{}.EventName():
		event, err = decodeRevocationFenced(r.Data)
	case domain.KeyUsed{}.EventName():
		event, err = decodeKeyUsed(r.Data)
	case domain.MemberAdded{}.EventName(), domain.MemberRemoved{}.EventName():
		event, err = decodeMember(r.Type, r.Data, p)
	case domain.OrganizationErased{}.EventName():
		event, err = decodeOrganizationErased(r.Data)
	default:
		err = fmt.Errorf("unknown type %q", r.Type)
	}
	if err != nil {
		return nil, fmt.Errorf("decode %s %d (%s): %w", r.Lane, r.Position, r.Type, err)
	}
	return event, nil
}

func decodeKeyCreated(data []byte, p personal) (domain.Event, error) {
	var d struct {
		Key          string     `json:"keyId"`
		Organization string     `json:"organizationId"`
		Digest       string     `json:"digest"`
		Prefix       string     `json:"prefix"`
		Scopes       []string   `json:"scopes"`
		RateLimit    *uint32    `json:"rateLimit"`
		ExpiresAt    *time.Time `json:"expiresAt"`
		At           time.Time  `json:"at"`
		Quota        *struct {
			Limit  uint64 `json:"limit"`
			Refill string `json:"refill"`
		} `json:"quota"`
	}
	if err := unmarshal(data, &d); err != nil {
		return nil, err
	}
	key, err := domain.ParseKeyID(d.Key)
	if err != nil {
		return nil, err
	}
	digest, err := domain.ParseDigest(d.Digest)
	if err != nil {
		return nil, err
	}
	scopes, err := domain.ParseScopes(d.Scopes)
	if err != nil {
		return nil, err
	}
	e := domain.KeyCreated{
		Key: key, Organization: domain.OrganizationID(d.Organization), Digest: digest, Prefix: d.Prefix, Scopes: scopes, At: d.At,
		Name: p.Name, CreatedBy: domain.UserID(p.CreatedBy),
	}
	if d.RateLimit != nil {
		e.RateLimit = *d.RateLimit
	}
	if d.ExpiresAt != nil {
		e.ExpiresAt = *d.ExpiresAt
	}
	if q := d.Quota; q != nil {
		// A quota that this does not know must not be taken for none.
		if q.Limit == 0 || q.Limit > domain.MostQuota {
			return nil, fmt.Errorf("a quota of %d uses", q.Limit)
		}
		if e.Quota.Refill, err = domain.ParseRefill(q.Refill); err != nil {
			return nil, err
		}
		e.Quota.Limit = q.Limit
	}
	return e, nil
}

func decodeKeyRevoked(data []byte, p personal) (domain.Event, error) {
	var d struct {
		Key          string    `json:"keyId"`
		Organization string    `json:"organizationId"`
		At           time.Time `json:"at"`
	}
	if err := unmarshal(data, &d); err != nil {
		return nil, err
	}
	key, err := domain.ParseKeyID(d.Key)
	return domain.KeyRevoked{Key: key, Organization: domain.OrganizationID(d.Organization), At: d.At, Reason: p.Reason}, err
}

func decodeRevocationFenced(data []byte) (domain.Event, error) {
	var d struct {
		Key          string    `json:"keyId"`
		Organization string    `json:"organizationId"`
		Position     uint64    `json:"position"`
		Confirmed    []string  `json:"confirmed"`
		Expired      []string  `json:"expired"`
		Waited       uint64    `json:"waitedMs"`
		At           time.Time `json:"at"`
	}
	if err := unmarshal(data, &d); err != nil {
		return nil, err
	}
	key, err := domain.ParseKeyID(d.Key)
	if err != nil {
		return nil, err
	}
	e := domain.RevocationFenced{
		Key: key, Organization: domain.OrganizationID(d.Organization), Position: domain.Position(d.Position),
		Waited: time.Duration(d.Waited) * time.Millisecond, At: d.At,
	}
	if e.Confirmed, err = parseUUIDs(d.Confirmed); err != nil {
		return nil, err
	}
	e.Expired, err = parseUUIDs(d.Expired)
	return e, err
}

func uuids(ids []domain.ID) []string {
	texts := make([]string, len(ids))
	for i, id := range ids {
		texts[i] = id.UUID()
	}
	return texts
}

func parseUUIDs(texts []string) ([]domain.ID, error) {
	var ids []domain.ID
	for _, text := range texts {
		id, err := domain.ParseID(text)
		if err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	return ids, nil
}

func decodeKeyUsed(data []byte) (domain.Event, error) {
	var d struct {
		Organization string    `json:"organizationId"`
		Boot         string    `json:"boot"`
		Flush        uint64    `json:"flush"`
		At           time.Time `json:"at"`
		Keys         []string  `json:"keys"`
		Outcomes     []string  `json:"outcomes"`
		Counts       []uint64  `json:"counts"`
		First        []int64   `json:"first"`
		Last         []int64   `json:"last"`
		DecidedAt    []uint64  `json:"decidedAt"`
	}
	if err := unmarshal(data, &d); err != nil {
		return nil, err
	}
	n := len(d.Keys)
	if len(d.Outcomes) != n || len(d.Counts) != n || len(d.First) != n || len(d.Last) != n || len(d.DecidedAt) != n {
		return nil, fmt.Errorf("its columns differ in length")
	}
	boot, err := domain.ParseID(d.Boot)
	if err != nil {
		return nil, err
	}
	e := domain.KeyUsed{Organization: domain.OrganizationID(d.Organization), Boot: boot, Flush: d.Flush, At: d.At, Uses: make([]domain.Use, n)}
	for i := range n {
		u := domain.Use{Count: d.Counts[i], First: time.UnixMicro(d.First[i]).UTC(), Last: time.UnixMicro(d.Last[i]).UTC(), DecidedAt: domain.Position(d.DecidedAt[i])}
		if u.Key, err = domain.ParseKeyID(d.Keys[i]); err != nil {
			return nil, err
		}
		if u.Outcome, err = domain.ParseOutcome(d.Outcomes[i]); err != nil {
			return nil, err
		}
		e.Uses[i] = u
	}
	return e, nil
}

func decodeMember(name string, data []byte, p personal) (domain.Event, error) {
	var d struct {
		Organization string    `json:"organizationId"`
		Role         string    `json:"role"`
		At           time.Time `json:"at"`
	}
	if err := unmarshal(data, &d); err != nil {
		return nil, err
	}
	if name == (domain.MemberRemoved{}).EventName() {
		return domain.MemberRemoved{Organization: domain.OrganizationID(d.Organization), At: d.At, User: domain.UserID(p.User)}, nil
	}
	return domain.MemberAdded{Organization: domain.OrganizationID(d.Organization), Role: d.Role, At: d.At, User: domain.UserID(p.User)}, nil
}

func decodeOrganizationErased(data []byte) (domain.Event, error) {
	var d struct {
		Organization string    `json:"organizationId"`
		Reason       *string   `json:"reason"`
		At           time.Time `json:"at"`
	}
	if err := unmarshal(data, &d); err != nil {
		return nil, err
	}
	e := domain.OrganizationErased{Organization: domain.OrganizationID(d.Organization), At: d.At}
	if d.Reason != nil {
		e.Reason = *d.Reason
	}
	return e, nil
}

func decodeMetadata(r Recorded, p personal) (domain.Metadata, error) {
	var d struct {
		Actor struct {
			Kind string `json:"kind"`
			Key  string `json:"keyId"`
		} `json:"actor"`
		RequestID string `json:"requestId"`
		TraceID   string `json:"traceId"`
	}
	if err := unmarshal(r.Metadata, &d); err != nil {
		return domain.Metadata{}, fmt.Errorf("decode the metadata of %s %d: %w", r.Lane, r.Position, err)
	}
	m := domain.Metadata{
		Actor:     domain.Actor{Kind: domain.ActorKind(d.Actor.Kind), User: domain.UserID(p.ActorUser)},
		RequestID: d.RequestID, TraceID: d.TraceID,
	}
	var err error
	if d.Actor.Key != "" {
		if m.Actor.Key, err = domain.ParseKeyID(d.Actor.Key); err != nil {
			return m, fmt.Errorf("decode the metadata of %s %d: %w", r.Lane, r.Position, err)
		}
	}
	if p.Source != "" {
		if m.Source, err = netip.ParseAddr(p.Source); err != nil {
			return m, fmt.Errorf("decode the source of %s %d: %w", r.Lane, r.Position, err)
		}
	}
	return m, nil
}

func unmarshal(data []byte, into any) error {
	return json.Unmarshal(data, into, json.RejectUnknownMembers(true))
}

// timeLayout writes times with exactly six digits of fraction.
const timeLayout = "2006-01-02T15:04:05.000000Z"

// object builds one canonical JSON object: no white space, fields in the order
// of the calls.
type object struct {
	b   []byte
	err error
}

func (o *object) name(name string) {
	if o.b == nil {
		o.b = make([]byte, 0, 384)
	}
	if len(o.b) == 0 {
		o.b = append(o.b, '{')
	} else {
		o.b = append(o.b, ',')
	}
	o.quote(name)
	o.b = append(o.b, ':')
}

func (o *object) quote(text string) {
	b, err := jsontext.AppendQuote(o.b, text)
	if err != nil && o.err == nil {
		o.err = fmt.Errorf("encode: %w", err)
	}
	o.b = b
}

func (o *object) text(name, value string) *object {
	o.name(name)
	o.quote(value)
	return o
}

func (o *object) textOrNull(name, value string) *object {
	if value == "" {
		return o.raw(name, []byte("null"))
	}
	return o.text(name, value)
}

func (o *object) texts(name string, values []string) *object {
	o.name(name)
	o.b = append(o.b, '[')
	for i, value := range values {
		if i > 0 {
			o.b = append(o.b, ',')
		}
		o.quote(value)
	}
	o.b = append(o.b, ']')
	return o
}

func (o *object) number(name string, value uint64) *object {
	o.name(name)
	o.b = strconv.AppendUint(o.b, value, 10)
	return o
}

func (o *object) numberOrNull(name string, value uint64) *object {
	if value == 0 {
		return o.raw(name, []byte("null"))
	}
	return o.number(name, value)
}

func (o *object) timeOrNull(name string, t time.Time) *object {
	if t.IsZero() {
		return o.raw(name, []byte("null"))
	}
	o.name(name)
	o.b = append(microseconds(t).AppendFormat(append(o.b, '"'), timeLayout), '"')
	return o
}

// sizeOfUse is about what a use takes in all columns.
const sizeOfUse = 96

func (o *object) column(name string, uses []domain.Use, value func([]byte, domain.Use) []byte) {
	o.name(name)
	o.b = append(o.b, '[')
	for i, use := range uses {
		if i > 0 {
			o.b = append(o.b, ',')
		}
		o.b = value(o.b, use)
	}
	o.b = append(o.b, ']')
}

func (o *object) raw(name string, value []byte) *object {
	o.name(name)
	o.b = append(o.b, value...)
	return o
}

func (o *object) close() ([]byte, error) {
	if o.err != nil {
		return nil, o.err
	}
	return append(o.b, '}'), nil
}
