package verification

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"keyledger/domain"
	"keyledger/eventstore"
	"keyledger/index"
)

// Ledger is where uses are recorded. *eventstore.Store is one.
type Ledger interface {
	// AppendUsage may be called again with the same flush, which counts once.
	AppendUsage(context.Context, eventstore.UsageFlush) (domain.Receipt, error)
}

// AccountantOptions are the choices of an accountant. All have a default.
type AccountantOptions struct {
	Boot          domain.ID     // names this run of this node; drawn when zero
	Window        time.Duration // between two flushes; 1 s
	LongestWindow time.Duration // to which it grows when flushes take long; 30 s
	Farewell      time.Duration // for the last flush, after Run was told to end; 10 s
	Logger        *slog.Logger
	Clock         func() time.Time
	Registerer    prometheus.Registerer // nil: no metrics
}

// Accountant records in the log what an index has counted.
type Accountant struct {
	index  *index.Index
	counts *index.Collector
	ledger Ledger
	o      AccountantOptions
	window atomic.Int64

	// turn holds one token. Whoever has it flushes, and owns what follows.
	turn  chan struct{}
	flush eventstore.UsageFlush // the next one, or the one whose outcome is in doubt when it has events
	uses  []index.Counted       // collected; those from sent on are not in a flush yet
	sent  int

	mu      sync.Mutex
	begun   uint64        // passes
	done    uint64        // the last pass before which everything is recorded
	passed  chan struct{} // closed when done has changed
	durable []index.Place // that wait to be recorded
	many    bool          // there are more of them
	hurry   chan struct{} // holds a token when there are any
	metrics *accountMetrics
}

const (
	// mostUses bounds one event, the others one append. Memory is bounded by
	// mostCollected: what is not collected stays where it is counted.
	mostUses       = 2_000
	mostFlushUses  = 16_000
	mostFlush      = 256
	mostCollected  = 1 << 18
	windowPerFlush = 5 // a flush may take a fifth of the time
	// mostDurable bounds what is remembered of uses that somebody waits for, or did until
	// they gave up. Beyond it, a pass looks everywhere instead.
	mostDurable = 1 << 16
	retryAfter  = 100 * time.Millisecond
)

// NewAccountant makes an accountant of an index. An index has one.
func NewAccountant(x *index.Index, ledger Ledger, o AccountantOptions) (*Accountant, error) {
	if o.Window == 0 {
		o.Window = time.Second
	}
	if o.LongestWindow == 0 {
		o.LongestWindow = 30 * time.Second
	}
	if o.Farewell == 0 {
		o.Farewell = 10 * time.Second
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.Boot == (domain.ID{}) {
		var err error
		if o.Boot, err = domain.NewID(o.Clock(), rand.Reader); err != nil {
			return nil, err
		}
	}
	a := &Accountant{
		index: x, counts: index.NewCollector(x), ledger: ledger, o: o,
		turn:   make(chan struct{}, 1),
		flush:  eventstore.UsageFlush{Boot: o.Boot, Flush: 1},
		passed: make(chan struct{}), hurry: make(chan struct{}, 1),
	}
	a.turn <- struct{}{}
	a.window.Store(int64(o.Window))
	a.metrics = newAccountMetrics(a)
	if o.Registerer != nil {
		if err := o.Registerer.Register(a.metrics); err != nil {
			return nil, fmt.Errorf("publish the accounting of uses: %w", err)
		}
	}
	return a, nil
}

// Window is the time between two flushes, as it is now.
func (a *Accountant) Window() time.Duration { return time.Duration(a.window.Load()) }

// Run flushes once a window, and at once when a durable use waits, until ctx ends; then
// once more, for which the ledger must still be there. It returns what kept the
// last flush from being recorded.
func (a *Accountant) Run(ctx context.Context) error {
	timer := time.NewTimer(a.Window())
	defer timer.Stop()
	hurry := a.hurry
	failing := false
	for {
		full := true
		select {
		case <-ctx.Done():
			farewell, cancel := context.WithTimeout(context.WithoutCancel(ctx), a.o.Farewell)
			defer cancel()
			if err := a.pass(farewell, true); err != nil {
				return fmt.Errorf("record the last uses: %w", err)
			}
			return nil
		case <-timer.C:
			hurry = a.hurry
		case <-hurry:
			full = false
		}
		began := a.o.Clock()
		err := a.pass(ctx, full)
		switch {
		case ctx.Err() != nil:
			continue
		case err != nil:
			if !failing {
				a.o.Logger.Warn("uses cannot be recorded now and are kept", "error", err)
			}
			// Who waits is served by the next attempt, and must not make one each.
			hurry = nil
			timer.Reset(min(a.o.Window, retryAfter))
		case full:
			a.adapt(a.o.Clock().Sub(began))
			timer.Reset(a.Window())
		}
		if failing && err == nil {
			a.o.Logger.Info("uses are recorded again")
		}
		failing = err != nil
	}
}

// adapt widens the window when flushes take long, and narrows it again.
func (a *Accountant) adapt(took time.Duration) {
	window := min(max(windowPerFlush*took, a.o.Window), max(a.o.LongestWindow, a.o.Window))
	a.window.Store(int64(window))
}

// Flush records everything that was counted before the call.
func (a *Accountant) Flush(ctx context.Context) error { return a.pass(ctx, true) }

// VerifyDurable is Index.Verify for a use that must not be lost: it answers when
// the use is recorded. Uses that wait at the same time are recorded together. It
// needs Run. When the use cannot be recorded before ctx ends, the error is CodeUnavailable
// and the use may be recorded nevertheless.
func (a *Accountant) VerifyDurable(ctx context.Context, v domain.Verification) (domain.Verdict, error) {
	var verdict domain.Verdict
	where, err := a.index.VerifyAt(&v, &verdict)
	if err != nil || verdict.Outcome == domain.OutcomeNotFound {
		return verdict, err
	}
	if err := a.await(ctx, where); err != nil {
		return domain.Verdict{}, err
	}
	return verdict, nil
}

// VerifyAllDurable is VerifyDurable for many keys, and waits once for all. It gives the verdicts
// in the order of the questions.
func (a *Accountant) VerifyAllDurable(ctx context.Context, questions []domain.Verification) ([]domain.Verdict, error) {
	verdicts := make([]domain.Verdict, len(questions))
	places := make([]index.Place, 0, len(questions))
	for i := range questions {
		where, err := a.index.VerifyAt(&questions[i], &verdicts[i])
		if err != nil {
			return nil, err
		}
		if verdicts[i].Outcome != domain.OutcomeNotFound {
			places = append(places, where)
		}
	}
	if len(places) == 0 {
		return verdicts, nil
	}
	if err := a.await(ctx, places...); err != nil {
		return nil, err
	}
	return verdicts, nil
}

// await returns when what was counted in these places is recorded.
func (a *Accountant) await(ctx context.Context, places ...index.Place) error {
	a.mu.Lock()
	// A pass that has begun may have looked there already. The next one has not.
	ticket := a.begun + 1
	a.remember(places)
	a.mu.Unlock()
	a.hurryUp()
	for {
		a.mu.Lock()
		done, passed := a.done, a.passed
		a.mu.Unlock()
		if done >= ticket {
			return nil
		}
		select {
		case <-passed:
		case <-ctx.Done():
			return domain.Unavailable(fmt.Errorf("record a use: %w", ctx.Err()))
		}
	}
}

// remember keeps places for the next pass. The caller holds mu.
func (a *Accountant) remember(places []index.Place) {
	if len(a.durable)+len(places) > mostDurable {
		a.durable, a.many = nil, true
	}
	if !a.many {
		a.durable = append(a.durable, places...)
	}
}

func (a *Accountant) hurryUp() {
	select {
	case a.hurry <- struct{}{}:
	default:
	}
}

// pass records what was counted before it began: everything, or what somebody
// waits for.
//
// Exactly once, because: a count leaves the index by an atomic exchange with
// zero; what has left stands in a.uses or in a.flush until its append is known to
// have been committed; and an append that may have been committed is repeated as it was,
// which the ledger recognises, before anything newer is sent.
func (a *Accountant) pass(ctx context.Context, full bool) error {
	select {
	case <-a.turn:
		defer func() { a.turn <- struct{}{} }()
	case <-ctx.Done():
		return domain.Unavailable(ctx.Err())
	}
	began := a.o.Clock()
	a.mu.Lock()
	a.begun++
	number, durable := a.begun, a.durable
	full = full || a.many
	a.durable, a.many = nil, false
	a.mu.Unlock()

	// What an earlier pass left goes first.
	err := a.send(ctx)
	if err == nil && full {
		err = a.collect(ctx)
	} else if err == nil {
		err = a.collectDurable(ctx, durable)
	}
	if err != nil {
		// What they wait for is kept as well: the next pass answers them.
		a.metrics.failures.Add(1)
		a.mu.Lock()
		a.many = a.many || full
		a.remember(durable)
		a.mu.Unlock()
		return err
	}
	if full {
		a.metrics.recordedUpTo.Store(began.UnixMicro())
	}
	a.mu.Lock()
	a.done = number
	close(a.passed)
	a.passed = make(chan struct{})
	a.mu.Unlock()
	return nil
}

// collect takes out all counts, a bounded number at a time, and records them.
func (a *Accountant) collect(ctx context.Context) error {
	return a.counts.Each(a.o.Clock, mostCollected, a.uses[:0], func(uses []index.Counted) error {
		a.uses = uses
		return a.send(ctx)
	})
}

// collectDurable takes out the counts that somebody waits for.
func (a *Accountant) collectDurable(ctx context.Context, durable []index.Place) error {
	a.uses = a.counts.At(durable, a.uses[:0])
	return a.send(ctx)
}

// send records what was collected. What it returns an error for stays to be sent.
func (a *Accountant) send(ctx context.Context) error {
	slices.SortFunc(a.uses[a.sent:], index.ByOrganization)
	for {
		if len(a.flush.Events) == 0 {
			if a.sent == len(a.uses) {
				a.uses, a.sent = a.uses[:0], 0
				return nil
			}
			a.cut()
		}
		began := a.o.Clock()
		receipt, err := a.ledger.AppendUsage(ctx, a.flush)
		if err != nil {
			return err
		}
		a.metrics.recorded(a.flush.Events, a.o.Clock().Sub(began))
		a.flush = eventstore.UsageFlush{Boot: a.o.Boot, Flush: a.flush.Flush + 1, Expected: receipt.Version}
	}
}

// cut moves uses into the next flush: an event for each organization, or several
// where there are very many.
func (a *Accountant) cut() {
	now := a.o.Clock().UTC().Truncate(time.Microsecond)
	var event *domain.KeyUsed
	for n := 0; a.sent < len(a.uses) && n < mostFlushUses; n++ {
		u := &a.uses[a.sent]
		if event == nil || event.Organization != u.Organization || len(event.Uses) == mostUses {
			if len(a.flush.Events) == mostFlush {
				return
			}
			a.flush.Events = append(a.flush.Events, domain.KeyUsed{Organization: u.Organization, Boot: a.flush.Boot, Flush: a.flush.Flush, At: now})
			event = &a.flush.Events[len(a.flush.Events)-1]
			event.Uses = make([]domain.Use, 0, a.together(min(mostUses, mostFlushUses-n)))
		}
		event.Uses = append(event.Uses, u.Use())
		a.sent++
	}
}

// together counts the uses of one organization that are to be sent next.
func (a *Accountant) together(most int) int {
	n := 1
	for n < min(most, len(a.uses)-a.sent) && a.uses[a.sent+n].Organization == a.uses[a.sent].Organization {
		n++
	}
	return n
}
