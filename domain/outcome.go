package domain

import "time"

// Outcome is the verdict on one use of a key. Its number is what usage events
// store, so it never changes; its text is what clients read.
type Outcome uint8

// The outcomes, in the order in which one hides another: a key that is both
// revoked and expired is revoked.
const (
	OutcomeValid Outcome = iota
	OutcomeNotFound
	OutcomeRevoked
	OutcomeDisabled
	OutcomeExpired
	OutcomeInsufficientScope
	OutcomeRateLimited
	// OutcomeValidStale is how a use is recorded that a verifier accepted beyond its
	// lease, since it was told to go on. No verdict has it: those are valid, and say Stale.
	OutcomeValidStale
	// OutcomeQuotaExceeded hides OutcomeRateLimited: to wait a minute would not help.
	OutcomeQuotaExceeded
	outcomes
)

// Outcomes is how many there are: the size of an array that is indexed by them.
const Outcomes = int(outcomes)

var outcomeTexts = [Outcomes]string{"VALID", "NOT_FOUND", "REVOKED", "DISABLED", "EXPIRED", "INSUFFICIENT_SCOPE", "RATE_LIMITED", "VALID_STALE", "QUOTA_EXCEEDED"}

func (o Outcome) String() string {
	if int(o) < Outcomes {
		return outcomeTexts[o]
	}
	return "UNKNOWN"
}

// ParseOutcome reads what String wrote.
func ParseOutcome(text string) (Outcome, error) {
	for o, t := range outcomeTexts {
		if t == text {
			return Outcome(o), nil
		}
	}
	return 0, Invalid("outcome", "is not a known outcome")
}

// Accepted says whether the key could be used.
func (o Outcome) Accepted() bool { return o == OutcomeValid || o == OutcomeValidStale }

// Judge gives the verdict on a use of a known key, but for its quota and its limit: those
// are looked at last, since a refusal for any other reason costs none of either.
func (k Key) Judge(now time.Time, required Scopes) Outcome {
	switch {
	case k.Revoked:
		return OutcomeRevoked
	case k.Disabled:
		return OutcomeDisabled
	case k.Expired(now):
		return OutcomeExpired
	case !k.Scopes.ImplyAll(required):
		return OutcomeInsufficientScope
	}
	return OutcomeValid
}
