package client

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"keyledger/domain"
)

// The types of events. More will come: pass over those that you do not know.
const (
	TypeKeyCreated    = "keyledger.key.created"
	TypeKeyRevoked    = "keyledger.key.revoked"
	TypeKeyFenced     = "keyledger.key.fenced"
	TypeKeyUsed       = "keyledger.key.used"
	TypeMemberAdded   = "keyledger.organization.member_added"
	TypeMemberRemoved = "keyledger.organization.member_removed"
)

// Event is something that happened. docs/events.md describes the data of each type.
type Event struct {
	Cursor              // where it stands
	Lane         Lane   // whose positions are meant
	Type         string // such as TypeKeyRevoked
	Organization OrganizationID
	Key          KeyID     // zero where it is about no single key
	Time         time.Time // when it was recorded
	Version      uint64    // counts the events of this one key, organization or run of a node
	Schema       int       // version of the type's data
	// Data is JSON. That of a new key has its digest only where it comes from the stream.
	Data json.RawMessage
}

// Cursor is a place in a history: the position of an event, and which event was
// found there. The four values are what a subscriber keeps.
type Cursor struct {
	Ledger   string
	Epoch    uint32
	Position Position
	ID       string // of the event
}

// String gives a cursor as ParseCursor reads it; the zero cursor, before the first
// event, as nothing.
func (c Cursor) String() string {
	if c == (Cursor{}) {
		return ""
	}
	return fmt.Sprintf("%s/%d/%d/%s", c.Ledger, c.Epoch, c.Position, c.ID)
}

// ParseCursor reads what String wrote.
func ParseCursor(text string) (Cursor, error) {
	if text == "" {
		return Cursor{}, nil
	}
	malformed := invalid("cursor", "a cursor is ledger/epoch/position/id")
	parts := strings.Split(text, "/")
	if len(parts) != 4 || parts[0] == "" || parts[3] == "" {
		return Cursor{}, malformed
	}
	epoch, err := strconv.ParseUint(parts[1], 10, 32)
	if err != nil {
		return Cursor{}, malformed
	}
	position, err := strconv.ParseUint(parts[2], 10, 63)
	if err != nil || position == 0 {
		return Cursor{}, malformed
	}
	return Cursor{Ledger: parts[0], Epoch: uint32(epoch), Position: Position(position), ID: parts[3]}, nil
}

// MarshalText is String.
func (c Cursor) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText is ParseCursor.
func (c *Cursor) UnmarshalText(text []byte) (err error) {
	*c, err = ParseCursor(string(text))
	return err
}

// Filter leaves events out. The zero Filter is the whole lifecycle.
type Filter struct {
	Lane         Lane           // empty: Lifecycle
	Organization OrganizationID // empty: all
	Types        []string       // empty: all
}

func (f Filter) lane() Lane {
	if f.Lane == "" {
		return Lifecycle
	}
	return f.Lane
}

func (f Filter) check() error {
	if f.Lane != "" && f.Lane != Lifecycle && f.Lane != Uses {
		return invalid("Filter.Lane", "the lane must be Lifecycle or Uses")
	}
	if f.Organization != "" {
		if _, err := domain.ParseOrganizationID(string(f.Organization)); err != nil {
			return invalid("Filter.Organization", "the organization must be 1 to 64 letters, digits, underscores or hyphens")
		}
	}
	for _, t := range f.Types {
		if i := strings.LastIndexByte(t, '.'); i < 0 || i == len(t)-1 || strings.ContainsAny(t, "*> ,") {
			return invalid("Filter.Types", "a type is one such as keyledger.key.revoked")
		}
	}
	return nil
}

// all says whether nothing is left out.
func (f Filter) all() bool { return f.Organization == "" && len(f.Types) == 0 }

func (f Filter) passes(e *Event) bool {
	return (f.Organization == "" || e.Organization == f.Organization) && (len(f.Types) == 0 || slices.Contains(f.Types, e.Type))
}

// subjects are a consumer's filter; none for everything. A subject ends in what happened.
func (f Filter) subjects() []string {
	if f.all() {
		return nil
	}
	organization := string(f.Organization)
	if organization == "" {
		organization = "*"
	}
	prefix, lasts := "keyledger.lifecycle."+organization+".*.", []string{"*"}
	if f.lane() == Uses {
		prefix = "keyledger.usage." + organization + "."
	}
	if len(f.Types) > 0 {
		lasts = nil
		for _, t := range f.Types {
			lasts = append(lasts, t[strings.LastIndexByte(t, '.')+1:])
		}
		slices.Sort(lasts)
		lasts = slices.Compact(lasts) // filters must not overlap
	}
	var subjects []string
	for _, last := range lasts {
		subjects = append(subjects, prefix+last)
	}
	return subjects
}

// eventOf reads a message of a stream, whose sequence is the position.
func eventOf(sequence uint64, header nats.Header, data []byte) (Event, error) {
	e := Event{
		Cursor: Cursor{Ledger: header.Get("ce-ledger"), Position: Position(sequence), ID: header.Get("ce-id")}, Lane: Lane(header.Get("ce-lane")),
		Type: header.Get("ce-type"), Organization: OrganizationID(header.Get("ce-organization")), Data: data,
	}
	e.Key = keyOf(header.Get("ce-subject"))
	epoch, err := strconv.ParseUint(header.Get("ce-epoch"), 10, 32)
	if err != nil || e.ID == "" || e.Ledger == "" || header.Get("ce-position") != strconv.FormatUint(sequence, 10) {
		return Event{}, &Error{Code: "internal", Message: fmt.Sprintf("the message at %d is not an event of Keyledger at this position", sequence)}
	}
	e.Epoch = uint32(epoch)
	e.Version, _ = strconv.ParseUint(header.Get("ce-streamversion"), 10, 64)
	e.Schema, _ = strconv.Atoi(header.Get("ce-schema"))
	e.Time, _ = time.Parse(time.RFC3339Nano, header.Get("ce-time"))
	return e, nil
}

func keyOf(subject string) KeyID {
	if !strings.HasPrefix(subject, domain.KeyIDPrefix) {
		return KeyID{}
	}
	return keyID(&subject)
}

// EventOptions choose a page of events.
type EventOptions struct {
	After  Position
	Limit  int // 1 to 1,000; 0: 100
	Filter Filter
}

// EventPage is a part of the log.
type EventPage struct {
	Events []Event  // in the order of the log
	Next   Position // how far was looked: the After of the next page
	Head   Position // where the lane ends
	Epoch  uint32
}

// Events reads the log behind a position. Without an organization it needs a key of
// the service with the scope system:events; with one, a key of that organization
// with events:read. A page may be empty though the log goes on. New keys come
// without their digests.
func (c *Client) Events(ctx context.Context, o EventOptions) (EventPage, error) {
	if err := o.Filter.check(); err != nil {
		return EventPage{}, err
	}
	path := []string{"api", "v1", "events"}
	if o.Filter.Organization != "" {
		var err error
		if path, err = organizationPath(o.Filter.Organization, "events"); err != nil {
			return EventPage{}, err
		}
	}
	query := url.Values{"after": {number(o.After)}, "lane": {string(o.Filter.lane())}}
	if o.Limit != 0 {
		query.Set("limit", strconv.Itoa(o.Limit))
	}
	set(query, "types", strings.Join(o.Filter.Types, ","))
	var got struct {
		Events []wireEvent `json:"events"`
		Next   Position    `json:"next"`
		Head   Position    `json:"head"`
		Epoch  uint32      `json:"epoch"`
	}
	if _, err := c.ask(ctx, call{method: http.MethodGet, path: path, query: query}, &got); err != nil {
		return EventPage{}, err
	}
	page := EventPage{Next: got.Next, Head: got.Head, Epoch: got.Epoch}
	last := o.After
	for i := range got.Events {
		e, err := got.Events[i].event()
		if err == nil && (e.Position <= last || e.Position > got.Next) {
			err = &Error{Status: http.StatusOK, Code: "internal", Message: "the events of the page are out of order"}
		}
		if err != nil {
			return EventPage{}, err
		}
		last = e.Position
		page.Events = append(page.Events, e)
	}
	if page.Next < o.After {
		return EventPage{}, &Error{Status: http.StatusOK, Code: "internal", Message: "the page ends before it begins"}
	}
	return page, nil
}

// wireEvent is a CloudEvent in JSON. Its extension attributes are strings.
type wireEvent struct {
	ID            string          `json:"id"`
	Type          string          `json:"type"`
	Subject       string          `json:"subject"`
	Time          time.Time       `json:"time"`
	Ledger        string          `json:"ledger"`
	Epoch         uint32          `json:"epoch,string"`
	Lane          Lane            `json:"lane"`
	Position      Position        `json:"position,string"`
	Organization  OrganizationID  `json:"organization"`
	StreamVersion uint64          `json:"streamversion,string"`
	Schema        int             `json:"schema,string"`
	Data          json.RawMessage `json:"data"`
}

func (w *wireEvent) event() (Event, error) {
	if w.ID == "" || w.Ledger == "" || w.Position == 0 {
		return Event{}, &Error{Status: http.StatusOK, Code: "internal", Message: "an event of the page makes no sense"}
	}
	return Event{
		Cursor: Cursor{Ledger: w.Ledger, Epoch: w.Epoch, Position: w.Position, ID: w.ID}, Lane: w.Lane, Type: w.Type, Organization: w.Organization,
		Key: keyOf(w.Subject), Time: w.Time, Version: w.StreamVersion, Schema: w.Schema, Data: w.Data,
	}, nil
}
