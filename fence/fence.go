package fence

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"keyledger/domain"
)

// Index is what holds this node's lease. *index.Index is one.
type Index interface {
	// Grant gives a lease that was asked for at a moment, and counts once the log is
	// applied up to head.
	Grant(asked time.Time, head domain.Position)
	WaitFor(ctx context.Context, position domain.Position) error
	Position() domain.Position
}

// Log is the ledger. *eventstore.Store is one.
type Log interface {
	Ledger() (id domain.ID, epoch uint32)
	// Wake says that a lane has reached a position.
	Wake(lane domain.Lane, position domain.Position)
	ChangeKey(ctx context.Context, request domain.Request, id domain.KeyID, command domain.KeyCommand) (domain.Key, domain.Receipt, error)
}

// Transport carries asks and confirmations between nodes. Whatever it loses costs
// time and nothing else. *publisher.Notices is one.
type Transport interface {
	// Ask wants everybody who verifies to confirm a position. A soft ask is for
	// servers alone.
	Ask(position domain.Position, soft bool)
	// Confirm tells everybody that a verifier has applied the log up to a position.
	Confirm(id domain.ID, position domain.Position)
	// Listen calls with what others ask and confirm, until ctx ends.
	Listen(ctx context.Context, asked func(position domain.Position, soft bool), confirmed func(id domain.ID, position domain.Position)) error
}

// Options are what a Fence needs.
type Options struct {
	ID   domain.ID // of this run of this node; the name under which its uses are accounted
	Name string    // for people
	// Sole says that at most one process at a time runs under this name, so that the rows
	// of its predecessors belong to the dead, and nobody need wait for them.
	Sole      bool
	Lease     time.Duration // how long this node may go without asking; 1 s
	Pool      *pgxpool.Pool // of its own: a lease must not queue behind commands
	Log       Log
	Index     Index
	Transport Transport

	Logger     *slog.Logger          // nil: none
	Registerer prometheus.Registerer // nil: no metrics
}

const (
	// DefaultLease is how long a verifier may go without asking.
	DefaultLease = time.Second
	// LeastLease and MostLease bound what a deployment may choose.
	LeastLease = 100 * time.Millisecond
	MostLease  = 60 * time.Second

	// margin is added to every lease that is waited for, beside a hundredth of it: two
	// clocks do not run at quite the same rate, and a verdict takes a moment.
	margin = 50 * time.Millisecond
	// announcedWithin is how long an announcement may come after the ask.
	announcedWithin = 5 * time.Millisecond
	// toldWithin bounds the wait of a creation, which is best effort.
	toldWithin = 50 * time.Millisecond
	// mostConfirmed bounds what is remembered of verifiers that are not in the table.
	mostConfirmed = 8192
)

// Bound is how long after its commit a revocation may have to wait for a verifier
// with a lease.
func Bound(lease time.Duration) time.Duration { return lease + lease/100 + margin }

// Fence waits until nobody accepts what was revoked, and holds this node's own lease.
type Fence struct {
	o        Options
	logger   *slog.Logger
	registry *registry
	metrics  *metrics
	records  chan record
	leased   chan struct{} // closed with the first lease

	mu        sync.Mutex
	held      domain.Position               // what was revoked up to here, nobody accepts
	confirmed map[domain.ID]domain.Position // what verifiers have applied, at least
	heard     chan struct{}                 // closed when confirmed has grown
	members   []member                      // as they were last read
	slow      map[domain.ID]bool            // did not confirm a creation in time, and nothing since
	asked     domain.Position               // by revocations
	softly    domain.Position               // by anybody
	askedMore chan struct{}                 // closed when asked has grown
	wanted    chan struct{}                 // holds a token when this node is to confirm
}

// New makes a fence. It holds nothing before Run.
func New(o Options) (*Fence, error) {
	if o.Lease == 0 {
		o.Lease = DefaultLease
	}
	if o.Lease < LeastLease || o.Lease > MostLease {
		return nil, domain.Invalid("lease", "must be from %s to %s", LeastLease, MostLease)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	ledger, epoch := o.Log.Ledger()
	f := &Fence{
		o: o, logger: o.Logger, registry: &registry{pool: o.Pool, ledger: ledger, epoch: epoch},
		records: make(chan record, mostRecords), leased: make(chan struct{}),
		confirmed: map[domain.ID]domain.Position{}, heard: make(chan struct{}), slow: map[domain.ID]bool{},
		askedMore: make(chan struct{}), wanted: make(chan struct{}, 1),
	}
	f.metrics = newMetrics(f)
	if o.Registerer != nil {
		if err := o.Registerer.Register(f.metrics); err != nil {
			return nil, fmt.Errorf("publish the fence: %w", err)
		}
	}
	return f, nil
}

// Hold returns when nobody accepts what was revoked at a position or before. committed
// is a moment, with its monotonic part, after the commit of that position
// returned; for something that was revoked earlier, by whomever, now will do. The error is
// CodeUnavailable: the revocation stands then, and whether it holds everywhere is not known.
//
// The order is the order for these reasons. The table is read after the commit has returned, so that
// whoever is not in it joins later and reads the revocation from the log's end
// before its first lease. A confirmation counts whenever it was given: an index never
// goes back. Everything that is not a confirmation, a message that could not be sent, an answer that
// did not come, is none. The wait for a lease counts from the commit, since a
// lease that does not know of it was asked for before.
func (f *Fence) Hold(ctx context.Context, position domain.Position, committed time.Time) (domain.Fenced, error) {
	if f.holds(position) {
		return domain.Fenced{}, nil
	}
	f.ask(position, false)
	members, err := f.read(ctx)
	if err != nil {
		return domain.Fenced{}, err
	}
	var fenced domain.Fenced
	waiting := slices.Clone(members)
	for {
		f.mu.Lock()
		heard := f.heard
		now := time.Now()
		next := time.Duration(math.MaxInt64)
		waiting = slices.DeleteFunc(waiting, func(m member) bool {
			if f.confirmed[m.id] >= position {
				fenced.Confirmed = append(fenced.Confirmed, m.id)
				return true
			}
			left := committed.Add(plantPatience(Bound(m.lease))).Sub(now)
			if left <= 0 {
				fenced.Expired = append(fenced.Expired, m.id)
				return true
			}
			next = min(next, left)
			return false
		})
		if len(waiting) == 0 {
			f.held = max(f.held, position)
			f.mu.Unlock()
			fenced.Waited = now.Sub(committed)
			f.metrics.ended(fenced)
			if len(fenced.Expired) > 0 {
				f.logger.Warn("verifiers did not confirm a revocation, and their leases were waited for",
					"position", uint64(position), "verifiers", len(fenced.Expired), "waited", fenced.Waited.Round(time.Millisecond))
			}
			return fenced, nil
		}
		f.mu.Unlock()
		timer := time.NewTimer(next)
		select {
		case <-heard:
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return domain.Fenced{}, unknown(ctx.Err())
		}
		timer.Stop()
	}
}

// holds says whether a fence has held for a position or for a later one. What holds
// for one holds for those before it: a lease that knows of neither ended with the
// first, and a confirmation of the later one is one of both.
func (f *Fence) holds(position domain.Position) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.held >= position
}

const (
	firstPause = 10 * time.Millisecond
	mostPause  = 250 * time.Millisecond
)

// read lists who may hold a lease, as they stand after the call, and tries until it can.
func (f *Fence) read(ctx context.Context) ([]member, error) {
	for pause := firstPause; ; pause = min(2*pause, mostPause) {
		members, err := f.look(ctx)
		if err == nil {
			return members, nil
		}
		if domain.CodeOf(err) != domain.CodeUnavailable {
			return nil, err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil, unknown(err)
		}
	}
}

// look lists them once, and remembers.
func (f *Fence) look(ctx context.Context) ([]member, error) {
	members, err := f.registry.after(ctx)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.members = members
	f.forget()
	return members, nil
}

func unknown(err error) error {
	return &domain.Error{
		Code: domain.CodeUnavailable, Err: err,
		Message: "it is revoked, and whether every verifier knows is not known yet: ask again",
	}
}

// By is when a fence that begins now will hold at the latest.
func (f *Fence) By(ctx context.Context, committed time.Time) (time.Time, error) {
	members, err := f.read(ctx)
	if err != nil {
		return time.Time{}, err
	}
	by := committed
	for _, m := range members {
		if until := committed.Add(Bound(m.lease)); until.After(by) {
			by = until
		}
	}
	return by, nil
}

// Verifiers is how many revocations wait for, as this node last saw them.
func (f *Fence) Verifiers() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.members)
}

// Tell waits a moment until the servers know of a position, so that a new key is known
// wherever its owner takes it next. It is best effort: nobody waits for a server that
// did not answer the last time.
func (f *Fence) Tell(ctx context.Context, position domain.Position) {
	f.mu.Lock()
	alone := !slices.ContainsFunc(f.members, func(m member) bool { return m.kind == Node && m.id != f.o.ID })
	f.mu.Unlock()
	if alone {
		return
	}
	f.ask(position, true)
	timer := time.NewTimer(toldWithin)
	defer timer.Stop()
	for {
		f.mu.Lock()
		heard := f.heard
		var missing []domain.ID
		for _, m := range f.members {
			if m.kind == Node && m.id != f.o.ID && !f.slow[m.id] && f.confirmed[m.id] < position {
				missing = append(missing, m.id)
			}
		}
		f.mu.Unlock()
		if len(missing) == 0 {
			return
		}
		select {
		case <-heard:
		case <-ctx.Done():
			return
		case <-timer.C:
			f.mu.Lock()
			for _, id := range missing {
				f.slow[id] = true
			}
			f.mu.Unlock()
			return
		}
	}
}

// ask wants a position confirmed, by this node too.
func (f *Fence) ask(position domain.Position, soft bool) {
	f.heardAsk(position, soft)
	f.o.Transport.Ask(position, soft)
}

// heardAsk is what somebody asks, of this node and of those who verify through it.
func (f *Fence) heardAsk(position domain.Position, soft bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !soft && position > f.asked {
		f.asked = position
		close(f.askedMore)
		f.askedMore = make(chan struct{})
	}
	if position > f.softly {
		f.softly = position
	}
	select {
	case f.wanted <- struct{}{}:
	default:
	}
}

// heardConfirmation is what a verifier says of itself.
func (f *Fence) heardConfirmation(id domain.ID, position domain.Position) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.slow, id)
	if position <= f.confirmed[id] {
		return
	}
	f.confirmed[id] = position
	if len(f.confirmed) > mostConfirmed {
		f.forget()
	}
	close(f.heard)
	f.heard = make(chan struct{})
}

// forget drops what is known of verifiers that are not in the table. It only costs
// whoever has just joined a second confirmation. The caller holds mu.
func (f *Fence) forget() {
	if len(f.confirmed) <= 2*len(f.members)+64 {
		return
	}
	known := make(map[domain.ID]domain.Position, len(f.members))
	for _, m := range f.members {
		if position, ok := f.confirmed[m.id]; ok {
			known[m.id] = position
		}
	}
	f.confirmed = known
	clear(f.slow)
}

// confirm tells what this node has applied, whenever somebody asks.
func (f *Fence) confirm(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-f.wanted:
		}
		f.mu.Lock()
		position := f.softly
		f.mu.Unlock()
		if err := f.await(ctx, position); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			f.logger.Warn("this node cannot confirm a position", "position", uint64(position), "error", err)
			continue
		}
		f.tellConfirmed(f.o.ID, f.o.Index.Position())
	}
}

// await returns when this node has applied the log up to a position. What is there is announced
// with its events beside the ask: to wake those who read the database at once would overtake that.
func (f *Fence) await(ctx context.Context, position domain.Position) error {
	announced, cancel := context.WithTimeout(ctx, announcedWithin)
	defer cancel()
	if f.o.Index.WaitFor(announced, position) == nil {
		return nil
	}
	f.o.Log.Wake(domain.Lifecycle, position)
	return f.o.Index.WaitFor(ctx, position)
}

// tellConfirmed says what a verifier has applied, to those who wait here and elsewhere.
func (f *Fence) tellConfirmed(id domain.ID, position domain.Position) {
	f.heardConfirmation(id, position)
	f.o.Transport.Confirm(id, position)
}

var errNotLeased = errors.New("there is no lease yet")
