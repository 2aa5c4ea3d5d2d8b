package domain

import (
	"net/netip"
	"time"
)

// Event is something that happened. The set is sealed; times are in UTC with
// microseconds, which is what the log keeps.
//
//sumtype:decl
type Event interface {
	// EventName is the literal name on disk and on the wire.
	EventName() string
	// Subject is the organization that the event belongs to.
	Subject() OrganizationID
	sealed()
}

// KeyCreated starts a key's stream. The fields marked personal are sealed on
// disk and never published.
type KeyCreated struct {
	Key          KeyID
	Organization OrganizationID
	Digest       Digest
	Prefix       string // what is shown of the key for ever
	Scopes       Scopes
	RateLimit    uint32    // requests a minute; 0: none
	Quota        Quota     // `limit` uses in a period, `refill` `none`, `day` or `month` (UTC); it is absent when there is none
	ExpiresAt    time.Time // zero: never
	At           time.Time
	Name         string // personal
	CreatedBy    UserID // personal; empty when no person is known
}

// KeyRevoked ends a key for good.
type KeyRevoked struct {
	Key          KeyID
	Organization OrganizationID
	At           time.Time
	Reason       string // personal, since it is free text; may be empty
}

// RevocationFenced tells how the wait for a revocation ended: from here on no
// verifier accepts the key. It stands behind the revocation in the key's stream.
type RevocationFenced struct {
	Key          KeyID
	Organization OrganizationID
	Position     Position      // of the revocation
	Confirmed    []ID          // verifiers that said that they know of it
	Expired      []ID          // verifiers whose leases were waited for instead
	Waited       time.Duration // from the commit, in whole milliseconds
	At           time.Time
}

// KeyUsed tells of uses of an organization's keys by one node in one window. It
// is written in accounted mode once a flush, in exact mode once a use.
type KeyUsed struct {
	Organization OrganizationID
	Boot         ID     // names one run of one node
	Flush        uint64 // counts this run's flushes, from 1
	Uses         []Use
	At           time.Time
}

// Use counts the uses of one key with one outcome in one window.
type Use struct {
	Key         KeyID
	Outcome     Outcome
	Count       uint64
	First, Last time.Time
	// DecidedAt is the highest lifecycle position that any of these uses was
	// decided at, so that an auditor can hold them against revocations.
	DecidedAt Position
}

// MemberAdded makes a user a member of an organization, or changes the role.
type MemberAdded struct {
	Organization OrganizationID
	Role         string
	At           time.Time
	User         UserID // personal
}

// MemberRemoved ends a membership.
type MemberRemoved struct {
	Organization OrganizationID
	At           time.Time
	User         UserID // personal
}

// OrganizationErased ends an organization for good: the data keys of its personal
// fields are destroyed in the statement that appends it.
type OrganizationErased struct {
	Organization OrganizationID
	At           time.Time
	// Reason is kept in plain for ever, since what could seal it is gone: it names a
	// ticket, never a person. It may be empty.
	Reason string
}

func (KeyCreated) EventName() string         { return "KeyCreated" }
func (KeyRevoked) EventName() string         { return "KeyRevoked" }
func (RevocationFenced) EventName() string   { return "RevocationFenced" }
func (KeyUsed) EventName() string            { return "KeyUsed" }
func (MemberAdded) EventName() string        { return "MemberAdded" }
func (MemberRemoved) EventName() string      { return "MemberRemoved" }
func (OrganizationErased) EventName() string { return "OrganizationErased" }

func (e KeyCreated) Subject() OrganizationID         { return e.Organization }
func (e KeyRevoked) Subject() OrganizationID         { return e.Organization }
func (e RevocationFenced) Subject() OrganizationID   { return e.Organization }
func (e KeyUsed) Subject() OrganizationID            { return e.Organization }
func (e MemberAdded) Subject() OrganizationID        { return e.Organization }
func (e MemberRemoved) Subject() OrganizationID      { return e.Organization }
func (e OrganizationErased) Subject() OrganizationID { return e.Organization }

func (KeyCreated) sealed()         {}
func (KeyRevoked) sealed()         {}
func (RevocationFenced) sealed()   {}
func (KeyUsed) sealed()            {}
func (MemberAdded) sealed()        {}
func (MemberRemoved) sealed()      {}
func (OrganizationErased) sealed() {}

// ActorKind says what kind of credential stood behind a command.
type ActorKind string

const (
	ActorKey     ActorKind = "key"     // an API key
	ActorUser    ActorKind = "user"    // a person with a token
	ActorConsole ActorKind = "console" // somebody at the service's own command line
	ActorService ActorKind = "service" // the service itself
)

// Actor is who did it.
type Actor struct {
	Kind ActorKind
	Key  KeyID  // when Kind is ActorKey
	User UserID // personal; when Kind is ActorUser, or a console user was named
}

// Metadata is what an event carries beside its own fields.
type Metadata struct {
	Actor     Actor
	RequestID string
	TraceID   string     // W3C trace id, 32 hex characters; empty when there is none
	Source    netip.Addr // personal; the client's address
}
