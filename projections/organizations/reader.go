package organizations

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"keyledger/domain"
	"keyledger/eventstore"
)

// Log is where the events stand. *eventstore.Store is one.
type Log interface {
	// ReadParts gives an organization's events in runs of positions, in order.
	ReadParts(ctx context.Context, organization domain.OrganizationID, firsts []domain.Position, size uint64, after, through domain.Position, most int) ([]eventstore.Recorded, error)
}

// Driver brings the projection to a position. *projections.Follower is one.
type Driver interface {
	CatchUp(ctx context.Context, position domain.Position) error
}

// Reader reads the events of one organization.
type Reader struct {
	pool   *pgxpool.Pool
	log    Log
	driver Driver
}

// NewReader makes a reader over the projection that driver drives.
func NewReader(pool *pgxpool.Pool, log Log, driver Driver) *Reader { return &Reader{pool, log, driver} }

// mostParts bounds what one page looks at.
const mostParts = 64

// OrganizationPage gives the next events of one organization in the lifecycle lane, behind one
// position and up to another, at most so many; and up to which position they are all that there are.
// The log must reach as far.
func (r *Reader) OrganizationPage(ctx context.Context, organization domain.OrganizationID, after, through domain.Position, most int) ([]eventstore.Recorded, domain.Position, error) {
	if after >= through {
		return nil, after, nil
	}
	if err := r.driver.CatchUp(ctx, through); err != nil {
		return nil, after, err
	}
	firsts, looked, err := r.parts(ctx, organization, after, through, most)
	if err != nil || len(firsts) == 0 {
		return nil, looked, err
	}
	events, err := r.log.ReadParts(ctx, organization, firsts, PartSize, after, looked, most)
	if err != nil {
		return nil, after, err
	}
	if len(events) == most {
		looked = events[most-1].Position
	}
	return events, looked, nil
}

// parts gives the first positions of as many parts as a page takes, and how far they
// and the gaps between them reach.
func (r *Reader) parts(ctx context.Context, organization domain.OrganizationID, after, through domain.Position, most int) ([]domain.Position, domain.Position, error) {
	first := partOf(after + 1)
	rows, err := r.pool.Query(ctx, `SELECT part, events FROM `+partsTable+`
		WHERE organization = $1 AND part BETWEEN $2 AND $3 ORDER BY part LIMIT $4`,
		string(organization), first, partOf(through), mostParts)
	if err != nil {
		return nil, after, eventstore.Wrap(err, "find the events of %s", organization)
	}
	type found struct{ Part, Events int64 }
	parts, err := pgx.CollectRows(rows, pgx.RowToStructByPos[found])
	if err != nil {
		return nil, after, eventstore.Wrap(err, "find the events of %s", organization)
	}
	var firsts []domain.Position
	enough := int64(most)
	for _, p := range parts {
		if enough <= 0 {
			break
		}
		firsts = append(firsts, domain.Position(p.Part)*PartSize+1)
		if p.Part > first { // of the first one, some may have been read before
			enough -= p.Events
		}
	}
	if len(firsts) < len(parts) || len(parts) == mostParts {
		through = min(through, firsts[len(firsts)-1]+PartSize-1)
	}
	return firsts, through, nil
}
