package projections

import (
	"context"
	"errors"
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
	// mostEvents bounds one statement when the follower reads the log by itself.
	mostEvents   = 1000
	firstBackOff = 50 * time.Millisecond
	longBackOff  = 5 * time.Second
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
		lag: newLag(o.Clock), driver: make(chan struct{}, 1),
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
		pause := wait/2 + rand.N(wait/2)
		f.logger.Warn("the projection waits to go on", "position", f.Position(), "pause", pause, "error", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		wait = min(2*wait, longBackOff)
	}
}

// follow applies what the log says from where the projection stands, until an
// error.
func (f *Follower) follow(ctx context.Context) error {
	from, err := f.look(ctx)
	if err != nil {
		return err
	}
	next := from + 1
	for batch, err := range f.log.Follow(ctx, f.projection.Lane(), from) {
		if err != nil {
			return err
		}
		// Density is asserted on what the log yields, not on what is left of it after
		// another driver was faster: nobody's progress may hide a gap.
		if err := follows(next, batch); err != nil {
			return err
		}
		next += domain.Position(len(batch))
		if err := f.take(ctx); err != nil {
			return err
		}
		err := f.offer(ctx, batch)
		f.giveBack()
		if err != nil {
			return err
		}
	}
	return errors.New("the log ended")
}

// CatchUp returns when the projection has reached a position, which the log must
// have. When it is behind, it is driven there in the caller's goroutine, unless somebody
// in this process does so already.
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
	if err := f.refresh(ctx); err != nil {
		return err
	}
	if f.at.Position >= target {
		return nil // another process has
	}
	next := f.at.Position + 1
	batch := make([]eventstore.Recorded, 0, min(mostEvents, int(target-f.at.Position)))
	for r, err := range f.log.Read(ctx, f.projection.Lane(), f.at.Position) {
		if f.at.Position >= target {
			return nil
		}
		if err != nil {
			return err
		}
		if batch = append(batch, r); len(batch) < mostEvents && r.Position < target {
			continue
		}
		if err := follows(next, batch); err != nil {
			return err
		}
		next += domain.Position(len(batch))
		if err := f.offer(ctx, batch); err != nil {
			return err
		}
		batch = batch[:0]
	}
	if f.at.Position < target {
		return domain.Errorf(domain.CodeStale, "position %d is not in the log yet", target)
	}
	return nil
}

// offer applies a run of events, or what is left of it once others have applied
// their share. The caller holds the token.
func (f *Follower) offer(ctx context.Context, batch []eventstore.Recorded) error {
	ctx, cancel := context.WithTimeout(ctx, f.timeout)
	defer cancel()
	f.lag.pending(batch)
	for {
		first, last := batch[0].Position, batch[len(batch)-1].Position
		switch {
		case last <= f.at.Position:
			return nil
		case first > f.at.Position+1:
			return fmt.Errorf("the checkpoint went back to %d: start again from there", f.at.Position)
		}
		batch = batch[f.at.Position+1-first:]
		events, err := f.decode(ctx, batch)
		if err != nil {
			return err
		}
		from, to := f.at, Checkpoint{Ledger: f.head.Ledger, Epoch: f.head.Epoch, Position: last}
		moved, err := f.projection.Apply(ctx, from, to, events)
		if err != nil {
			return err
		}
		if moved {
			f.stand(to)
			return nil
		}
		// Somebody else was faster, or the log is not what it was.
		if err := f.refresh(ctx); err != nil {
			return err
		}
		if f.at == from {
			return fmt.Errorf("the checkpoint stands at %d and would not move: try again", from.Position)
		}
	}
}

func (f *Follower) decode(ctx context.Context, batch []eventstore.Recorded) ([]eventstore.Event, error) {
	return decode(ctx, f.log, f.head, batch)
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
