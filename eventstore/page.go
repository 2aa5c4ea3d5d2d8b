package eventstore

import (
	"context"

	"keyledger/domain"
)

// Page gives the next events of a lane behind a position, as many as one query
// reads, and none behind the head. It is for readers who come and go; those who stay use Follow.
func (s *Store) Page(ctx context.Context, lane domain.Lane, after domain.Position) ([]Recorded, error) {
	if events := s.tails[lane].after(after, pageSize(lane)); len(events) > 0 {
		return events, nil
	}
	return s.page(ctx, lane, after, domain.Position(1<<62))
}

// ReadParts gives the events of one organization in the lifecycle lane, in runs of
// size positions that begin where firsts says, behind one position and up to another, in order and at most so many.
func (s *Store) ReadParts(ctx context.Context, organization domain.OrganizationID, firsts []domain.Position, size uint64, after, through domain.Position, most int) ([]Recorded, error) {
	rows, err := s.pool.Query(ctx, `SELECT e.* FROM unnest($1::bigint[]) AS p (first) CROSS JOIN LATERAL (
		SELECT `+columnsSQL+` FROM events
		 WHERE lane = 'lifecycle' AND organization = $2 AND position BETWEEN p.first AND p.first + $3 - 1 AND position > $4 AND position <= $5
		) AS e ORDER BY e.position LIMIT $6`,
		firsts, string(organization), int64(size), after, through, most)
	if err != nil {
		return nil, Wrap(err, "read the events of %s after %d", organization, after)
	}
	events, err := s.scan(rows, domain.Lifecycle)
	return events, Wrap(err, "read the events of %s after %d", organization, after)
}

// Await returns how far a lane is known to be committed, once that is behind a position.
func (s *Store) Await(ctx context.Context, lane domain.Lane, position domain.Position) (domain.Position, error) {
	if err := s.tails[lane].wait(ctx, position); err != nil {
		return position, err
	}
	return s.tails[lane].reached(), nil
}
