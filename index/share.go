package index

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"keyledger/domain"
)

// The limits of several nodes.
//
// # What is promised
//
// With n nodes, a key with a limit of L a minute is accepted at most L + n * Chunk(L) times by all of
// them together in any 60 seconds, whatever messages are lost or late and whichever nodes can reach
// each other. docs/verification.md says what that takes.
//
// # How
//
// A node that is alone counts for itself: limit.go. With others, it charges its limiter with what they say they have
// used, when it hears of it, so that what it knows is never less than what it was told; and it accepts no more
// than a chunk of uses that not all others are known to have heard of. So at any moment every node knows all
// but a chunk of what each other one has accepted in the minute before.
//
// Whoever asks tells its own count, and gets theirs in the answer. That both are told at once is what makes it
// hold: who has answered, and accepts afterwards, has charged what it was asked with; and what it had accepted
// before, it has said.
//
// A node that is unreachable for longer than a limiter remembers is left alone with its part: it may accept
// limit / n, and those who have not heard of it share what remains. Both sides know of nothing that the other has
// accepted in the last minute, since neither has answered the other; hence the parts may not meet before both
// have forgotten.
//
// # Words
//
// Two words of the tally say what this node has accepted since the tally is this key's:
//
//	spent    32 bits  uses, counted before they are charged
//	         28 bits  the bucket of the newest
//	agreed   32 bits  how many of them all others have heard of
//	         32 bits  which time it is that a key has a tally: counts of different times are not compared

// Chunk is how many uses a node may accept that the others have not heard of yet.
func Chunk(limit uint32) uint32 { return max(1, (limit+chunksPerLimit-1)/chunksPerLimit) }

const chunksPerLimit = 50

// Spent is what a node has accepted of a key since some moment, which Time tells from others.
type Spent struct {
	Key   domain.KeyID
	Time  uint32
	Count uint32 // modulo 2^32

	contents *contents
	tally    uint32
	owner    uint32
}

// sharing is how a node counts while it is not alone.
type sharing struct {
	nodes, reached uint32 // how many there are, and how many share with this one, itself included

	mu      sync.Mutex
	due     map[dueKey]struct{}
	settled chan struct{}      // closed when others have heard
	heard   map[heardKey]heard // what others have said
	waiting atomic.Int32       // verifications
	silent  atomic.Bool        // the others did not answer the last time: nobody waits for them
	wake    func()             // somebody is due
}

type dueKey struct {
	contents *contents
	ref      uint32
}

type heardKey struct {
	from domain.ID
	key  domain.KeyID
}

type heard struct {
	time, count uint32
	at          uint64 // bucket
}

const (
	mostDue     = 1 << 16
	mostHeard   = 1 << 20
	mostWaiters = 1 << 12
	// shareWait is how long a verification waits until the others have heard.
	shareWait = 50 * time.Millisecond
	// heardFor is how many buckets what others have said is remembered.
	heardFor = 10 * 60 * 1_000_000_000 / bucketWidth
)

var errShort = errors.New("the others have not heard of the last uses yet")

// Share makes the index count as one of several nodes, of which it shares with some; reached counts
// itself. With nodes 1 it is alone. wake is called when there is something to tell the others:
// it must not block.
func (x *Index) Share(nodes, reached uint32, wake func()) {
	if nodes <= 1 {
		if old := x.sharing.Swap(nil); old != nil {
			old.settle()
		}
		return
	}
	old := x.sharing.Load()
	if old == nil {
		old = &sharing{due: map[dueKey]struct{}{}, settled: make(chan struct{}), heard: map[heardKey]heard{}}
		old.nodes, old.reached, old.wake = nodes, reached, wake
		x.sharing.Store(old)
		return
	}
	if old.nodes == nodes && old.reached == reached {
		return
	}
	old.mu.Lock()
	next := &sharing{nodes: nodes, reached: reached, due: old.due, settled: make(chan struct{}), heard: old.heard, wake: wake}
	x.sharing.Store(next)
	old.due, old.heard = map[dueKey]struct{}{}, map[heardKey]heard{} // who still holds it, loses what it adds
	old.mu.Unlock()
	old.settle()
}

// part is what of a limit the nodes that are reached have together.
func (s *sharing) part(limit uint32) uint32 {
	if s.reached == s.nodes {
		return limit
	}
	return uint32(uint64(limit) * uint64(s.reached) / uint64(s.nodes))
}

// settle wakes those who wait.
func (s *sharing) settle() {
	s.mu.Lock()
	close(s.settled)
	s.settled = make(chan struct{})
	s.mu.Unlock()
}

// isDue notes that the others are to hear of a key.
func (s *sharing) isDue(c *contents, ref uint32) {
	s.mu.Lock()
	if len(s.due) < mostDue {
		s.due[dueKey{c, ref}] = struct{}{}
	}
	s.mu.Unlock()
	s.wake()
}

// await waits a moment for the others. It says whether it is worth trying again.
func (s *sharing) await(c *contents, ref uint32, deadline <-chan time.Time) bool {
	if s.waiting.Add(1) > mostWaiters {
		s.waiting.Add(-1)
		return false
	}
	defer s.waiting.Add(-1)
	s.mu.Lock()
	settled := s.settled
	s.mu.Unlock()
	s.isDue(c, ref)
	if s.silent.Load() {
		return false
	}
	select {
	case <-settled:
		return true
	case <-deadline:
		return false
	}
}

// spend counts a use that the others have not heard of, unless there is a chunk of them. due says that
// it is time to tell them.
func (t *tally) spend(chunk uint32, bucket uint64) (ok, due bool) {
	for {
		spent, agreed := t.spent.Load(), t.agreed.Load()
		count, last := uint32(spent), spent>>32
		pending := int32(count - uint32(agreed))
		if pending >= int32(chunk) {
			if bucket <= last+buckets+1 {
				return false, true
			}
			// All of them have left every window.
			t.agreed.CompareAndSwap(agreed, agreed>>32<<32|uint64(count))
			continue
		}
		if t.spent.CompareAndSwap(spent, max(bucket, last)<<32|uint64(count+1)) {
			return true, pending+1 == int32(max(1, chunk/2))
		}
	}
}

// unspend takes back a use that the limit did not let pass.
func (t *tally) unspend() {
	for {
		spent := t.spent.Load()
		if t.spent.CompareAndSwap(spent, spent>>32<<32|uint64(uint32(spent)-1)) {
			return
		}
	}
}

// charge counts uses of others, whatever the limit.
func (t *tally) charge(owner, limit uint32, uses, now uint64) bool {
	each := unit(limit)
	for {
		recent, past := t.recent.Load(), t.past.Load()
		if !t.belongsTo(owner) {
			return false
		}
		if recent>>aheadShift&15 != 0 {
			t.finish(recent, past, each)
			continue
		}
		if past>>pastBits != recent>>turnShift {
			continue
		}
		count, bucket := recent&recentMask, recent>>bucketShift&bucketMask
		if now > bucket {
			turn := (recent>>turnShift + 1) & turnMask
			if next := turn<<turnShift | min(now-bucket, 15)<<aheadShift | now<<bucketShift | count; t.recent.CompareAndSwap(recent, next) {
				t.finish(next, past, each)
			}
			continue
		}
		if t.recent.CompareAndSwap(recent, recent+min(uses, recentMask-count)) {
			return true
		}
	}
}

// Due gives up to so many keys that the others are to hear of. They stay due until Agreed
// is told that they have heard.
func (x *Index) Due(most int) []Spent {
	s := x.sharing.Load()
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	current := x.contents.Load()
	var all []Spent
	for k := range s.due {
		if len(all) == most {
			break
		}
		number := k.contents.number(k.ref).Load()
		if k.contents != current || number == 0 {
			delete(s.due, k)
			continue
		}
		if spent, ok := k.contents.spent(k.ref, number); ok {
			all = append(all, spent)
		}
	}
	return all
}

func (c *contents) spent(ref, number uint32) (s Spent, ok bool) {
	t := c.tallies.at(number)
	agreed := t.agreed.Load() // before spent: another key's would be newer
	s = Spent{Key: c.entry(ref).id(), Time: uint32(agreed >> 32), Count: uint32(t.spent.Load()), contents: c, tally: number, owner: ref}
	return s, t.belongsTo(ref)
}

// Agreed says that all others have heard of what Due gave, and have said what they have
// accepted themselves.
func (x *Index) Agreed(told []Spent) {
	s := x.sharing.Load()
	for _, each := range told {
		t := each.contents.tallies.at(each.tally)
		for {
			agreed := t.agreed.Load()
			if uint32(agreed>>32) != each.Time || !t.belongsTo(each.owner) || int32(each.Count-uint32(agreed)) <= 0 {
				break
			}
			if t.agreed.CompareAndSwap(agreed, agreed>>32<<32|uint64(each.Count)) {
				break
			}
		}
		if s == nil {
			continue
		}
		limit := each.contents.profiles.at(each.contents.entry(each.owner).profile()).traits().limit
		s.mu.Lock()
		if pending := int32(uint32(t.spent.Load()) - uint32(t.agreed.Load())); pending < int32(max(1, Chunk(limit)/2)) {
			delete(s.due, dueKey{each.contents, each.owner})
		}
		s.mu.Unlock()
	}
	if s != nil {
		s.silent.Store(false)
		s.settle()
	}
}

// GaveUp says that not all others have answered. Until they do, no verification waits for them.
func (x *Index) GaveUp() {
	if s := x.sharing.Load(); s != nil {
		s.silent.Store(true)
	}
}

// Hear charges what another node has accepted, and gives what this one has: of the same keys, as far
// as it knows them. What was heard before is charged once.
func (x *Index) Hear(from domain.ID, said []Spent) []Spent {
	s, now := x.sharing.Load(), bucketOf(x.clock().Sub(x.base))
	if s == nil {
		return nil
	}
	x.mu.Lock() // keys are looked up by id
	defer x.mu.Unlock()
	c := x.contents.Load()
	if c == nil {
		return nil
	}
	mine := make([]Spent, 0, len(said))
	for _, each := range said {
		ref := c.lookUp(each.Key)
		if ref == 0 {
			continue
		}
		limit := c.profiles.at(c.entry(ref).profile()).traits().limit
		if limit == 0 {
			continue
		}
		if uses := s.news(from, each, now); uses > 0 {
			c.charge(ref, limit, uint64(uses), x.clock().UnixMilli(), now)
		}
		// Read after it was charged: whatever is accepted from here on knows of it.
		if number := c.number(ref).Load(); number != 0 {
			if spent, ok := c.spent(ref, number); ok {
				mine = append(mine, spent)
			}
		}
	}
	return mine
}

// news is how many uses a node says that were not heard of.
func (s *sharing) news(from domain.ID, said Spent, now uint64) uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := heardKey{from, said.Key}
	before, known := s.heard[k]
	uses := said.Count
	if known && before.time == said.Time {
		uses -= before.count
	}
	switch {
	case known && int32(said.Time-before.time) < 0, int32(uses) < 0:
		uses = 0
	case uses > 0 || !known:
		if !known && len(s.heard) >= mostHeard {
			s.forget(now)
		}
		s.heard[k] = heard{said.Time, said.Count, now}
	}
	return uses
}

// forget drops what was not heard of for long. It costs at most that a count is charged again.
func (s *sharing) forget(now uint64) {
	for k, h := range s.heard {
		if h.at+heardFor < now || len(s.heard) >= mostHeard {
			delete(s.heard, k)
		}
	}
}

func (c *contents) charge(ref, limit uint32, uses uint64, millis int64, now uint64) {
	for {
		t, number, err := c.tally(ref, millis, now)
		if err != nil {
			return // nothing is accepted then either
		}
		if t.charge(ref, limit, uses, now) {
			return
		}
		c.unlink(ref, number)
	}
}

// Reveal makes what was accepted while the node was alone known to the others: it is told with what follows.
// It is called once the index shares, before Hear.
func (x *Index) Reveal() {
	c := x.contents.Load()
	if c == nil {
		return
	}
	now := bucketOf(x.clock().Sub(x.base))
	for number := uint32(1); number <= c.tallies.made.Load(); number++ {
		t := c.tallies.at(number)
		word := t.uses.Load()
		if word == 0 {
			continue
		}
		owner := uint32(word >> countBits)
		limit := c.profiles.at(c.entry(owner).profile()).traits().limit
		if limit == 0 {
			continue
		}
		used := limit - t.peek(owner, limit, now).left
		for used > 0 {
			spent := t.spent.Load()
			if t.spent.CompareAndSwap(spent, max(now, spent>>32)<<32|uint64(uint32(spent)+used)) {
				break
			}
		}
	}
}

// useShared is use for a key of which this node has accepted as much as it may before the others hear of it. It
// waits for them a moment.
func (x *Index) useShared(c *contents, ref uint32, f *found, t *traits, stale bool, millis int64, bucket, position uint64) (outcome domain.Outcome, number uint32, s standing, err error) {
	deadline := time.NewTimer(shareWait)
	defer deadline.Stop()
	for {
		share := x.sharing.Load()
		if share == nil || share.await(c, ref, deadline.C) {
			outcome, number, s, err = c.use(x.sharing.Load(), ref, f, t, false, stale, millis, bucket, position)
			if err != errShort { //nolint:errorlint // ours, and never wrapped
				return outcome, number, s, err
			}
			continue
		}
		c.refuse(ref, f.id, t.organization, domain.OutcomeRateLimited, millis, position)
		return domain.OutcomeRateLimited, 0, standing{newest: bucket}, nil
	}
}

// useQuotaShared is useShared for a key with a quota.
func (x *Index) useQuotaShared(c *contents, ref uint32, f *found, t *traits, v *domain.Verification, verdict *domain.Verdict, micros int64, bucket, position uint64) (s standing, err error) {
	deadline := time.NewTimer(shareWait)
	defer deadline.Stop()
	for {
		share := x.sharing.Load()
		if share == nil || share.await(c, ref, deadline.C) {
			s, err = x.useQuota(c, x.sharing.Load(), ref, f, t, v, verdict, micros, bucket, position)
			if err != errShort { //nolint:errorlint // ours, and never wrapped
				return s, err
			}
			continue
		}
		verdict.Outcome = domain.OutcomeRateLimited
		c.refuse(ref, f.id, t.organization, domain.OutcomeRateLimited, micros/1000, position)
		return standing{newest: bucket}, nil
	}
}
