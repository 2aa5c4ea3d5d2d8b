package index

import (
	"sync"
	"sync/atomic"
)

// tally is what is remembered of a key while it is in use: its uses since the
// last flush, and its limit. It fills a cache line, so that keys in heavy use
// do not slow each other, and the entries that all cores read stay unwritten.
//
// A key has a tally from its first use on until it was idle for a while; then
// another key gets it. Whoever holds on to it meanwhile must not count into the
// other key's: uses names the owner, and is exchanged as a whole.
type tally struct {
	uses    atomic.Uint64 // owner's reference, and how many uses since the last flush; 0: free
	recent  atomic.Uint64 // the limit's two words: limit.go
	past    atomic.Uint64
	times   atomic.Uint64 // when the first and the last use since the last flush were: span
	decided atomic.Uint64 // the highest position that a use was decided at
	late    atomic.Int64  // the last use, when that is too far from the first for times
	spent   atomic.Uint64 // what the other nodes are to hear of, and have: share.go
	agreed  atomic.Uint64
}

const (
	countBits = 64 - refBits
	countMask = 1<<countBits - 1
	// idleMillis is how long a tally without uses is kept.
	idleMillis = (buckets + 2) * bucketWidth / 1_000_000
)

func (t *tally) belongsTo(owner uint32) bool { return uint32(t.uses.Load()>>countBits) == owner }

// idle says whether nothing in the tally matters any more. The wall clock alone
// would not do: when it is set forward, limits must not be forgotten.
func (t *tally) idle(millis int64, bucket uint64) bool {
	_, last := t.span()
	return millis-last > idleMillis && t.recent.Load()>>bucketShift&bucketMask+buckets+1 < bucket
}

// span says when the first and the last use were, in Unix milliseconds.
func (t *tally) span() (first, last int64) {
	times := span(t.times.Load())
	first, last = times.millis()
	if times>>momentBits == mostSpan {
		last = max(last, t.late.Load())
	}
	return first, last
}

// count adds one use. It says false when the tally is not the owner's any more.
func (t *tally) count(owner uint32, millis int64, position uint64) bool {
	for {
		uses := t.uses.Load()
		if uint32(uses>>countBits) != owner {
			return false
		}
		// What the flush reads beside the count is written before the count, so that it
		// covers every use that it counts.
		old := span(t.times.Load())
		times := newSpan(millis)
		if uses&countMask != 0 {
			times = old.extend(millis)
		}
		if times != old {
			t.times.Store(uint64(times))
		}
		if times>>momentBits == mostSpan {
			t.late.Store(millis) // nothing was flushed for more than an hour
		}
		if t.decided.Load() < position {
			t.decided.Store(position)
		}
		if t.uses.CompareAndSwap(uses, uses+1) {
			return true
		}
	}
}

// span is two moments in one word: 42 bits of Unix milliseconds, which last until
// 2109, and above them how many milliseconds later the second one was, at most 70 minutes.
type span uint64

const (
	momentBits = 42
	mostSpan   = 1<<(64-momentBits) - 1
)

func newSpan(millis int64) span { return span(millis) & (1<<momentBits - 1) }

func (s span) millis() (first, last int64) {
	first = int64(s & (1<<momentBits - 1))
	return first, first + int64(s>>momentBits)
}

// extend moves the second moment on. It never moves it back.
func (s span) extend(millis int64) span {
	first, last := s.millis()
	if millis <= last {
		return s
	}
	return newSpan(first) | span(min(millis-first, mostSpan))<<momentBits
}

// tallies hands them out. The memory grows with the keys that are in use at a
// time, not with all keys.
type tallies struct {
	all     slab[[segmentSize]tally]
	mu      sync.Mutex
	made    atomic.Uint32 // under mu
	stripes [tallyStripes]tallyStripe
}

type tallyStripe struct {
	mu   sync.Mutex
	free []uint32
	_    [32]byte
}

const (
	tallyStripes = 64
	tallyBatch   = 32
)

func (ts *tallies) at(number uint32) *tally {
	return &ts.all.segment(number >> segmentBits)[number&(segmentSize-1)]
}

// take gives a free tally to an owner.
func (ts *tallies) take(owner uint32, millis int64, time uint32) (uint32, error) {
	s := &ts.stripes[owner%tallyStripes]
	s.mu.Lock()
	if len(s.free) == 0 {
		if err := ts.refill(s); err != nil {
			s.mu.Unlock()
			return 0, err
		}
	}
	number := s.free[len(s.free)-1]
	s.free = s.free[:len(s.free)-1]
	s.mu.Unlock()
	t := ts.at(number)
	// Before it is anybody's: a tally that seems idle would be taken away at once.
	t.times.Store(uint64(newSpan(millis)))
	t.decided.Store(0)
	t.spent.Store(0)
	t.agreed.Store(uint64(time) << 32)
	t.uses.Store(uint64(owner) << countBits)
	return number, nil
}

func (ts *tallies) refill(s *tallyStripe) error {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	first := ts.made.Load() + 1
	if err := growTo(&ts.all, first+tallyBatch-1); err != nil {
		return err
	}
	for i := range uint32(tallyBatch) {
		s.free = append(s.free, first+tallyBatch-1-i)
	}
	ts.made.Store(first + tallyBatch - 1)
	return nil
}

// release gives a tally back that nobody owns any more.
func (ts *tallies) release(number, owner uint32) {
	t := ts.at(number)
	// Whoever still holds what the words were must fail to exchange them, hence another turn.
	for {
		recent := t.recent.Load()
		turn := (recent>>turnShift + 1) & turnMask
		t.past.Store(turn << pastBits)
		if t.recent.CompareAndSwap(recent, turn<<turnShift|recent>>bucketShift&bucketMask<<bucketShift) {
			break
		}
	}
	s := &ts.stripes[owner%tallyStripes]
	s.mu.Lock()
	s.free = append(s.free, number)
	s.mu.Unlock()
}
