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

// OrganizationPage gives the next events of one organization in the lifecycle
// lane, behind one position and up to another, at most so many. It reads nothing of others.
func (s *Store) OrganizationPage(ctx context.Context, organization domain.OrganizationID, after, through domain.Position, most int) ([]Recorded, error) {
	// position + 0 is what events_lifecycle_organization is built on: see there.
	rows, err := s.pool.Query(ctx, `SELECT `+columnsSQL+` FROM events
		WHERE lane = 'lifecycle' AND organization = $1 AND position + 0 > $2 AND position + 0 <= $3 ORDER BY position + 0 LIMIT $4`,
		string(organization), int64(after), int64(through), most)
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
