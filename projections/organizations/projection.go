package organizations

import (
	"context"
	"crypto/sha256"
	"encoding/binary"

	"keyledger/domain"
	"keyledger/eventstore"
	"keyledger/projections"
)

const (
	// Name is the projection's name.
	Name = "organizations"
	// PartSize is how many positions a part has. Part n begins behind n times as many.
	PartSize = 256

	partsTable = "organization_parts"
)

// Projection folds the lifecycle lane into the table.
type Projection struct {
	db     projections.DB
	suffix string
}

// New makes the projection. Whoever drives it is a projections.Follower.
func New(db projections.DB) *Projection { return &Projection{db: db} }

// Beside gives the same fold onto a table beside the live one, for a rebuild.
func (p *Projection) Beside(db projections.DB, suffix string) projections.Projection {
	return &Projection{db: db, suffix: p.suffix + suffix}
}

// Tables are the tables that the projection owns, with their primary keys.
func (p *Projection) Tables() []projections.Table {
	return []projections.Table{{Name: partsTable + p.suffix, Key: []string{"organization", "part"}}}
}

func (p *Projection) Name() string      { return Name + p.suffix }
func (p *Projection) Lane() domain.Lane { return domain.Lifecycle }

func (p *Projection) Checkpoint(ctx context.Context) (projections.Checkpoint, error) {
	return projections.ReadCheckpoint(ctx, p.db, p.Name())
}

// place is a row: the events of an organization in a part.
type place struct {
	organization domain.OrganizationID
	part         int64
}

// Apply counts the events of each organization in each part.
func (p *Projection) Apply(ctx context.Context, from, to projections.Checkpoint, events []eventstore.Event) (bool, error) {
	counts := map[place]uint64{}
	change := projections.NewChange(from.Position)
	for i := range events {
		e := &events[i]
		change.Through(e.Position - 1)
		at := place{e.Organization, partOf(e.Position)}
		counts[at]++
		change.Sum.Plus(at.hash(), 1)
	}
	if len(counts) == 0 {
		return projections.Move(ctx, p.db, p, from, to, change, "")
	}
	var names []string
	var parts, sums []int64
	for at, n := range counts {
		names, parts, sums = append(names, string(at.organization)), append(parts, at.part), append(sums, int64(n))
	}
	return projections.Move(ctx, p.db, p, from, to, change, `, counted AS (
INSERT INTO `+partsTable+p.suffix+` AS o (organization, part, events)
SELECT n.organization, n.part, n.events
  FROM unnest($8::text[], $9::bigint[], $10::bigint[]) AS n (organization, part, events)
 WHERE EXISTS (SELECT FROM moved)
    ON CONFLICT (organization, part) DO UPDATE SET events = o.events + excluded.events)`, names, parts, sums)
}

func partOf(position domain.Position) int64 { return int64((position - 1) / PartSize) }

// hash is what one event of a row counts in the projection's state.
func (at place) hash() [sha256.Size]byte {
	b := append(make([]byte, 0, 128), "keyledger organizations 1"...)
	b = binary.BigEndian.AppendUint64(b, uint64(at.part))
	return sha256.Sum256(append(b, at.organization...))
}
