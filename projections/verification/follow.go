package verification

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"time"

	"keyledger/domain"
	"keyledger/eventstore"
)

// Log is what the index follows. *eventstore.Store is one.
type Log interface {
	// Follow never ends before its context, but for an error.
	Follow(ctx context.Context, lane domain.Lane, after domain.Position) iter.Seq2[[]eventstore.Recorded, error]
	Decode(context.Context, eventstore.Recorded) (eventstore.Event, error)
}

const (
	firstPause = 50 * time.Millisecond
	longPause  = 5 * time.Second
)

// Run loads the index and follows the log until ctx ends, which is no error. When Postgres cannot
// be reached it tries again and again, and what is loaded goes on answering. When
// what is loaded turns out to be another history than the log's, or cannot be
// trusted for another reason, the index stops answering and is loaded anew.
func (x *Index) Run(ctx context.Context) error {
	pause, loaded := firstPause, false
	for {
		before := x.Position()
		var err error
		if !loaded {
			err = x.Load(ctx, x.pool)
			loaded = err == nil
		}
		if loaded {
			err = x.follow(ctx)
		}
		if ctx.Err() != nil {
			return nil
		}
		// Being out of reach says nothing about what is known; anything else does.
		if domain.CodeOf(err) != domain.CodeUnavailable {
			x.distrust()
			loaded = false
			x.logger.Error("THE VERIFICATION INDEX DOES NOT ANSWER until it is loaded anew", "position", x.Position(), "error", err)
		}
		if x.Position() != before {
			pause = firstPause
		}
		wait := pause/2 + rand.N(pause/2)
		x.logger.Warn("the verification index waits to go on", "position", x.Position(), "pause", wait, "error", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
		pause = min(2*pause, longPause)
	}
}

// distrust makes the index stop answering.
func (x *Index) distrust() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.until.Store(notReady)
	x.target = 1<<64 - 1 // applying more does not help
}

// follow applies what the log says from where the index stands, until an error.
func (x *Index) follow(ctx context.Context) error {
	events := make([]eventstore.Event, 0, 1000)
	for batch, err := range x.log.Follow(ctx, domain.Lifecycle, x.Position()) {
		if err != nil {
			return err
		}
		events = events[:0]
		for _, r := range batch {
			e, err := x.decode(ctx, r)
			if err != nil {
				// What came before it counts already.
				if err := x.Apply(events); err != nil {
					return err
				}
				return fmt.Errorf("decode %s at position %d: %w", r.Type, r.Position, err)
			}
			events = append(events, e)
		}
		if err := x.Apply(events); err != nil {
			return err
		}
		clear(events) // not to keep the batch
	}
	return domain.Unavailable(errors.New("the log ended"))
}

// decode opens the personal part of an event only for a key's name, so that a revocation needs
// nothing but itself.
func (x *Index) decode(ctx context.Context, r eventstore.Recorded) (eventstore.Event, error) {
	if r.Type == (domain.KeyCreated{}).EventName() {
		return x.log.Decode(ctx, r)
	}
	event, err := eventstore.DecodeData(r)
	return eventstore.Event{Recorded: r, Event: event}, err
}
