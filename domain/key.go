package domain

import (
	"fmt"
	"time"
)

// DefaultRateLimit is a key's limit in requests a minute when none is given.
const DefaultRateLimit uint32 = 1000

// MostRateLimit bounds what a client may ask for.
const MostRateLimit uint32 = 100_000_000

// Key is a key as its stream tells it. The zero Key does not exist yet.
type Key struct {
	ID           KeyID
	Organization OrganizationID
	Digest       Digest
	Prefix       string
	Name         string
	Scopes       Scopes
	RateLimit    uint32 // requests a minute; 0: none
	Quota        Quota
	CreatedAt    time.Time
	CreatedBy    UserID
	ExpiresAt    time.Time // zero: never
	Disabled     bool
	Revoked      bool
	RevokedAt    time.Time
}

// Exists says whether the key was ever created.
func (k Key) Exists() bool { return !k.ID.IsZero() }

// Expired says whether a key is expired at a moment; at its very expiry it is.
func (k Key) Expired(now time.Time) bool { return !k.ExpiresAt.IsZero() && !now.Before(k.ExpiresAt) }

// KeyCommand is something that may be asked of a key. The set is sealed.
//
//sumtype:decl
type KeyCommand interface{ keyCommand() }

// CreateKey makes a key. The caller has drawn its id and secret.
type CreateKey struct {
	Now          time.Time
	Key          KeyID
	Organization OrganizationID
	Digest       Digest
	Prefix       string
	Name         string
	Scopes       Scopes
	RateLimit    uint32 // requests a minute; 0: none
	Quota        Quota
	ExpiresAt    time.Time
	CreatedBy    UserID
	// Granter are the scopes of whoever creates the key: nobody can hand on what
	// they do not have.
	Granter Scopes
}

// RevokeKey ends a key of an organization. Another organization's key is not
// found, as if it did not exist.
type RevokeKey struct {
	Now          time.Time
	Organization OrganizationID
	Reason       string
}

// RecordFence tells how the wait for a revocation ended.
type RecordFence struct {
	Now       time.Time
	Position  Position // of the revocation
	Confirmed []ID
	Expired   []ID
	Waited    time.Duration
}

// UseKey asks whether a key may be used now, and records the answer.
type UseKey struct {
	Now       time.Time
	Boot      ID
	Flush     uint64
	Required  Scopes
	OverQuota bool
	OverLimit bool
	DecidedAt Position
}

func (CreateKey) keyCommand()   {}
func (RevokeKey) keyCommand()   {}
func (RecordFence) keyCommand() {}
func (UseKey) keyCommand()      {}

// DecideKey says which events follow from a command. An empty result means
// that it is so already.
func DecideKey(key Key, command KeyCommand) ([]Event, error) {
	switch c := command.(type) {
	case CreateKey:
		return createKey(key, c)
	case RevokeKey:
		if !key.Exists() || key.Organization != c.Organization {
			return nil, Errorf(CodeNotFound, "no such key")
		}
		if key.Revoked {
			return nil, nil
		}
		return []Event{KeyRevoked{Key: key.ID, Organization: key.Organization, At: c.Now, Reason: c.Reason}}, nil
	case RecordFence:
		if !key.Revoked {
			return nil, Errorf(CodeInternal, "a key that is not revoked has no fence")
		}
		return []Event{RevocationFenced{
			Key: key.ID, Organization: key.Organization, Position: c.Position, Confirmed: c.Confirmed, Expired: c.Expired, Waited: c.Waited, At: c.Now,
		}}, nil
	case UseKey:
		if !key.Exists() {
			return nil, Errorf(CodeNotFound, "no such key")
		}
		outcome := key.Judge(c.Now, c.Required)
		switch {
		case outcome != OutcomeValid:
		case c.OverQuota:
			outcome = OutcomeQuotaExceeded
		case c.OverLimit:
			outcome = OutcomeRateLimited
		}
		use := Use{Key: key.ID, Outcome: outcome, Count: 1, First: c.Now, Last: c.Now, DecidedAt: c.DecidedAt}
		return []Event{KeyUsed{Organization: key.Organization, Boot: c.Boot, Flush: c.Flush, Uses: []Use{use}, At: c.Now}}, nil
	}
	return nil, fmt.Errorf("decide: unknown key command %T", command)
}

func createKey(key Key, c CreateKey) ([]Event, error) {
	switch {
	case key.Exists():
		return nil, Errorf(CodeUnprocessable, "the key exists already")
	case c.Key.IsZero() || c.Organization == "" || c.Digest == (Digest{}) || c.Name == "":
		return nil, Errorf(CodeInternal, "create needs an id, an organization, a digest and a name")
	case len(c.Scopes) == 0:
		return nil, Invalid("scopes", "must name at least one scope")
	case c.RateLimit > MostRateLimit:
		return nil, Invalid("rateLimit", "must be at most %d", MostRateLimit)
	case !c.ExpiresAt.IsZero() && !c.ExpiresAt.After(c.Now):
		return nil, Invalid("expiresAt", "must be in the future")
	case !c.Granter.ImplyAll(c.Scopes):
		return nil, &Error{Code: CodeForbidden, Field: "scopes", Message: "a credential cannot grant a scope that it does not imply itself"}
	}
	if err := checkQuota(c.Quota); err != nil {
		return nil, err
	}
	return []Event{KeyCreated{
		Key: c.Key, Organization: c.Organization, Digest: c.Digest, Prefix: c.Prefix, Scopes: c.Scopes, RateLimit: c.RateLimit, Quota: c.Quota,
		ExpiresAt: c.ExpiresAt, At: c.Now, Name: c.Name, CreatedBy: c.CreatedBy,
	}}, nil
}

// EvolveKey folds one event of the key's stream. Uses live in a lane of their own and never
// reach it.
func EvolveKey(key Key, event Event) (Key, error) {
	switch e := event.(type) {
	case KeyCreated:
		if key.Exists() {
			return key, fmt.Errorf("evolve: key %s is created twice", e.Key)
		}
		return Key{
			ID: e.Key, Organization: e.Organization, Digest: e.Digest, Prefix: e.Prefix, Name: e.Name, Scopes: e.Scopes,
			RateLimit: e.RateLimit, Quota: e.Quota, CreatedAt: e.At, CreatedBy: e.CreatedBy, ExpiresAt: e.ExpiresAt,
		}, nil
	case KeyRevoked:
		if !key.Exists() {
			return key, fmt.Errorf("evolve: key %s is revoked before it is created", e.Key)
		}
		key.Revoked, key.RevokedAt = true, e.At
		return key, nil
	case RevocationFenced:
		if !key.Revoked {
			return key, fmt.Errorf("evolve: key %s is fenced before it is revoked", e.Key)
		}
		return key, nil
	case KeyUsed, MemberAdded, MemberRemoved, OrganizationErased:
		return key, fmt.Errorf("evolve: %s does not belong to a key's stream", event.EventName())
	}
	return key, fmt.Errorf("evolve: unknown event %T", event)
}
