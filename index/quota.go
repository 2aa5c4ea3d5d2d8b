package index

import (
	"math"
	"sync"
	"sync/atomic"
	"time"

	"keyledger/domain"
)

// The quotas of keys: how many uses of a key are accepted in all of a day, of a month, or ever.
//
// # What is promised
//
// In one index, a key with a quota of L is never accepted more than L times in a period, counting
// what it was told of (Spend). A use that is refused because of the quota takes nothing of the limit
// a minute, and the other way round.
//
// # How
//
// Few keys have one, so it costs the others a flag. Those that have one have a place of their
// own, found by the key's id. It belongs to the index and not to what was loaded, so that
// loading anew forgets nothing. Its lock is held while a use is judged, which nobody
// but this key's other uses ever waits for; the limit is charged under it, so neither is
// ever to be given back.
//
// The uses are counted beside the tallies, as those without a lease are, and each period for itself: what is recorded
// of a window never spans two periods, and the sum of what the log says of a period is what was spent
// in it. For the same reason a use that is accepted when the clock was set back is recorded as of the beginning of
// the period that it was spent in. A period never goes back.
//
// # What must be known
//
// A key that comes with a snapshot was used before. Until somebody has said how often (Base, Joined),
// the answer is that nothing is known: neither yes nor no. Of a key that was created after that, this
// index knows every use that it accepts itself, from the first on.

// quota is one key's.
type quota struct {
	key    domain.KeyID
	limit  uint64
	refill domain.Refill
	born   uint64    // the position that created it; 0: before what was loaded
	bornAt time.Time // about

	mu    sync.Mutex
	spent uint64
	since int64           // the period, in Unix microseconds
	until int64           // the first moment behind it
	known bool            // what was spent before is in spent
	heard bool            // what others spend is, too, as Spend tells it
	from  domain.Position // of the usage lane: in spent is everything up to here
}

// quotas are those of an index. What is not atomic is guarded by the index's mu.
type quotas struct {
	history History
	seed    seed
	all     slab[[segmentSize]quota]
	made    uint32
	byKey   table
	unknown atomic.Int64
	late    atomic.Bool // to make them known takes long
}

// errQuotaUnknown is the answer until it is known what was spent.
var errQuotaUnknown = &domain.Error{Code: domain.CodeUnavailable, Message: "it is not known yet how much of the key's quota is used, try again"}

// ErrElsewhere says that nothing but the key's quota may be against a use, and that it is kept
// elsewhere: [Options].QuotasElsewhere. The use is not counted.
var ErrElsewhere = &domain.Error{Code: domain.CodeUnavailable, Message: "the key's quota is kept elsewhere"}

func newQuotas(history History) *quotas {
	qs := &quotas{history: history, seed: newSeed()}
	qs.byKey = newTable(shards, 0.88, 1.2, func(ref uint32) uint64 { return qs.seed.id(qs.at(ref).key) })
	return qs
}

func (qs *quotas) at(ref uint32) *quota {
	return &qs.all.segment(ref >> segmentBits)[ref&(segmentSize-1)]
}

// find gives a key's quota, nil when it has none.
func (qs *quotas) find(id domain.KeyID) *quota {
	if qs == nil {
		return nil
	}
	for p := qs.byKey.probe(qs.seed.id(id)); ; {
		ref := p.next()
		if ref == 0 {
			return nil
		}
		if q := qs.at(ref); q.key == id {
			return q
		}
	}
}

// of gives the quota of a key that has one.
func (qs *quotas) of(id domain.KeyID) domain.Quota {
	if q := qs.find(id); q != nil {
		return domain.Quota{Limit: q.limit, Refill: q.refill}
	}
	return domain.Quota{Limit: domain.MostQuota, Refill: domain.RefillNone} // it has no place: nobody answers for it
}

// add makes a place for a key's quota, unless there is one.
func (qs *quotas) add(id domain.KeyID, quotum domain.Quota) (*quota, error) {
	if q := qs.find(id); q != nil {
		return q, nil
	}
	ref := qs.made + 1
	if err := growTo(&qs.all, ref); err != nil {
		return nil, err
	}
	q := qs.at(ref)
	q.key, q.limit, q.refill = id, quotum.Limit, quotum.Refill
	q.since, q.until = math.MinInt64, math.MinInt64
	if q.refill == domain.RefillNone {
		q.until = math.MaxInt64
	}
	qs.made = ref
	return q, nil
}

// show lets a place be found.
func (qs *quotas) show(q *quota) {
	if qs.find(q.key) == nil {
		qs.byKey.insert(qs.seed.id(q.key), qs.made)
	}
}

// roll begins the period that holds a moment, unless that is over or runs.
func (q *quota) roll(micros int64) {
	if micros < q.until {
		return
	}
	start := q.refill.Start(time.UnixMicro(micros))
	q.since, q.until, q.spent = start.UnixMicro(), q.refill.Next(start).UnixMicro(), 0
}

// add counts uses that were accepted at a moment, elsewhere or before. Those of a
// period that is over do not matter any more.
func (q *quota) add(micros int64, uses uint64) {
	q.roll(micros)
	if micros >= q.since {
		q.spent += min(uses, math.MaxUint64-q.spent)
	}
}

// standing is where the key stands. The caller holds mu.
func (q *quota) standing() (s domain.QuotaStanding) {
	s.Limit, s.Refill = q.limit, q.refill
	s.Remaining = q.limit - min(q.spent, q.limit)
	if q.until != math.MaxInt64 {
		s.Reset = time.UnixMicro(q.until).UTC()
	}
	return s
}

// stand says where a key stands at a moment, without a use; nothing while that is not known.
func (qs *quotas) stand(id domain.KeyID, micros int64) (s domain.QuotaStanding) {
	q := qs.find(id)
	if q == nil {
		return s
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.known {
		q.roll(micros)
		s = q.standing()
	}
	return s
}

// useQuota is use for a key with a quota.
func (x *Index) useQuota(c *contents, share *sharing, ref uint32, f *found, t *traits, v *domain.Verification, verdict *domain.Verdict, micros int64, bucket, position uint64) (s standing, err error) {
	if x.quotasElsewhere {
		return s, ErrElsewhere
	}
	q := x.quotas.Load().find(f.id)
	if q == nil {
		return s, errQuotaUnknown
	}
	outcome, period := domain.OutcomeValid, int64(0)
	q.mu.Lock()
	if !q.known {
		q.mu.Unlock()
		return s, errQuotaUnknown
	}
	q.roll(micros)
	limited := false
	switch {
	case q.spent >= q.limit:
		outcome = domain.OutcomeQuotaExceeded
		s = c.peek(ref, t.limit, bucket)
	case t.limit > 0:
		_, _, s, limited, err = c.admit(share, ref, t, v.Free, micros/1000, bucket)
	}
	switch {
	case err != nil:
		q.mu.Unlock()
		if err != errShort { //nolint:errorlint // ours, and never wrapped
			err = domain.Unavailable(err)
		}
		return s, err
	case limited:
		outcome = domain.OutcomeRateLimited
	case outcome == domain.OutcomeValid:
		q.spent++
		// A clock that was set back does not bring back the period that it shows.
		micros, period = max(micros, q.since), q.until
	}
	verdict.Quota = q.standing()
	q.mu.Unlock()
	verdict.Outcome = outcome
	if outcome == domain.OutcomeValid && verdict.Stale {
		outcome = domain.OutcomeValidStale
	}
	// Whoever adds these uses up waits for the key's creation first.
	c.note(ref, refusalKey{f.id, outcome, period}, t.organization, micros/1000, max(position, q.born))
	return s, nil
}

// define makes places for the quotas of what was loaded. The caller holds mu.
func (x *Index) define(c *contents) {
	defined := c.defined
	c.defined = nil
	if x.quotasElsewhere {
		return
	}
	qs := x.quotas.Load()
	if qs != nil && qs.history != c.history {
		qs = nil // what was spent in another history says nothing
		x.quotas.Store(nil)
	}
	if len(defined) == 0 {
		return
	}
	if qs == nil {
		qs = newQuotas(c.history)
	}
	before := qs.made
	for _, d := range defined {
		q, err := qs.add(d.key, d.quota)
		if err != nil { // it is not found, and so nothing is said of the key
			x.logger.Error("a key's quota has no place in the verification index: the key is not answered for", "key", d.key, "error", err)
			continue
		}
		qs.show(q)
	}
	qs.unknown.Add(int64(qs.made - before))
	x.quotas.Store(qs)
	x.quotasChange()
}

// defineNew makes a place for the quota of a key that an event creates. The caller holds mu.
func (x *Index) defineNew(c *contents, e *Event) error {
	created, ok := e.Event.(domain.KeyCreated)
	if !ok || !created.Quota.Given() || x.quotasElsewhere {
		return nil
	}
	qs := x.quotas.Load()
	if qs == nil {
		qs = newQuotas(c.history)
		x.quotas.Store(qs)
		defer x.quotasChange()
	}
	if qs.find(created.Key) != nil {
		return nil
	}
	q, err := qs.add(created.Key, created.Quota)
	if err != nil {
		return err
	}
	q.born, q.bornAt = uint64(e.Position), created.At
	if x.loadedAt.After(q.bornAt) {
		q.bornAt = x.loadedAt
	}
	if e.Position > x.target {
		q.known, q.heard = true, true
	} else {
		qs.unknown.Add(1) // created before this index was: it may have been used
		defer x.quotasChange()
	}
	qs.show(q)
	return nil
}

func (x *Index) quotasChange() {
	select {
	case x.quotaNews <- struct{}{}:
	default:
	}
}

// QuotaNews holds a token when since it was taken the first key with a quota came, or one
// whose quota is not known.
func (x *Index) QuotaNews() <-chan struct{} { return x.quotaNews }

// QuotaKey is a key with a quota.
type QuotaKey struct {
	Key    domain.KeyID
	Refill domain.Refill
}

// UnknownQuotas gives the keys whose quotas are not known yet.
func (x *Index) UnknownQuotas() (keys []QuotaKey) {
	qs := x.quotas.Load()
	if qs == nil || qs.unknown.Load() == 0 {
		return nil
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	for ref := uint32(1); ref <= qs.made; ref++ {
		q := qs.at(ref)
		q.mu.Lock()
		if !q.known {
			keys = append(keys, QuotaKey{q.key, q.refill})
		}
		q.mu.Unlock()
	}
	return keys
}

// OldestQuota says when, about, the oldest of the keys with a quota was created that were since the
// index was loaded: the zero time when there is none.
func (x *Index) OldestQuota() (oldest time.Time) {
	x.mu.Lock()
	defer x.mu.Unlock()
	qs := x.quotas.Load()
	for ref := uint32(1); qs != nil && ref <= qs.made; ref++ {
		if q := qs.at(ref); q.born > 0 && (oldest.IsZero() || q.bornAt.Before(oldest)) {
			oldest = q.bornAt
		}
	}
	return oldest
}

// Base begins what is known of a quota: everything up to a position of the usage lane is in what
// Before says of it. now begins the period, unless a later one has begun.
func (x *Index) Base(id domain.KeyID, from domain.Position, now time.Time) {
	if q := x.quotas.Load().find(id); q != nil {
		q.mu.Lock()
		defer q.mu.Unlock()
		if !q.known {
			q.spent, q.from, q.heard = 0, from, false
			q.roll(now.UnixMicro())
		}
	}
}

// Before counts uses up to the position that Base was told.
func (x *Index) Before(id domain.KeyID, at time.Time, uses uint64) {
	if q := x.quotas.Load().find(id); q != nil {
		q.mu.Lock()
		defer q.mu.Unlock()
		if !q.known {
			q.add(at.UnixMicro(), uses)
		}
	}
}

// Spend counts what an event of the usage lane says was accepted elsewhere. Events come in
// order. Those that come again, for keys that came since, count for these alone.
func (x *Index) Spend(position domain.Position, again bool, uses []domain.Use) {
	qs := x.quotas.Load()
	if qs == nil {
		return
	}
	for i := range uses {
		u := &uses[i]
		if !u.Outcome.Accepted() {
			continue
		}
		if q := qs.find(u.Key); q != nil {
			q.mu.Lock()
			if position > q.from && !(again && q.heard) {
				q.add(u.Last.UnixMicro(), u.Count)
			}
			q.mu.Unlock()
		}
	}
}

// Heard says that these keys have what came again: from here on they get what all get.
func (x *Index) Heard(keys []QuotaKey) {
	for _, k := range keys {
		if q := x.quotas.Load().find(k.Key); q != nil {
			q.mu.Lock()
			q.heard = true
			q.mu.Unlock()
		}
	}
}

// Known says that all that was spent before is told: these keys are answered for.
func (x *Index) Known(keys []QuotaKey) {
	qs := x.quotas.Load()
	for _, k := range keys {
		if q := qs.find(k.Key); q != nil {
			q.mu.Lock()
			if !q.known {
				q.known = true
				qs.unknown.Add(-1)
			}
			q.mu.Unlock()
		}
	}
}

// QuotasLate says that quotas stay unknown for some time: the others of the keys
// need not wait for that.
func (x *Index) QuotasLate() {
	if qs := x.quotas.Load(); qs != nil {
		qs.late.Store(true)
	}
}

// quotasKnown says whether nobody need wait for quotas.
func (x *Index) quotasKnown() bool {
	qs := x.quotas.Load()
	return qs == nil || qs.unknown.Load() == 0 || qs.late.Load()
}

// Quota says where a key stands against its quota at a moment; false when it has none, or
// that is not known.
func (x *Index) Quota(id domain.KeyID, now time.Time) (domain.QuotaStanding, bool) {
	s := x.quotas.Load().stand(id, now.UnixMicro())
	return s, s.Given()
}
