package domain

import "time"

// Verification asks for a verdict on one presented key.
type Verification struct {
	Digest   Digest
	Required Scopes         // scopes that the key must imply; may be empty
	Within   OrganizationID // when set, another organization's key is not found
	Now      time.Time      // read after the request arrived, with its monotonic part
	// Free judges a key without its limit, and costs none of it. It is for a key
	// that asks about another one, whose limit alone a verification counts against,
	// and for authorising the same request a second time. A quota counts these uses too:
	// they are recorded, and it is what the log says that counts.
	Free bool
	// Silent looks again at a key that was admitted before, while what it was admitted
	// for goes on: it is no use, costs nothing and is recorded nowhere.
	Silent bool
}

// Verdict is the answer to a Verification. Only Outcome and Position are set
// when the key is not found.
type Verdict struct {
	Outcome      Outcome
	Key          KeyID
	Organization OrganizationID
	Name         string
	Scopes       Scopes // shared: never modified
	ExpiresAt    time.Time
	Version      uint64   // of the key's stream: what a command authorised by this key guards
	Position     Position // of the lifecycle lane at which this was decided
	// Age bounds how old that is: all that was committed so long ago is taken into
	// account. 0 where the verifier holds no leases.
	Age time.Duration
	// Stale says that Age is beyond the lease, and that the verifier was told to go on: what was
	// revoked meanwhile may be accepted.
	Stale bool
	Limit Limit
	Quota QuotaStanding
}

// Limit is where a key stands against its limit. The zero Limit is none.
type Limit struct {
	PerMinute uint32 // 0: the key has no limit
	Remaining uint32
	Next      time.Time // when a use is accepted again; now, or before, while Remaining is not 0
	Reset     time.Time // when Remaining is PerMinute again
}

// KeyQuery asks for one page of an organization's keys, newest first.
type KeyQuery struct {
	Organization OrganizationID
	Before       KeyID    // only keys listed after this one; zero: from the start
	Most         int      // page size; 0: all
	AtLeast      Position // the page shows at least everything up to here
}

// Fenced tells how a fence ended: from then on nobody accepts what was revoked.
type Fenced struct {
	Confirmed []ID          // verifiers that said that they know
	Expired   []ID          // verifiers whose leases were waited for instead
	Waited    time.Duration // since the commit; 0 when it held already
}
