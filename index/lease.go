package index

import (
	"time"

	"keyledger/domain"
)

// A lease is the right to say yes for a time.
//
// # What it rests on
//
// The verifier reads its clock (asked), then asks the primary where the log ends
// (head). Whatever was revoked before that is at head or below. So once head is
// applied, a verdict that is given before asked + L can only miss what was revoked
// later than asked; and whoever revokes waits for a confirmation, or until L has
// passed since the commit. A lease therefore counts from before the question, never from
// the answer, and not before its head is applied.
//
// # The clock
//
// Verdicts are judged at the moment that the request brings, which was read after it arrived. That
// moment's monotonic part is compared: setting the clock changes no lease. But
// the monotonic clock may stop with the machine, and then time has passed that it does
// not know of. The wall clock does: when it has advanced more than mostSkew further than
// the monotonic one since the question, the lease is void. One reading gives both. A wall clock that is
// set forward voids leases too, until the next renewal; one that is set back voids none.
//
// # Two words
//
// until and wall are read apart while grant writes them, the wall first. A reader loads until
// first. So the wall that it sees belongs to the lease whose until it saw, or to a later one;
// and that one alone permits the verdict, since it ends later and its head is applied. Both
// stand in the contents: a lease says nothing about other contents, which may be behind its head.

// mostSkew is how much further than the monotonic clock the wall clock may have advanced.
const mostSkew = 50 * time.Millisecond

// grant is a lease: when it was asked for, and what must be applied for it to count.
type grant struct {
	asked  time.Duration // since base, monotonic
	offset int64         // of the wall clock to that, in nanoseconds
	head   domain.Position
}

// leases is what the index was granted. The index's mu guards it.
//
// An index that lags never has the newest head while the log moves on, hence oldest: its head
// stays where it is until it is applied. Of those that came since, the newest is the best.
type leases struct {
	held           grant // counts; zero: none
	oldest, newest grant // do not count yet; zero: none
}

func (g grant) given() bool { return g != grant{} }

// Grant gives the index a lease: asked is the clock, with its monotonic part,
// before somebody asked where the log ends, and head the answer. It counts once head is
// applied. An index that is not leased needs none.
func (x *Index) Grant(asked time.Time, head domain.Position) {
	since := asked.Sub(x.base)
	g := grant{asked: since, offset: asked.UnixNano() - int64(since), head: head}
	x.mu.Lock()
	defer x.mu.Unlock()
	l := &x.leases
	switch {
	case since <= max(l.held.asked, l.oldest.asked, l.newest.asked):
		return // nothing new
	case !l.oldest.given():
		l.oldest = g
	default:
		l.newest = g
	}
	if c := x.contents.Load(); c != nil {
		x.settle(c)
	}
}

// settle lets those leases count whose heads are applied. The caller holds mu.
func (x *Index) settle(c *contents) {
	if !c.loaded.Load() {
		return
	}
	if !x.leased {
		c.wall.Store(forever)
		c.until.Store(forever)
		return
	}
	l, position := &x.leases, domain.Position(c.position.Load())
	if l.newest.given() && l.newest.head <= position {
		l.held, l.oldest, l.newest = l.newest, grant{}, grant{}
	}
	if l.oldest.given() && l.oldest.head <= position {
		l.held, l.oldest, l.newest = l.oldest, l.newest, grant{}
	}
	if l.held.given() && l.held.head <= position {
		c.wall.Store(l.held.offset + int64(mostSkew))
		c.until.Store(int64(l.held.asked + x.lease))
	}
}

var (
	errNotReady  = &domain.Error{Code: domain.CodeUnavailable, Message: "the keys are not loaded yet, try again"}
	errNotLeased = &domain.Error{Code: domain.CodeUnavailable, Message: "revocations may have been missed since the ledger was out of reach, try again"}
)

// beyond decides when there is no lease: offset is the wall clock's to since. It
// says how old the newest lease is when the index is to go on nevertheless.
func (x *Index) beyond(c *contents, since time.Duration, offset int64) (age time.Duration, err error) {
	until := c.until.Load()
	if until == notReady {
		if c.loaded.Load() {
			return 0, errNotLeased
		}
		return 0, errNotReady
	}
	if x.maxStale <= x.lease {
		return 0, errNotLeased
	}
	age = since + x.lease - time.Duration(until)
	if suspended := offset - (c.wall.Load() - int64(mostSkew)); suspended > int64(mostSkew) {
		age += time.Duration(suspended) // time that the monotonic clock does not know of
	}
	if age >= x.maxStale {
		return 0, errNotLeased
	}
	return max(age, x.lease), nil
}

// Leased says whether verdicts are given at this moment: whether the keys are loaded
// and, where leases count, one does.
func (x *Index) Leased() bool {
	c := x.contents.Load()
	if c == nil {
		return false
	}
	now := x.clock()
	since := now.Sub(x.base)
	return int64(since) < c.until.Load() && now.UnixNano()-int64(since) <= c.wall.Load()
}
