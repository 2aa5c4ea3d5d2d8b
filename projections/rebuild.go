package projections

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"keyledger/domain"
	"keyledger/eventstore"
)

// Rebuildable is a projection that can be folded beside itself.
type Rebuildable interface {
	Projection
	// Tables are the tables that the projection owns, and nothing else does.
	Tables() []Table
	// Beside gives the same fold over db, onto tables and a checkpoint whose names
	// have a suffix.
	Beside(db DB, suffix string) Projection
}

// RebuildOptions are what a rebuild needs.
type RebuildOptions struct {
	// AdminURL connects as the owner of the tables, who may replace them.
	AdminURL   string
	Log        Log
	Projection Rebuildable
	Logger     *slog.Logger
	// Progress is told how far the fold has come. It may be nil.
	Progress func(done, total domain.Position)
	// CompareOnly leaves what stands there in place.
	CompareOnly bool
}

// Report is what a rebuild found and did.
type Report struct {
	Projection string
	Position   domain.Position // of the rebuilt state
	Took       time.Duration
	Comparison Comparison
	Swapped    bool
}

const (
	// shadowSuffix follows the names of tables and checkpoint beside the live ones.
	shadowSuffix = "_rebuild"
	// rebuildBatch and rebuildBytes bound what a rebuild folds at a time.
	rebuildBatch = 4096
	rebuildBytes = 4 << 20
	// nearEnough is how many events may be left for the steps that others wait for.
	nearEnough = 1000
	mostRounds = 10
	// lockRebuild is the advisory lock of a rebuild; its second half is the
	// projection's name. Lock numbers are listed in eventstore/locks.go.
	lockRebuild = 6577802
)

// Rebuild folds the whole log again into tables beside the live ones, compares
// both at one position, and puts the new ones in the place of the old. Servers
// may run meanwhile: they read and drive the live tables until the swap, and the
// new ones after it.
//
// A rebuild that fails or is killed leaves the live tables as they are; the next
// one clears away what it left.
func Rebuild(ctx context.Context, o RebuildOptions) (report Report, err error) {
	start := time.Now()
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Progress == nil {
		o.Progress = func(domain.Position, domain.Position) {}
	}
	report = Report{Projection: o.Projection.Name()}

	// One connection for everything, so that it holds the lock that keeps a second
	// rebuild away for exactly as long as it works.
	conn, err := pgx.Connect(ctx, o.AdminURL)
	if err != nil {
		return report, eventstore.Wrap(err, "connect as the tables' owner")
	}
	r := &rebuild{RebuildOptions: o, conn: conn}
	defer func() { err = errors.Join(err, r.close(ctx)) }()
	if err := r.lock(ctx); err != nil {
		return report, err
	}
	// What stands beside the live tables is nobody's before the swap. That waits for the disk, since it drops
	// tables, and so for all that it rests on.
	if _, err := conn.Exec(ctx, `SET synchronous_commit = off`); err != nil {
		return report, eventstore.Wrap(err, "begin the rebuild")
	}
	if err := r.prepare(ctx); err != nil {
		return report, err
	}

	// Two states are only comparable at the same position. The fold therefore goes
	// no further than the live projection, which it meets while others drive it: it is
	// not driven from here, since a live projection that is broken must be curable.
	live, why, err := r.live(ctx)
	if err != nil {
		return report, err
	}
	for round := 0; why == "" && live.Position > r.at.Position+nearEnough && round < mostRounds; round++ {
		if err := r.fold(ctx, r.shadow, live.Position); err != nil {
			return report, err
		}
		if live, why, err = r.live(ctx); err != nil {
			return report, err
		}
	}
	folded := time.Since(start)
	if r.comparable = why == ""; r.comparable {
		if report.Comparison, err = r.compare(ctx); err != nil {
			return report, err
		}
	} else {
		report.Comparison.Skipped = why
	}
	report.Position = r.at.Position
	o.Logger.Debug("folded and compared", "projection", report.Projection, "position", report.Position, "folded", folded, "compared", time.Since(start)-folded)
	if o.CompareOnly {
		report.Took = time.Since(start)
		return report, nil
	}

	for _, t := range o.Projection.Tables() {
		if err := finish(ctx, r.conn, t.Name); err != nil {
			return report, eventstore.Wrap(err, "make the indexes beside %s", t.Name)
		}
	}

	// Now up to the end, in rounds that get shorter, so that little is left for the
	// moment in which readers wait.
	for range mostRounds {
		head, err := r.end(ctx)
		if err != nil {
			return report, err
		}
		left := head - min(r.at.Position, head)
		if err := r.fold(ctx, r.shadow, head); err != nil {
			return report, err
		}
		if left <= nearEnough {
			break
		}
	}
	if err := r.swap(ctx); err != nil {
		return report, err
	}
	report.Position, report.Swapped, report.Took = r.at.Position, true, time.Since(start)
	return report, nil
}

// rebuild is one run of Rebuild.
type rebuild struct {
	RebuildOptions
	conn   *pgx.Conn
	shadow Projection
	head   eventstore.Head // which log this is
	total  domain.Position
	at     Checkpoint // of the shadow
	// comparable says that the live projection belongs to the log's history.
	comparable bool
}

// lock keeps a second rebuild of the same projection away.
func (r *rebuild) lock(ctx context.Context) error {
	var mine bool
	err := r.conn.QueryRow(ctx, `SELECT pg_try_advisory_lock($1, hashtext($2))`, lockRebuild, r.Projection.Name()).Scan(&mine)
	if err != nil {
		return eventstore.Wrap(err, "take the lock of a rebuild")
	}
	if !mine {
		return domain.Errorf(domain.CodeUnprocessable, "another rebuild of %s is at work", r.Projection.Name())
	}
	return nil
}

// prepare makes empty tables beside the live ones, and their checkpoint.
func (r *rebuild) prepare(ctx context.Context) error {
	if err := r.clear(ctx); err != nil {
		return err
	}
	for _, t := range r.Projection.Tables() {
		if err := makeBeside(ctx, r.conn, t.Name); err != nil {
			return eventstore.Wrap(err, "make a table beside %s", t.Name)
		}
	}
	_, err := r.conn.Exec(ctx, `INSERT INTO projection_checkpoints (name, lane, ledger_id, epoch, position, state) VALUES ($1, $2, $3, 0, 0, 0)`,
		r.Projection.Name()+shadowSuffix, string(r.Projection.Lane()), domain.ID{}.UUID())
	if err != nil {
		return eventstore.Wrap(err, "make the checkpoint of the rebuild")
	}
	r.shadow = r.Projection.Beside(r.conn, shadowSuffix)
	r.head, err = r.Log.Head(ctx, r.Projection.Lane())
	r.total = r.head.Position
	return err
}

// clear removes what stands beside the live tables.
func (r *rebuild) clear(ctx context.Context) error {
	var names []string
	for _, t := range r.Projection.Tables() {
		names = append(names, t.Name+shadowSuffix)
	}
	if _, err := r.conn.Exec(ctx, `DROP TABLE IF EXISTS `+strings.Join(names, ", ")); err != nil {
		return eventstore.Wrap(err, "clear away the last rebuild")
	}
	_, err := r.conn.Exec(ctx, `WITH states AS (DELETE FROM projection_states WHERE name = $1) DELETE FROM projection_checkpoints WHERE name = $1`,
		r.Projection.Name()+shadowSuffix)
	return eventstore.Wrap(err, "clear away the last rebuild")
}

// closeWithin bounds the clearing away when the caller's context has ended.
const closeWithin = 10 * time.Second

func (r *rebuild) close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeWithin)
	defer cancel()
	defer r.conn.Close(ctx) //nolint:errcheck // what it held goes with the connection, however it ends
	if r.shadow == nil || r.conn.IsClosed() {
		return nil
	}
	if err := r.clear(ctx); err != nil {
		return err
	}
	// The server notices a closed connection when it does; the next rebuild need not wait for that.
	_, err := r.conn.Exec(ctx, `SELECT pg_advisory_unlock($1, hashtext($2))`, lockRebuild, r.Projection.Name())
	return eventstore.Wrap(err, "give the lock of a rebuild back")
}

// live gives the live projection's checkpoint, or the reason why it cannot be
// compared with.
func (r *rebuild) live(ctx context.Context) (at Checkpoint, why string, err error) {
	if at, err = ReadCheckpoint(ctx, r.conn, r.Projection.Name()); err != nil {
		return at, "", err
	}
	if r.head, err = r.Log.Head(ctx, r.Projection.Lane()); err != nil {
		return at, "", err
	}
	if err := at.Fits(r.head); err != nil {
		why = err.Error()
	}
	return at, why, nil
}

// end gives the lane's end.
func (r *rebuild) end(ctx context.Context) (domain.Position, error) {
	head, err := r.Log.Head(ctx, r.Projection.Lane())
	r.total = max(r.total, head.Position)
	return head.Position, err
}

// fold brings the shadow up to a position, over whichever connection or
// transaction it was made for. Reading and decoding go on while the last batch
// is written.
func (r *rebuild) fold(ctx context.Context, shadow Projection, through domain.Position) error {
	if through <= r.at.Position {
		return nil
	}
	after := r.at.Position
	read := func(ctx context.Context) iter.Seq2[[]eventstore.Event, error] { return r.batches(ctx, after, through) }
	for events, err := range ahead(ctx, read) {
		if err != nil {
			return err
		}
		to := Checkpoint{Ledger: r.head.Ledger, Epoch: r.head.Epoch, Position: events[len(events)-1].Position}
		moved, err := shadow.Apply(ctx, r.at, to, events)
		if err != nil {
			return err
		}
		if !moved {
			return fmt.Errorf("rebuild %s: its checkpoint moved away from position %d: another process writes to it", r.Projection.Name(), r.at.Position)
		}
		r.at = to
		r.Progress(to.Position, max(r.total, to.Position))
	}
	if r.at.Position < through {
		return fmt.Errorf("rebuild %s: %w: it ends at position %d, not %d", r.Projection.Name(), ErrGap, r.at.Position, through)
	}
	return nil
}

// batches reads and decodes what lies behind a position, through another one.
func (r *rebuild) batches(ctx context.Context, after, through domain.Position) iter.Seq2[[]eventstore.Event, error] {
	return func(yield func([]eventstore.Event, error) bool) {
		next := after + 1
		var batch []eventstore.Recorded
		bytes := 0
		for record, err := range r.Log.Read(ctx, r.Projection.Lane(), after) {
			if err != nil {
				yield(nil, err)
				return
			}
			batch = append(batch, record)
			bytes += len(record.Data)
			if len(batch) < rebuildBatch && bytes < rebuildBytes && record.Position < through {
				continue
			}
			err := follows(next, batch)
			var events []eventstore.Event
			if err == nil {
				events, err = decode(ctx, r.Log, r.head, batch)
			}
			if !yield(events, err) || err != nil || record.Position >= through {
				return
			}
			next, batch, bytes = record.Position+1, batch[:0], 0
		}
	}
}

// ahead runs an iterator in a goroutine of its own, two values ahead of its
// reader. The goroutine has ended when the range over it has.
func ahead[T any](ctx context.Context, read func(context.Context) iter.Seq2[T, error]) iter.Seq2[T, error] {
	type value struct {
		v   T
		err error
	}
	return func(yield func(T, error) bool) {
		ctx, stop := context.WithCancel(ctx)
		values := make(chan value, 1)
		go func() {
			defer close(values)
			for v, err := range read(ctx) {
				select {
				case values <- value{v, err}:
				case <-ctx.Done():
					return
				}
			}
		}()
		defer func() {
			stop()
			for range values { //nolint:revive // until it is closed
			}
		}()
		for v := range values {
			if !yield(v.v, v.err) {
				return
			}
		}
	}
}
