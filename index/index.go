package index

import (
	"context"
	"log/slog"
	"math"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"keyledger/domain"
)

// Options are the choices of an index. All have a default.
type Options struct {
	Logger *slog.Logger     // nil: none
	Clock  func() time.Time // nil: time.Now
	// TuneCollector lets the index set the garbage collector's percentage for the
	// whole process, so that garbage does not grow with the number of keys. What was
	// set before (GOGC) then counts for everything but the index.
	TuneCollector bool
	// Leased makes verdicts depend on leases: after Grant, for as long as Lease. When not
	// set, verdicts are given once the keys are loaded, for ever.
	Leased bool
	Lease  time.Duration
	// MaxStale, when it is longer than Lease, is how old the newest lease may be for verdicts to be
	// given all the same. They say Stale, and a use that one of them accepts is
	// counted as OutcomeValidStale.
	MaxStale time.Duration
	// QuotasElsewhere has keys with a quota that nothing else is against refused with ErrElsewhere:
	// somebody else counts what is spent of it.
	QuotasElsewhere bool
}

// Index answers whether a key may be used, from memory.
type Index struct {
	logger          *slog.Logger
	clock           func() time.Time
	base            time.Time // limits and leases count time from here, and with the monotonic clock
	leased          bool
	lease           time.Duration
	maxStale        time.Duration
	quotasElsewhere bool
	quotaNews       chan struct{}

	_ [64]byte
	// What every verification reads. It is written when the keys are loaded, and
	// never by a verification.
	contents atomic.Pointer[contents]
	sharing  atomic.Pointer[sharing] // nil: this node is alone
	quotas   atomic.Pointer[quotas]  // nil: no key has one
	_        [64]byte

	unknown [unknownStripes]stripe

	mu       sync.Mutex // held by whoever changes contents or what follows
	leases   leases
	target   domain.Position // where the log ended when it was loaded
	former   []*contents     // whose uses may still have to be collected
	moved    chan struct{}   // closed when the position has changed; nil: nobody waits
	took     time.Duration   // by the last load
	loadedAt time.Time
	keys     int // in it
	loads    uint8

	percent int    // of the garbage collector, without the index; 0: it is left alone
	tuned   uint32 // segments when it was set last
}

type stripe struct {
	count atomic.Uint64
	_     [56]byte
}

const (
	unknownStripes = 64
	mostFormer     = 2
)

// notReady and forever are values of until and wall.
const (
	notReady = math.MinInt64
	forever  = math.MaxInt64
)

// New makes an empty index. It answers once it was loaded: Begin and Replace.
func New(o Options) *Index {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	x := &Index{logger: o.Logger, clock: o.Clock, base: o.Clock().Add(-2 * bucketWidth), leased: o.Leased, lease: o.Lease, maxStale: o.MaxStale, quotasElsewhere: o.QuotasElsewhere, quotaNews: make(chan struct{}, 1)}
	if o.TuneCollector {
		x.percent = debug.SetGCPercent(100)
		debug.SetGCPercent(x.percent)
	}
	return x
}

// Verify gives the verdict on a presented key and counts the use. It allocates
// nothing and asks nobody; where nodes keep limits together, it may wait a moment until the others
// have heard of a key's last uses (share.go). The only error is CodeUnavailable, while nothing is
// known or no lease counts. The verdict's strings and scopes are shared with the index, which never
// changes them.
func (x *Index) Verify(v domain.Verification) (verdict domain.Verdict, err error) {
	_, err = x.VerifyAt(&v, &verdict)
	return verdict, err
}

// VerifyAt also says where the use was counted, for [Collector.At].
func (x *Index) VerifyAt(v *domain.Verification, verdict *domain.Verdict) (where Place, err error) {
	c := x.contents.Load()
	if c == nil {
		return where, errNotReady
	}
	since := v.Now.Sub(x.base)
	until, offset := c.until.Load(), v.Now.UnixNano()-int64(since) // lease.go says why in this order
	switch {
	case int64(since) >= until || offset > c.wall.Load():
		if verdict.Age, err = x.beyond(c, since, offset); err != nil {
			return where, err
		}
		verdict.Stale = true
	case x.leased:
		verdict.Age = max(since+x.lease-time.Duration(until), 0)
	}
	where.contents = c
	// Read before the entry: what is decided may know more than it says, never less.
	position := c.position.Load()
	verdict.Position = domain.Position(position)

	digest := wordsOf(&v.Digest)
	var f found
	ref := c.find(&digest, &f)
	if ref == 0 {
		x.miss(v, verdict)
		return where, nil
	}
	t := c.profiles.at(f.profile).traits()
	organization := domain.OrganizationID(c.profiles.organization(t.organization))
	if v.Within != "" && v.Within != organization {
		x.miss(v, verdict)
		return where, nil
	}
	scopes := c.profiles.scopes.at(t.scopes)
	micros, bucket := v.Now.UnixMicro(), bucketOf(since)
	verdict.Key = f.id
	verdict.Organization = organization
	verdict.Name = c.names.text(f.name, f.size)
	verdict.Scopes = scopes.scopes
	verdict.ExpiresAt = moment(f.expires)
	verdict.Version = t.version

	// The order is domain.Key.Judge's, and quota and limit come last: a refusal costs none of either.
	switch {
	case t.flags&flagRevoked != 0:
		verdict.Outcome = domain.OutcomeRevoked
	case t.flags&flagDisabled != 0:
		verdict.Outcome = domain.OutcomeDisabled
	case passed(f.expires, micros):
		verdict.Outcome = domain.OutcomeExpired
	case !scopes.implyAll(v.Required):
		verdict.Outcome = domain.OutcomeInsufficientScope
	}
	var s standing
	switch {
	case v.Silent:
		s = c.peek(ref, t.limit, bucket)
	case verdict.Outcome == domain.OutcomeValid && t.flags&flagQuota != 0:
		s, err = x.useQuota(c, x.sharing.Load(), ref, &f, &t, v, verdict, micros, bucket, position)
		if err == errShort { //nolint:errorlint // ours, and never wrapped
			s, err = x.useQuotaShared(c, ref, &f, &t, v, verdict, micros, bucket, position)
		}
		if err != nil {
			*verdict = domain.Verdict{}
			return where, err
		}
	case verdict.Outcome == domain.OutcomeValid:
		share := x.sharing.Load()
		verdict.Outcome, where.tally, s, err = c.use(share, ref, &f, &t, v.Free, verdict.Stale, micros/1000, bucket, position)
		if err == errShort { //nolint:errorlint // ours, and never wrapped
			verdict.Outcome, where.tally, s, err = x.useShared(c, ref, &f, &t, verdict.Stale, micros/1000, bucket, position)
		}
		if err != nil {
			*verdict = domain.Verdict{}
			return where, domain.Unavailable(err)
		}
	default:
		c.refuse(ref, f.id, t.organization, verdict.Outcome, micros/1000, position)
		s = c.peek(ref, t.limit, bucket)
	}
	if t.flags&flagQuota != 0 && !verdict.Quota.Given() {
		verdict.Quota = x.quotas.Load().stand(f.id, micros)
	}
	if t.limit > 0 {
		verdict.Limit = domain.Limit{PerMinute: t.limit, Remaining: s.left, Next: v.Now, Reset: v.Now}
		// The newest use is forgotten eleven buckets after its own began.
		if wait := time.Duration((s.newest+buckets+1)*bucketWidth) - since; s.newest > 0 && wait > 0 {
			verdict.Limit.Reset = v.Now.Add(wait)
		}
		if wait := time.Duration(s.next*bucketWidth) - since; s.next > 0 && wait > 0 {
			verdict.Limit.Next = v.Now.Add(wait)
		}
	}
	return where, nil
}

// miss is a key that is not here, or not for the asker to see.
func (x *Index) miss(v *domain.Verification, verdict *domain.Verdict) {
	verdict.Outcome = domain.OutcomeNotFound
	x.unknown[v.Digest[0]%unknownStripes].count.Add(1)
}

// bucketOf is a moment on the clock of the limits, given as the time since base.
func bucketOf(since time.Duration) uint64 { return uint64(max(since, 0)) / bucketWidth }

// Ready says whether the keys are loaded. Where leases count, Leased says whether
// one does; that changes with the primary's health, and this does not. What was spent of quotas belongs
// to it, unless that takes long.
func (x *Index) Ready() bool {
	c := x.contents.Load()
	return c != nil && c.loaded.Load() && x.quotasKnown()
}

// History is what the keys and positions belong to; false before any are loaded.
func (x *Index) History() (History, bool) {
	c := x.contents.Load()
	if c == nil {
		return History{}, false
	}
	return c.history, true
}

// Position is the last position of the lifecycle lane that is applied.
func (x *Index) Position() domain.Position {
	if c := x.contents.Load(); c != nil {
		return domain.Position(c.position.Load())
	}
	return 0
}

// Len counts the keys.
func (x *Index) Len() int {
	x.mu.Lock()
	defer x.mu.Unlock()
	if c := x.contents.Load(); c != nil {
		return c.len()
	}
	return 0
}

// WaitFor returns when the index has applied a position, or ctx ends.
func (x *Index) WaitFor(ctx context.Context, position domain.Position) error {
	for x.Position() < position {
		x.mu.Lock()
		if x.moved == nil {
			x.moved = make(chan struct{})
		}
		moved := x.moved
		x.mu.Unlock()
		if x.Position() >= position {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return &domain.Error{Code: domain.CodeStale, Message: "the position is not here yet", Err: ctx.Err()}
		}
	}
	return nil
}

// keepFormer puts contents aside until their uses are recorded. When nobody
// records uses, they must not pile up. The caller holds mu.
func (x *Index) keepFormer(c *contents) {
	x.former = append(x.former, c)
	if n := len(x.former) - mostFormer; n > 0 {
		x.logger.Warn("uses that were counted before the index was loaded anew are given up", "loads", n)
		x.former = slices.Delete(x.former, 0, n)
	}
}

// announce wakes whoever waits. The caller holds mu.
func (x *Index) announce() {
	if x.moved != nil {
		close(x.moved)
		x.moved = nil
	}
}
