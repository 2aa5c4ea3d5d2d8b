package usage

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"keyledger/domain"
	"keyledger/eventstore"
)

// Log says where the lane ends. *eventstore.Store is one.
type Log interface {
	Head(ctx context.Context, lane domain.Lane) (eventstore.Head, error)
}

// Driver brings the projection up to a position. *projections.Follower is one.
type Driver interface {
	CatchUp(ctx context.Context, position domain.Position) error
}

// Counts answers how often a key was used, as of the log's head.
type Counts struct {
	pool   *pgxpool.Pool
	log    Log
	driver Driver
}

// NewCounts makes counts that are read from pool and that driver keeps up.
func NewCounts(pool *pgxpool.Pool, log Log, driver Driver) *Counts {
	return &Counts{pool: pool, log: log, driver: driver}
}

// Counts adds up a key's uses from one moment to before another, per hour or per day
// of UTC, in their order. Intervals without uses are left out.
func (c *Counts) Counts(ctx context.Context, key domain.KeyID, from, to time.Time, daily bool) ([]domain.UsageCount, error) {
	head, err := c.log.Head(ctx, domain.Usage)
	if err != nil {
		return nil, err
	}
	if err := c.driver.CatchUp(ctx, head.Position); err != nil {
		return nil, fmt.Errorf("bring the counts of uses up to position %d: %w", head.Position, err)
	}
	unit := "hour"
	if daily {
		unit = "day"
	}
	rows, err := c.pool.Query(ctx, `
SELECT date_trunc($4, h.hour AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' AS start,
       h.outcome,
       sum(h.count)::bigint
  FROM `+hoursTable+` h
 WHERE h.key_id = $1::uuid AND h.hour >= $2 AND h.hour < $3
 GROUP BY start, h.outcome
 ORDER BY start, h.outcome`, key.UUID(), from, to, unit)
	if err != nil {
		return nil, eventstore.Wrap(err, "count uses")
	}
	defer rows.Close()
	var counts []domain.UsageCount
	for rows.Next() {
		var start time.Time
		var outcome int16
		var count int64
		if err := rows.Scan(&start, &outcome, &count); err != nil {
			return nil, eventstore.Wrap(err, "count uses")
		}
		counts = append(counts, domain.UsageCount{Start: start.UTC(), Outcome: domain.Outcome(outcome), Count: uint64(count)})
	}
	if err := rows.Err(); err != nil {
		return nil, eventstore.Wrap(err, "count uses")
	}
	return counts, nil
}
