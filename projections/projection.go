package projections

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"keyledger/domain"
	"keyledger/eventstore"
)

// Log is what a follower reads. *eventstore.Store is one.
type Log interface {
	Head(context.Context, domain.Lane) (eventstore.Head, error)
	// Read ends at the head as it was.
	Read(ctx context.Context, lane domain.Lane, after domain.Position) iter.Seq2[eventstore.Recorded, error]
	// Follow never ends before its context, but for an error.
	Follow(ctx context.Context, lane domain.Lane, after domain.Position) iter.Seq2[[]eventstore.Recorded, error]
	Decode(context.Context, eventstore.Recorded) (eventstore.Event, error)
}

// Projection is a fold of one lane into tables.
type Projection interface {
	Name() string
	Lane() domain.Lane
	// Checkpoint tells how far the projection has come. The zero Ledger stands for
	// a projection to which nothing was ever applied.
	Checkpoint(context.Context) (Checkpoint, error)
	// Apply folds the events from.Position+1 to to.Position and moves the checkpoint
	// from the one to the other, both in one statement. It returns false, and has
	// changed nothing, when the checkpoint is not at from (any more). It may be
	// called by several processes at once.
	Apply(ctx context.Context, from, to Checkpoint, events []eventstore.Event) (moved bool, err error)
}

// Checkpoint is how far a projection has come, and in which history of which log.
type Checkpoint struct {
	Ledger   domain.ID
	Epoch    uint32
	Position domain.Position
}

// Fits says whether a projection that stands at c may go on with a log whose head
// was read after c: nil, or an error that is an [ErrForeign]. What has applied
// nothing fits every log.
func (c Checkpoint) Fits(head eventstore.Head) error {
	switch {
	case c.Position == 0:
		return nil
	case c.Ledger != head.Ledger:
		return fmt.Errorf("%w: it folds ledger %s, the log is ledger %s", ErrForeign, c.Ledger.UUID(), head.Ledger.UUID())
	case c.Epoch != head.Epoch:
		return fmt.Errorf("%w: it folds epoch %d, the log is in epoch %d", ErrForeign, c.Epoch, head.Epoch)
	case c.Position > head.Position:
		return fmt.Errorf("%w: it stands at position %d, the log ends at %d", ErrForeign, c.Position, head.Position)
	}
	return nil
}

// What stops a projection for good: trying again would not help.
var (
	// ErrForeign says that a projection holds the fold of another history than the
	// log's: another ledger, another epoch, or more than the log has.
	ErrForeign = errors.New("the projection belongs to another history of the log and must be rebuilt (keyledger replay)")
	// ErrGap says that positions of a lane do not follow each other.
	ErrGap = eventstore.ErrGap
	// ErrBroken says that an event cannot be folded: this program does not know it,
	// or it contradicts what came before.
	ErrBroken = errors.New("the event cannot be folded")
)

// Stopped says whether an error means that a projection cannot go on by itself.
func Stopped(err error) bool {
	return errors.Is(err, ErrForeign) || errors.Is(err, ErrGap) || errors.Is(err, ErrBroken) || errors.Is(err, eventstore.ErrEpochChanged)
}

// Broken is the error of a fold that cannot take an event.
func Broken(r eventstore.Recorded, err error) error {
	return fmt.Errorf("%w: %s %d: %w", ErrBroken, r.Lane, r.Position, err)
}

// Table is one of a projection's tables.
type Table struct {
	Name string
	Key  []string // the columns of its primary key
}
