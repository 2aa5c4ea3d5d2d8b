package eventstore

import (
	"context"
	"fmt"
	"iter"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"keyledger/domain"
)

// pageSize is how many events one query reads. Usage events are columns of up to
// some thousand uses, so fewer of them fill the memory.
func pageSize(lane domain.Lane) int {
	if lane == domain.Usage {
		return 64
	}
	return 1000
}

// mostFollowed is how many events Follow gives at once of those that it has in memory. Uses come as an event for each
// organization and flush: the more flushes a fold gets at once, the more of them are of the same keys.
func mostFollowed(lane domain.Lane) int {
	if lane == domain.Usage {
		return mostTailEvents / 2
	}
	return pageSize(lane)
}

// Cut says whether n events that Follow gave at once are as many as it gives, so that there are probably more.
func Cut(lane domain.Lane, n int) bool { return n == pageSize(lane) || n == mostFollowed(lane) }

const columnsSQL = `position, epoch, id, stream, version, organization, type, schema, recorded_at, data, metadata, sealed`

// Read gives the events of a lane behind a position, in order, up to the head as it was at the call.
func (s *Store) Read(ctx context.Context, lane domain.Lane, after domain.Position) iter.Seq2[Recorded, error] {
	return func(yield func(Recorded, error) bool) {
		head, err := s.Head(ctx, lane)
		if err != nil {
			yield(Recorded{}, err)
			return
		}
		for after < head.Position {
			page, err := s.page(ctx, lane, after, head.Position)
			if err != nil {
				yield(Recorded{}, err)
				return
			}
			for _, r := range page {
				if !yield(r, nil) {
					return
				}
			}
			after = page[len(page)-1].Position
		}
	}
}

// ReadStream gives the events of one stream of the lifecycle lane behind a version.
func (s *Store) ReadStream(ctx context.Context, stream Stream, after uint64) iter.Seq2[Recorded, error] {
	return s.readStream(ctx, domain.Lifecycle, stream, after, 0)
}

// Follow gives the events of a lane behind a position for ever, whatever is there at a time, and waits
// for more. It ends with ctx, or with the first error: its caller begins again
// where it stands.
func (s *Store) Follow(ctx context.Context, lane domain.Lane, after domain.Position) iter.Seq2[[]Recorded, error] {
	return func(yield func([]Recorded, error) bool) {
		tail := s.tails[lane]
		for {
			if err := tail.wait(ctx, after); err != nil {
				return
			}
			said := tail.said()
			events := tail.after(after, mostFollowed(lane))
			if len(events) == 0 {
				var err error
				if events, err = s.next(ctx, lane, after); err != nil {
					if ctx.Err() == nil {
						yield(nil, err)
					}
					return
				}
			}
			if len(events) == 0 && tail.doubt(said, after) {
				continue // somebody said so, and it is not so
			}
			if len(events) == 0 {
				// What was announced is not visible: a head of another history.
				yield(nil, Wrap(ErrEpochChanged, "follow %s after %d", lane, after))
				return
			}
			if !yield(events, nil) {
				return
			}
			after = events[len(events)-1].Position
		}
	}
}

// next reads what follows a position, for a follower that the tail has nothing for. All
// followers of a process are woken at once and mostly stand at the same place: one of them reads, and the
// others take what it has read. Where that was in vain, each reads for itself.
func (s *Store) next(ctx context.Context, lane domain.Lane, after domain.Position) ([]Recorded, error) {
	t := s.tails[lane]
	others, ended := t.read(after)
	if others != nil {
		select {
		case <-others:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	} else {
		defer ended()
	}
	if events := t.after(after, mostFollowed(lane)); len(events) > 0 {
		return events, nil
	}
	events, err := s.page(ctx, lane, after, domain.Position(1<<62))
	if n := len(events); n > 0 && n < pageSize(lane) { // the end of the lane: others will come for it
		t.learned(events)
	}
	return events, err
}

// Head reads the end of a lane.
func (s *Store) Head(ctx context.Context, lane domain.Lane) (Head, error) {
	var h Head
	err := s.pool.QueryRow(ctx, `SELECT ledger_id, epoch, position FROM log_head WHERE lane = $1`, string(lane)).
		Scan((*[16]byte)(&h.Ledger), &h.Epoch, &h.Position)
	if err != nil {
		return Head{}, Wrap(err, "read the head of %s", lane)
	}
	if h.Ledger != s.ledger || h.Epoch != s.epoch {
		return Head{}, Wrap(ErrEpochChanged, "read the head of %s", lane)
	}
	s.tails[lane].known(h.Position)
	return h, nil
}

// FirstSince gives the oldest position that was recorded at or after a moment,
// and the one behind the head when there is none. Times never run backwards in
// a lane, so it bisects.
func (s *Store) FirstSince(ctx context.Context, lane domain.Lane, t time.Time) (domain.Position, error) {
	head, err := s.Head(ctx, lane)
	if err != nil {
		return 0, err
	}
	return FirstSince(ctx, s.pool, lane, head.Position, t)
}

// FirstSince is that of a Store, for those who have none: through is where the lane ends.
func FirstSince(ctx context.Context, pool *pgxpool.Pool, lane domain.Lane, through domain.Position, t time.Time) (domain.Position, error) {
	// Parts of the usage lane may have been detached: the first position need not be 1.
	var low domain.Position
	err := pool.QueryRow(ctx, `SELECT coalesce((SELECT position FROM events WHERE lane = $1 ORDER BY position LIMIT 1), $2)`,
		string(lane), through+1).Scan(&low)
	if err != nil {
		return 0, Wrap(err, "find the first event of %s", lane)
	}
	high := through + 1
	for low < high {
		middle := low + (high-low)/2
		var at time.Time
		err := pool.QueryRow(ctx, `SELECT recorded_at FROM events WHERE lane = $1 AND position = $2`, string(lane), middle).Scan(&at)
		if err != nil {
			return 0, Wrap(err, "read %s %d", lane, middle)
		}
		if at.Before(t) {
			low = middle + 1
		} else {
			high = middle
		}
	}
	return low, nil
}

// page reads one page, and refuses one with a gap: positions are dense, so a gap is damage.
func (s *Store) page(ctx context.Context, lane domain.Lane, after, through domain.Position) ([]Recorded, error) {
	rows, err := s.pool.Query(ctx, `SELECT `+columnsSQL+` FROM events
		WHERE lane = $1 AND position > $2 AND position <= $3 ORDER BY position LIMIT $4`,
		string(lane), after, through, pageSize(lane))
	if err != nil {
		return nil, Wrap(err, "read %s after %d", lane, after)
	}
	events, err := s.scan(rows, lane)
	if err != nil {
		return nil, Wrap(err, "read %s after %d", lane, after)
	}
	for i := range events {
		if want := after + 1 + domain.Position(i); events[i].Position != want {
			return nil, fmt.Errorf("read %s: %w: position %d is missing, %d follows: compare with a backup", lane, ErrGap, want, events[i].Position)
		}
	}
	s.notice(events)
	if len(events) == 0 && through < 1<<62 {
		return nil, fmt.Errorf("read %s: %w: position %d is missing below the head %d: compare with a backup", lane, ErrGap, after+1, through)
	}
	return events, nil
}

// readStream reads a stream behind a version; limit 0 is all of it.
func (s *Store) readStream(ctx context.Context, lane domain.Lane, stream Stream, after uint64, limit int) iter.Seq2[Recorded, error] {
	return func(yield func(Recorded, error) bool) {
		var most *int
		if limit > 0 {
			most = &limit
		}
		rows, err := s.pool.Query(ctx, `SELECT `+columnsSQL+` FROM events
			WHERE lane = $1 AND stream = $2 AND version > $3 ORDER BY version LIMIT $4`, string(lane), string(stream), after, most)
		if err != nil {
			yield(Recorded{}, Wrap(err, "read stream %s", stream))
			return
		}
		events, err := s.scan(rows, lane)
		if err != nil {
			yield(Recorded{}, Wrap(err, "read stream %s", stream))
			return
		}
		for _, r := range events {
			if !yield(r, nil) {
				return
			}
		}
	}
}

func (s *Store) scan(rows pgx.Rows, lane domain.Lane) ([]Recorded, error) {
	defer rows.Close()
	var events []Recorded
	for rows.Next() {
		r := Recorded{Ledger: s.ledger, Lane: lane}
		err := rows.Scan(
			&r.Position,
			&r.Epoch,
			(*[16]byte)(&r.ID),
			(*string)(&r.Stream),
			&r.Version,
			(*string)(&r.Organization),
			&r.Type,
			&r.Schema,
			&r.RecordedAt,
			&r.Data,
			&r.Metadata,
			&r.Sealed,
		)
		if err != nil {
			return nil, err
		}
		r.RecordedAt = r.RecordedAt.UTC()
		events = append(events, r)
	}
	return events, rows.Err()
}
