package domain

import (
	"crypto/sha256"
	"errors"
	"time"
)

// CommandID names one command for good: whoever asks again with the same id gets
// the first answer, and after a doubtful commit the outcome is looked up by it.
type CommandID [16]byte

// CommandIDFor derives the id of a command whose client chose an idempotency
// key, unique within (organization, actor, operation).
func CommandIDFor(organization OrganizationID, actor Actor, operation, idempotencyKey string) CommandID {
	h := sha256.New()
	for _, part := range []string{"keyledger command", string(organization), string(actor.Kind), actor.Key.String(), string(actor.User), operation, idempotencyKey} {
		n := len(part)
		h.Write([]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}) // lengths keep parts apart
		h.Write([]byte(part))
	}
	return CommandID(h.Sum(nil)[:16])
}

// Guard is a stream at the version at which a command was authorised. The
// command commits only while the stream still stands there.
type Guard struct {
	Key          KeyID          // the acting key's stream, or
	Organization OrganizationID // the stream of an organization whose membership authorised a user
	Version      uint64
}

// IsZero says whether nothing is guarded: the authority came from outside the
// ledger, such as a token that carries its organizations.
func (g Guard) IsZero() bool { return g == Guard{} }

// Request is what a write carries beside its command.
type Request struct {
	// ID is generated when the client sent no idempotency key.
	ID CommandID
	// Fingerprint is a digest of what was asked, so that the same id with another
	// body is refused. Zero with a generated id.
	Fingerprint [sha256.Size]byte
	// Replayable says that the client chose the id.
	Replayable bool
	Guard      Guard
	Metadata   Metadata
}

// Receipt says where a write stands in the log.
type Receipt struct {
	Epoch      uint32
	Position   Position // of the write's last event; for one that changed nothing, the head that it saw
	Version    uint64   // of the stream, after the write
	RecordedAt time.Time
	Replayed   bool // the answer of an earlier command with the same id
	Changed    bool // false: it was so already
}

// Token gives the receipt's position for clients.
func (r Receipt) Token() Token {
	return Token{Epoch: r.Epoch, Lane: Lifecycle, Position: r.Position}
}

// ErrGuardMoved says that the stream that authorised a command has changed since:
// authorise again, at the position that GuardMoved names, and try again.
var ErrGuardMoved = errors.New("the authority of the command has changed meanwhile")

// GuardMoved is an ErrGuardMoved that says from which position on to authorise again.
type GuardMoved struct{ At Position }

func (GuardMoved) Error() string        { return ErrGuardMoved.Error() }
func (GuardMoved) Is(target error) bool { return target == ErrGuardMoved }

// KeyView is a key as lists show it: the key, and its last use as far as it is known.
type KeyView struct {
	Key
	LastUsedAt time.Time // zero: never
	Uses       uint64    // accepted uses
	// Standing is where the key stands against its quota, as this node knows it; zero where it
	// does not, or the key has none.
	Standing QuotaStanding
}
