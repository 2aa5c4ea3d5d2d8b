package index

import (
	"sync"

	"keyledger/domain"
)

// Uses that were refused are rarer and need no limit, so they are counted beside
// the entries, by key and outcome, until the next flush; and so are those of keys with a quota. Only known keys are
// counted here, so there is a bound; and a stripe's lock is nothing that an accepted
// use ever waits for.
type refusalStripe struct {
	mu     sync.Mutex
	counts map[refusalKey]refusal
	_      [40]byte
}

type refusalKey struct {
	key     domain.KeyID
	outcome domain.Outcome
	period  int64 // tells the periods of a quota apart; 0: it spent nothing of one
}

type refusal struct {
	organization uint64
	count        uint64
	first, last  int64
	decided      uint64
}

const refusalStripes = 128

// refuse counts a refused use, or one that was accepted without a lease.
func (c *contents) refuse(ref uint32, key domain.KeyID, organization uint64, outcome domain.Outcome, millis int64, position uint64) {
	c.note(ref, refusalKey{key: key, outcome: outcome}, organization, millis, position)
}

// note counts a use that has no tally to be counted in.
func (c *contents) note(ref uint32, k refusalKey, organization uint64, millis int64, position uint64) {
	s := &c.refusals[ref%refusalStripes]
	s.mu.Lock()
	r := s.counts[k]
	if r.count == 0 {
		r = refusal{organization: organization, first: millis, last: millis}
	}
	r.count++
	r.first, r.last = min(r.first, millis), max(r.last, millis)
	r.decided = max(r.decided, position)
	s.counts[k] = r
	s.mu.Unlock()
}
