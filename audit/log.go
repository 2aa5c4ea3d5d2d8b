package audit

import (
	"context"
	"iter"

	"github.com/jackc/pgx/v5/pgxpool"

	"keyledger/domain"
	"keyledger/eventstore"
)

// Log reads events for those who have no master key, and so no eventstore.Store. It is a
// transparency.Log.
type Log struct{ pool *pgxpool.Pool }

// NewLog makes one. The pool's role must be able to read events.
func NewLog(pool *pgxpool.Pool) *Log { return &Log{pool} }

// Read gives the events of a lane behind a position.
func (l *Log) Read(ctx context.Context, lane domain.Lane, after domain.Position) iter.Seq2[eventstore.Recorded, error] {
	return func(yield func(eventstore.Recorded, error) bool) {
		var ledger domain.ID
		if err := l.pool.QueryRow(ctx, `SELECT ledger_id FROM log_head WHERE lane = $1`, string(lane)).Scan((*[16]byte)(&ledger)); err != nil {
			yield(eventstore.Recorded{}, eventstore.Wrap(err, "read the head of %s", lane))
			return
		}
		for {
			events, err := l.page(ctx, ledger, lane, after)
			if err != nil {
				yield(eventstore.Recorded{}, err)
				return
			}
			for _, e := range events {
				if !yield(e, nil) {
					return
				}
			}
			if len(events) < pageSize {
				return
			}
			after = events[len(events)-1].Position
		}
	}
}

const pageSize = 256

func (l *Log) page(ctx context.Context, ledger domain.ID, lane domain.Lane, after domain.Position) ([]eventstore.Recorded, error) {
	return scan(ctx, l.pool, ledger, lane, `SELECT `+columnsSQL+` FROM events WHERE lane = $1 AND position > $2 ORDER BY position LIMIT $3`,
		string(lane), int64(after), pageSize)
}

// scan reads events.
func scan(ctx context.Context, pool *pgxpool.Pool, ledger domain.ID, lane domain.Lane, query string, args ...any) ([]eventstore.Recorded, error) {
	rows, err := pool.Query(ctx, query, args...)
	if err != nil {
		return nil, eventstore.Wrap(err, "read events of %s", lane)
	}
	defer rows.Close()
	var events []eventstore.Recorded
	for rows.Next() {
		r := eventstore.Recorded{Ledger: ledger, Lane: lane}
		if err := rows.Scan(&r.Position, &r.Epoch, (*[16]byte)(&r.ID), (*string)(&r.Stream), &r.Version, (*string)(&r.Organization),
			&r.Type, &r.Schema, &r.RecordedAt, &r.Data, &r.Metadata, &r.Sealed); err != nil {
			return nil, eventstore.Wrap(err, "read events of %s", lane)
		}
		r.RecordedAt = r.RecordedAt.UTC()
		events = append(events, r)
	}
	return events, eventstore.Wrap(rows.Err(), "read events of %s", lane)
}
