package publisher

import (
	"fmt"

	"keyledger/domain"
)

// The streams, one for each lane. Their sequence numbers are the lane's positions.
const (
	LifecycleStream = "KEYLEDGER_LIFECYCLE"
	UsageStream     = "KEYLEDGER_USAGE"
)

// Subjects. Those of the streams end in what happened, so that a filter can pick
// one kind of event from all organizations. The wake subject lies outside of
// every stream: a stream that covered it would store each wake and answer it.
const (
	lifecycleSubjects = "keyledger.lifecycle."
	usageSubjects     = "keyledger.usage."
	wakeSubjects      = "keyledger.wake."
	fenceSubjects     = "keyledger.fence."
	sharesSubjects    = "keyledger.shares."

	askSubject       = fenceSubjects + "ask"       // everybody who verifies is to confirm a position
	softAskSubject   = fenceSubjects + "softask"   // servers are
	confirmedSubject = fenceSubjects + "confirmed" // a verifier has applied the log up to a position

	// RevokedSubjects is every revocation, of all organizations.
	RevokedSubjects = "keyledger.lifecycle.*.*.revoked"
)

// The headers of every message. The attributes of CloudEvents carry the prefix
// "ce-" in the NATS binding's binary mode; names beyond the standard's are
// lower-case letters only, as it asks.
const (
	HeaderSpecVersion     = "ce-specversion"
	HeaderID              = "ce-id"              // the event's id, a UUID
	HeaderSource          = "ce-source"          // /keyledger/ and the ledger's id
	HeaderType            = "ce-type"            // keyledger.key.created, ...
	HeaderSubject         = "ce-subject"         // the key's id, or the organization's where it is about no single key
	HeaderTime            = "ce-time"            // when it was recorded
	HeaderDataContentType = "ce-datacontenttype" // application/json

	HeaderLedger        = "ce-ledger"        // which log
	HeaderEpoch         = "ce-epoch"         // which history of it
	HeaderLane          = "ce-lane"          // lifecycle or usage
	HeaderPosition      = "ce-position"      // the same as the stream's sequence
	HeaderOrganization  = "ce-organization"  // whose event it is
	HeaderStreamVersion = "ce-streamversion" // counts the events of one key, organization or run of a node
	HeaderSchema        = "ce-schema"        // version of the type's data

	specVersion     = "1.0"
	dataContentType = "application/json"
	sourcePrefix    = "/keyledger/"
)

// StreamName is the stream of a lane.
func StreamName(lane domain.Lane) string {
	if lane == domain.Usage {
		return UsageStream
	}
	return LifecycleStream
}

// StreamSubjects is everything that a lane's stream takes in.
func StreamSubjects(lane domain.Lane) string {
	if lane == domain.Usage {
		return usageSubjects + ">"
	}
	return lifecycleSubjects + ">"
}

// WakeSubject is where nodes tell each other how far a lane has come.
func WakeSubject(lane domain.Lane) string { return wakeSubjects + string(lane) }

// named is how an event of the log is called outside.
type named struct {
	lane   domain.Lane
	ofKey  bool   // about one key, whose id stands in the subject
	suffix string // the subject's last token
	typ    string // ce-type
}

// loggedTypes are all types that nameOf knows.
func loggedTypes() []string {
	return []string{"KeyCreated", "KeyRevoked", "RevocationFenced", "KeyUsed", "MemberAdded", "MemberRemoved", "OrganizationErased"}
}

// nameOf refuses what it does not know: during an upgrade an older node may see
// an event of a newer one, and must leave it to those who know its name.
func nameOf(eventType string) (named, error) {
	switch eventType {
	case "KeyCreated":
		return named{domain.Lifecycle, true, "created", "keyledger.key.created"}, nil
	case "KeyRevoked":
		return named{domain.Lifecycle, true, "revoked", "keyledger.key.revoked"}, nil
	case "RevocationFenced":
		return named{domain.Lifecycle, true, "fenced", "keyledger.key.fenced"}, nil
	case "KeyUsed":
		return named{domain.Usage, false, "used", "keyledger.key.used"}, nil
	case "MemberAdded":
		return named{domain.Lifecycle, false, "member_added", "keyledger.organization.member_added"}, nil
	case "MemberRemoved":
		return named{domain.Lifecycle, false, "member_removed", "keyledger.organization.member_removed"}, nil
	case "OrganizationErased":
		return named{domain.Lifecycle, false, "erased", "keyledger.organization.erased"}, nil
	}
	return named{}, fmt.Errorf("events of type %q have no public name here", eventType)
}
