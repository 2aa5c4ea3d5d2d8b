package projections

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"keyledger/domain"
	"keyledger/eventstore"
)

// FollowerOptions are what a follower needs beside log and projection. All have
// a default.
type FollowerOptions struct {
	Logger     *slog.Logger
	Registerer prometheus.Registerer // nil: no metrics
	Clock      func() time.Time
	// ApplyTimeout bounds one statement, so that a connection that died silently
	// does not keep those waiting who want to drive the projection as well. 10 s by default.
	ApplyTimeout time.Duration
}

const (
	defaultApplyTimeout = 10 * time.Second
	// mostEvents and mostBytes bound what one statement of a catch-up applies. An event of the
	// usage lane may name some thousand keys.
	mostEvents = 1000
	mostBytes  = 4 << 20
	// A statement of Run has up to mostGathered bytes of events, and half as many each time that one took
	// more than a quarter of its timeout.
	mostGathered  = 16 << 20
	leastGathered = 1 << 20
	// How long Run waits before it tries again what failed.
	firstBackOff = 50 * time.Millisecond
	longBackOff  = 5 * time.Second
	// How long Run lets events gather for the next statement.
	gathering = 20 * time.Millisecond
	// Uses gather for so many times what the last statement took, but not for longer than longGathering: the
	// more of them there are, the more of them are of the same keys, and one row does for all.
	gatheringOfUses = 4
	longGathering   = 2 * time.Second
	// How long Run leaves the field to a driver that was faster.
	firstStepBack = 20 * time.Millisecond
	longStepBack  = 320 * time.Millisecond
	// farBehind is how many events that others have applied Run reads past before it starts
	// again where they are.
	farBehind = 10_000
)

// Follower drives one projection from the log. Any number of followers, in any
// number of processes, may drive the same one.
type Follower struct {
	log        Log
	projection Projection
	logger     *slog.Logger
	timeout    time.Duration
	lag        *lag

	// driver holds one token. Whoever has it drives, and owns what follows.
	driver chan struct{}
	at     Checkpoint      // as it was read or moved last
	head   eventstore.Head // whose ledger and epoch the next checkpoint bears
	bytes  int             // of events in the next statement

	position atomic.Uint64 // at.Position, for everybody
}

// NewFollower makes a follower. It does nothing before Run or CatchUp is called.
func NewFollower(log Log, projection Projection, o FollowerOptions) *Follower {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.ApplyTimeout == 0 {
		o.ApplyTimeout = defaultApplyTimeout
	}
	f := &Follower{
		log: log, projection: projection, logger: o.Logger.With("projection", projection.Name()), timeout: o.ApplyTimeout,
		lag: newLag(o.Clock), driver: make(chan struct{}, 1), bytes: mostBytes,
	}
	f.driver <- struct{}{}
	if err := f.lag.register(o.Registerer, projection.Name()); err != nil {
		f.logger.Error("the projection's lag is not published", "error", err)
	}
	return f
}

// Position is the last position that this process knows to be applied. The
// projection may be further: other processes drive it, too.
func (f *Follower) Position() domain.Position { return domain.Position(f.position.Load()) }

// Run follows the log until ctx ends, which is no error. It waits and tries again
// when the log or the projection cannot be reached. It returns an error for which
// [Stopped] is true when the projection cannot go on; after a rebuild it may be
// called again.
func (f *Follower) Run(ctx context.Context) error {
	wait := firstBackOff
	for {
		before := f.Position()
		err := f.follow(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if Stopped(err) {
			f.logger.Error("THE PROJECTION HAS STOPPED: what is read from it is refused until this is resolved", "position", f.Position(), "error", err)
			return fmt.Errorf("%s stopped after position %d: %w", f.projection.Name(), f.Position(), err)
		}
		f.lag.lostSight()
		if f.Position() > before {
			wait = firstBackOff
		}
		level := slog.LevelWarn
		if domain.CodeOf(err) != domain.CodeUnavailable {
			level = slog.LevelError
		}
		f.logger.Log(ctx, level, "the projection waits and tries again", "position", f.Position(), "wait", wait, "error", err)
		if pause(ctx, wait) != nil {
			return nil
		}
		wait = min(2*wait, longBackOff)
	}
}

// follow applies what the log says from where the projection stands, until an
// error.
//
// Where several processes run, each would apply every batch, and all but one in vain. So
// whoever loses steps back for a moment, and for a longer one each time that it
// loses again: in effect one drives, and the others look whether it still does.
func (f *Follower) follow(ctx context.Context) error {
	stepBack := firstStepBack
	for {
		from, err := f.look(ctx)
		if err != nil {
			return err
		}
		next := from + 1
		for batch, err := range f.log.Follow(ctx, f.projection.Lane(), from) {
			if err != nil {
				return err
			}
			// Density is asserted on what the log yields, not on what is left of it
			// after another driver was faster: nobody's progress may hide a gap.
			if err := follows(next, batch); err != nil {
				return err
			}
			next += domain.Position(len(batch))
			if err := f.take(ctx); err != nil {
				return err
			}
			began := time.Now()
			race, err := f.offer(ctx, batch)
			f.giveBack()
			switch {
			case err != nil:
				return err
			case race == won:
				stepBack = firstStepBack
				// Whoever reads drives the projection as far as they need it, so nobody
				// waits for this: under load it lets one statement do the work of many.
				if wait := f.gather(len(batch), time.Since(began)); wait > 0 {
					if err := pause(ctx, wait); err != nil {
						return err
					}
				}
				continue
			case race == none:
				continue
			}
			if err := pause(ctx, stepBack); err != nil {
				return err
			}
			stepBack = min(2*stepBack, longStepBack)
			at, err := f.look(ctx)
			if err != nil {
				return err
			}
			if at > next+farBehind {
				break
			}
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// gather says how long to let events gather after so many were applied at once and took so long: not at
// all when there are probably more by now.
func (f *Follower) gather(events int, took time.Duration) time.Duration {
	lane := f.projection.Lane()
	switch {
	case eventstore.Cut(lane, events):
		return 0
	case lane == domain.Usage:
		return min(max(gatheringOfUses*took, gathering), longGathering)
	case events >= mostEvents/2:
		return 0
	}
	return gathering
}

// CatchUp returns when the projection has reached a position, which the log must
// have. When it is behind, it is driven there in the caller's goroutine, unless
// somebody in this process does so already.
func (f *Follower) CatchUp(ctx context.Context, target domain.Position) error {
	if f.Position() >= target {
		return nil
	}
	f.lag.saw(target)
	if err := f.take(ctx); err != nil {
		return err
	}
	defer f.giveBack()
	if f.Position() >= target {
		return nil // whoever drove until now has done it
	}
	// The caller may be patient without end, but keeps others waiting: it gives up
	// when nothing comes any more.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	silence := time.AfterFunc(f.timeout, cancel)
	defer silence.Stop()

	if err := f.refresh(ctx); err != nil {
		return err
	}
	if f.at.Position >= target {
		return nil // another process has
	}
	next := f.at.Position + 1
	var batch []eventstore.Recorded
	bytes := 0
	for r, err := range f.log.Read(ctx, f.projection.Lane(), f.at.Position) {
		if err != nil {
			return err
		}
		batch = append(batch, r)
		bytes += len(r.Data)
		if len(batch) < mostEvents && bytes < mostBytes && r.Position < target {
			continue
		}
		silence.Reset(f.timeout)
		if err := follows(next, batch); err != nil {
			return err
		}
		next += domain.Position(len(batch))
		if _, err := f.offer(ctx, batch); err != nil {
			return err
		}
		if f.at.Position >= target {
			return nil
		}
		batch, bytes = batch[:0], 0
	}
	return domain.Errorf(domain.CodeStale, "position %d is not in the log yet", target)
}

// race is how it went with other drivers.
type race int

const (
	none race = iota // there was nothing left to apply
	won
	lost
)

// offer applies a run of events, or what is left of it once others have applied
// their share. The caller holds the token.
func (f *Follower) offer(ctx context.Context, batch []eventstore.Recorded) (race race, err error) {
	f.lag.pending(batch)
	for {
		first, last := batch[0].Position, batch[len(batch)-1].Position
		switch {
		case last <= f.at.Position:
			return race, nil
		case first > f.at.Position+1:
			return race, fmt.Errorf("the checkpoint went back to %d: start again from there", f.at.Position)
		}
		batch = batch[f.at.Position+1-first:]
		began := time.Now()
		moved, err := f.apply(ctx, batch[:f.fitting(batch)])
		if f.bytes *= 2; time.Since(began) > f.timeout/4 {
			f.bytes /= 4
		}
		f.bytes = min(max(f.bytes, leastGathered), mostGathered)
		switch {
		case err != nil:
			return race, err
		case !moved:
			race = lost
		case race == none:
			race = won
		}
	}
}

// fitting says how many events of a batch one statement applies.
func (f *Follower) fitting(batch []eventstore.Recorded) int {
	bytes := 0
	for i, r := range batch {
		if bytes += len(r.Data); i > 0 && bytes > f.bytes {
			return i
		}
	}
	return len(batch)
}

// apply applies events that begin behind the checkpoint as it is known here, or
// learns where it is when somebody else has moved it.
func (f *Follower) apply(ctx context.Context, events []eventstore.Recorded) (moved bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, f.timeout)
	defer cancel()
	decoded, err := decode(ctx, f.log, f.head, events)
	if err != nil {
		return false, err
	}
	from, to := f.at, Checkpoint{Ledger: f.head.Ledger, Epoch: f.head.Epoch, Position: events[len(events)-1].Position}
	if moved, err = f.projection.Apply(ctx, from, to, decoded); err != nil {
		return false, err
	}
	if moved {
		f.stand(to)
		return true, nil
	}
	if err := f.refresh(ctx); err != nil {
		return false, err
	}
	if f.at == from {
		return false, fmt.Errorf("the checkpoint stands at %d and would not move: try again", from.Position)
	}
	return false, nil
}

// decode reads a batch, and refuses events of a history that the head does not know.
func decode(ctx context.Context, log Log, head eventstore.Head, batch []eventstore.Recorded) ([]eventstore.Event, error) {
	events := make([]eventstore.Event, len(batch))
	for i, r := range batch {
		// Events keep the epoch in which they were recorded: earlier ones are history.
		if r.Ledger != head.Ledger || r.Epoch > head.Epoch {
			return nil, fmt.Errorf("%w: position %d is of ledger %s in epoch %d, the log was ledger %s in epoch %d",
				ErrForeign, r.Position, r.Ledger.UUID(), r.Epoch, head.Ledger.UUID(), head.Epoch)
		}
		var err error
		if events[i], err = log.Decode(ctx, r); err != nil {
			if domain.CodeOf(err) == domain.CodeUnavailable {
				return nil, err
			}
			return nil, Broken(r, err)
		}
	}
	return events, nil
}

// follows asserts that a batch continues the log without a gap.
func follows(next domain.Position, batch []eventstore.Recorded) error {
	for _, r := range batch {
		if r.Position != next {
			return fmt.Errorf("%w: position %d follows %d", ErrGap, r.Position, next-1)
		}
		next++
	}
	return nil
}

// look refreshes under the token and gives where the projection stands.
func (f *Follower) look(ctx context.Context) (domain.Position, error) {
	if err := f.take(ctx); err != nil {
		return 0, err
	}
	defer f.giveBack()
	ctx, cancel := context.WithTimeout(ctx, f.timeout)
	defer cancel()
	err := f.refresh(ctx)
	return f.at.Position, err
}

// refresh reads where the projection stands, then where the log ends: in this
// order the first can only be behind the second. The caller holds the token.
func (f *Follower) refresh(ctx context.Context) error {
	at, err := f.projection.Checkpoint(ctx)
	if err != nil {
		return err
	}
	head, err := f.log.Head(ctx, f.projection.Lane())
	if err != nil {
		return err
	}
	if err := at.Fits(head); err != nil {
		return err
	}
	f.head = head
	f.lag.saw(head.Position)
	f.stand(at)
	return nil
}

func (f *Follower) stand(at Checkpoint) {
	f.at = at
	f.position.Store(uint64(at.Position))
	f.lag.reached(at.Position)
}

func (f *Follower) take(ctx context.Context) error {
	select {
	case <-f.driver:
		return nil
	case <-ctx.Done():
		return domain.Unavailable(fmt.Errorf("wait for %s: %w", f.projection.Name(), ctx.Err()))
	}
}

func (f *Follower) giveBack() { f.driver <- struct{}{} }

// pause waits for about as long as it is told, never exactly, so that processes
// that began together do not stay together.
func pause(ctx context.Context, about time.Duration) error {
	timer := time.NewTimer(about/2 + rand.N(about))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
