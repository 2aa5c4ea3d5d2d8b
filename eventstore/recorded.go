package eventstore

import (
	"strings"
	"time"

	"keyledger/domain"
)

// Stream names the history of one thing: key/<uuid>, organization/<id>, or
// usage/<uuid of one run of one node>.
type Stream string

// KeyStream is the stream of one key.
func KeyStream(id domain.KeyID) Stream { return Stream("key/" + id.UUID()) }

// OrganizationStream is the stream of one organization's members.
func OrganizationStream(id domain.OrganizationID) Stream {
	return Stream("organization/" + string(id))
}

// UsageStream is the stream of what one run of one node accounted.
func UsageStream(boot domain.ID) Stream { return Stream("usage/" + boot.UUID()) }

// Key gives the key whose stream this is, if it is a key's.
func (s Stream) Key() (domain.KeyID, bool) {
	text, ok := strings.CutPrefix(string(s), "key/")
	if !ok {
		return domain.KeyID{}, false
	}
	id, err := domain.ParseKeyID(text)
	return id, err == nil
}

// Recorded is an event as the log holds it: one row, byte for byte.
type Recorded struct {
	Ledger       domain.ID // which log this is
	Epoch        uint32    // which history of it
	Lane         domain.Lane
	Position     domain.Position
	ID           domain.ID
	Stream       Stream
	Version      uint64 // in the stream, from 1
	Organization domain.OrganizationID
	Type         string // KeyCreated, ...
	Schema       uint16 // version of the type's data
	RecordedAt   time.Time
	Data         []byte // canonical JSON, nothing personal
	Metadata     []byte // canonical JSON, nothing personal
	Sealed       []byte // personal fields under the organization's data key; nil when there are none
}

// Event is a recorded event with what it says.
type Event struct {
	Recorded
	Event         domain.Event
	EventMetadata domain.Metadata
	// Erased says that the personal fields are gone for good.
	Erased bool
}

// Head is the end of a lane.
type Head struct {
	Ledger   domain.ID
	Epoch    uint32
	Position domain.Position
}
