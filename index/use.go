package index

import (
	"sync/atomic"

	"keyledger/domain"
)

// number is a tally's.
type number = atomic.Uint32

func (c *contents) number(ref uint32) *number {
	return &c.inUse.segment(ref >> segmentBits)[ref&(segmentSize-1)]
}

// use charges a key's limit and counts the use, or counts that it was refused
// because of the limit. bucket is the moment on the limit's clock. What was accepted
// without a lease is rare, and counted where refusals are.
func (c *contents) use(share *sharing, ref uint32, f *found, t *traits, free, stale bool, millis int64, bucket, position uint64) (outcome domain.Outcome, number uint32, s standing, err error) {
	for {
		tally, number, s, limited, err := c.admit(share, ref, t, free, millis, bucket)
		switch {
		case err != nil:
			return 0, 0, s, err
		case limited:
			c.refuse(ref, f.id, t.organization, domain.OutcomeRateLimited, millis, position)
			return domain.OutcomeRateLimited, 0, s, nil
		case stale:
			c.refuse(ref, f.id, t.organization, domain.OutcomeValidStale, millis, position)
			return domain.OutcomeValid, 0, s, nil
		}
		// When the tally was taken away in between, what was charged went with it, and
		// is charged again in the next one.
		if tally.count(ref, millis, position) {
			return domain.OutcomeValid, number, s, nil
		}
		c.unlink(ref, number)
	}
}

// admit charges a key's limit with a use, unless it is reached.
func (c *contents) admit(share *sharing, ref uint32, t *traits, free bool, millis int64, bucket uint64) (tally *tally, number uint32, s standing, limited bool, err error) {
	for {
		if tally, number, err = c.tally(ref, millis, bucket); err != nil {
			return nil, 0, s, false, err
		}
		switch {
		case t.limit == 0:
		case free:
			s = tally.peek(ref, t.limit, bucket)
		default:
			most := t.limit
			if share != nil {
				most = share.part(t.limit)
				ok, due := tally.spend(Chunk(t.limit), bucket)
				if !ok {
					if s = tally.peek(ref, t.limit, bucket); s.left > t.limit-most {
						return nil, 0, s, false, errShort
					}
					s.left = 0
					return nil, 0, s, true, nil
				}
				if due {
					share.isDue(c, ref)
				}
			}
			var result taking
			s, result = tally.take(ref, t.limit, most, bucket)
			if result != taken && share != nil {
				tally.unspend()
			}
			if result == refused {
				return nil, 0, s, true, nil
			}
			if result == gone {
				c.unlink(ref, number)
				continue
			}
		}
		return tally, number, s, false, nil
	}
}

// tally gives an entry's tally, and makes it have one.
func (c *contents) tally(ref uint32, millis int64, bucket uint64) (*tally, uint32, error) {
	n := c.number(ref)
	if number := n.Load(); number != 0 {
		return c.tallies.at(number), number, nil
	}
	number, err := c.tallies.take(ref, millis, uint32(bucket)<<8|uint32(c.load))
	if err != nil {
		return nil, 0, err
	}
	if n.CompareAndSwap(0, number) {
		return c.tallies.at(number), number, nil
	}
	// Somebody was faster.
	c.tallies.at(number).uses.Store(0)
	c.tallies.release(number, ref)
	number = n.Load()
	if number == 0 {
		return c.tally(ref, millis, bucket)
	}
	return c.tallies.at(number), number, nil
}

// unlink helps on with taking away a tally that is no longer the entry's.
func (c *contents) unlink(ref, number uint32) { c.number(ref).CompareAndSwap(number, 0) }

// collect takes the counts out of up to so many tallies from a number on, and
// gives back those that were idle for long. It says where to go on: 0 when all
// were seen. One goroutine at a time.
func (c *contents) collect(from uint32, most int, millis int64, bucket uint64, uses []Counted) ([]Counted, uint32) {
	made := c.tallies.made.Load()
	for n := from; n <= made; n++ {
		if len(uses) >= most {
			return uses, n
		}
		t := c.tallies.at(n)
		word := t.uses.Load()
		switch {
		case word == 0:
		case word&countMask != 0:
			uses = c.take(n, uses)
		case t.idle(millis, bucket) && !c.hasQuota(uint32(word>>countBits)) && t.uses.CompareAndSwap(word, 0):
			owner := uint32(word >> countBits)
			c.unlink(owner, n)
			c.tallies.release(n, owner)
		}
	}
	return uses, 0
}

// hasQuota says whether a key has a quota. Its tally is its own for good: no use is counted in it, by which
// whoever charges the limit would see that it was taken away.
func (c *contents) hasQuota(ref uint32) bool {
	return c.profiles.at(c.entry(ref).profile()).traits().flags&flagQuota != 0
}

// take takes the count out of one tally.
func (c *contents) take(number uint32, uses []Counted) []Counted {
	t := c.tallies.at(number)
	for {
		word := t.uses.Load()
		if word&countMask == 0 {
			return uses
		}
		// Read before the exchange, so that it belongs to no key but the owner.
		first, last := t.span()
		decided := t.decided.Load()
		if !t.uses.CompareAndSwap(word, word&^uint64(countMask)) {
			continue // more came
		}
		e := c.entry(uint32(word >> countBits))
		place := c.profiles.at(e.profile()).traits().organization
		return append(uses, Counted{
			Organization: domain.OrganizationID(c.profiles.organization(place)), Key: e.id(), Outcome: domain.OutcomeValid,
			Count: word & countMask, First: first, Last: last, Decided: domain.Position(decided),
		})
	}
}

// collectRefusals takes out what was refused.
func (c *contents) collectRefusals(uses []Counted) []Counted {
	for i := range c.refusals {
		s := &c.refusals[i]
		s.mu.Lock()
		var counts map[refusalKey]refusal
		if len(s.counts) > 0 {
			counts, s.counts = s.counts, map[refusalKey]refusal{}
		}
		s.mu.Unlock()
		for k, r := range counts {
			uses = append(uses, Counted{
				Organization: domain.OrganizationID(c.profiles.organization(r.organization)), Key: k.key, Outcome: k.outcome,
				Count: r.count, First: r.first, Last: r.last, Decided: domain.Position(r.decided),
			})
		}
	}
	return uses
}

// peek says where an entry stands against its limit, without counting a use.
func (c *contents) peek(ref, limit uint32, bucket uint64) standing {
	if number := c.number(ref).Load(); number != 0 {
		return c.tallies.at(number).peek(ref, limit, bucket)
	}
	return standing{left: limit}
}
