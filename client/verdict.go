package client

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"time"

	"keyledger/domain"
)

// The vocabulary that clients and servers share.
type (
	// KeyID names a key. It prints as key_ and a ULID; ParseKeyID reads that, and a UUID.
	KeyID = domain.KeyID
	// OrganizationID names an organization: 1 to 64 letters, digits, "_" and "-".
	OrganizationID = domain.OrganizationID
	// Scope is one permission, such as read or orders:write.
	Scope = domain.Scope
	// Scopes are permissions. Imply says what else they allow: admin implies read
	// and write, orders:* implies orders:write, * implies all but system:*.
	Scopes = domain.Scopes
	// Position is an event's place in its lane: 1, 2, 3, ... without a gap.
	Position = domain.Position
	// Token names a position of a certain history. It is opaque: keep its text.
	Token = domain.Token
	// Secret is a plain key that prints, logs and marshals as a fixed text. Reveal
	// gives it away.
	Secret = domain.Secret
)

// ParseKeyID reads any spelling of a key's id: key_ and a ULID, a bare ULID, or a UUID.
func ParseKeyID(text string) (KeyID, error) { return domain.ParseKeyID(text) }

// ParseToken reads a position token as a write returned it.
func ParseToken(text string) (Token, error) { return domain.ParseToken(text) }

// Checker says whether a presented key may be used now. [Client] asks a server;
// the embedded verifier answers in memory.
//
// A verdict is an answer, also when it says no. An error is none: nothing is known
// of the key then, and it must neither be let in nor be thrown away.
type Checker interface {
	Verify(ctx context.Context, q Question) (Verdict, error)
}

// Question asks about one presented key.
type Question struct {
	// Key is the plain key as it was presented.
	Key string
	// Scopes that the key must have, or imply; may be empty.
	Scopes Scopes
	// Organization, when set, is the only one whose keys are found.
	Organization OrganizationID
	// Durable asks that the use is in the log before the answer. Only a server can
	// do that: an embedded verifier answers ErrInvalid.
	Durable bool
}

// Code is a verdict in one word.
type Code string

// The codes, in the order in which one hides another: a key that is both revoked
// and expired is revoked.
const (
	Valid             Code = "VALID"
	NotFound          Code = "NOT_FOUND"
	Revoked           Code = "REVOKED"
	Disabled          Code = "DISABLED"
	Expired           Code = "EXPIRED"
	InsufficientScope Code = "INSUFFICIENT_SCOPE"
	RateLimited       Code = "RATE_LIMITED"
	QuotaExceeded     Code = "QUOTA_EXCEEDED" // also of a key that is over its limit a minute
	// ValidStale is how usage counts a use that was accepted beyond the lease. A verdict says
	// Valid then, and Stale.
	ValidStale Code = "VALID_STALE"
)

// Verdict is the answer to a [Question]. Of a key that is not found, only Code,
// Position, Age and Stale are set.
type Verdict struct {
	Valid bool
	Code  Code

	KeyID          KeyID
	OrganizationID OrganizationID
	Name           string
	Scopes         Scopes // shared: never modify them
	ExpiresAt      time.Time
	RateLimit      RateLimit
	Quota          Quota

	// Position of the lifecycle lane at which this was decided: everything up to it
	// is taken into account.
	Position Position
	// Age bounds how old the verifier's knowledge is: it knew all that had been committed
	// so long before it answered. 0 where a server does not say.
	Age time.Duration
	// Stale says that Age is beyond the lease: the verifier was told to go on without
	// hearing of revocations.
	Stale bool
}

// RateLimit is where a key stands against its limit. The zero RateLimit is none.
type RateLimit struct {
	Limit     uint32 // requests a minute; 0: the key has no limit
	Remaining uint32
	Reset     time.Time // when Remaining is Limit again
	Next      time.Time // when a use is accepted again, for a key that is over its limit; zero where a server does not say
}

// Quota is where a key stands against its quota: how many uses it has in all of a period. The
// zero Quota is none.
type Quota struct {
	Limit     uint64 // uses in a period; 0: the key has no quota
	Refill    Refill
	Remaining uint64
	Known     bool      // false: the server does not know now how many remain
	ResetsAt  time.Time // when Remaining is Limit again; zero: never, or not known
}

// Refill says when a quota begins anew.
type Refill string

// The refills. Days and months are those of UTC.
const (
	RefillNone  Refill = "none"
	RefillDay   Refill = "day"
	RefillMonth Refill = "month"
)

// Of a question, everything but the key may be printed.
func (q Question) redacted() string {
	return fmt.Sprintf("{key:[redacted] scopes:%v organization:%s}", []Scope(q.Scopes), q.Organization)
}

// String leaves the key out.
func (q Question) String() string { return q.redacted() }

// Format leaves the key out, whatever the verb.
func (q Question) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, q.redacted()) }

// LogValue leaves the key out.
func (q Question) LogValue() slog.Value { return slog.StringValue(q.redacted()) }

// MarshalJSON leaves the key out. The package itself writes questions another way.
func (q Question) MarshalJSON() ([]byte, error) { return []byte(`"[redacted]"`), nil }
