package audit

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"keyledger/domain"
	"keyledger/eventstore"
	"keyledger/projections/organizations"
)

// Trail answers questions about one organization, by way of the streams that it
// has: nothing of the others is read. It needs a running server, which
// keeps the list of keys.
type Trail struct {
	Pool  *pgxpool.Pool
	Store *eventstore.Store
	// CatchUp brings the list of keys up to a position, since it says which streams
	// there are.
	CatchUp func(context.Context, domain.Position) error
	// CatchUpParts does the same with where organizations' events stand.
	CatchUpParts func(context.Context, domain.Position) error
}

// TrailQuery asks for one page of what happened in an organization, newest first.
type TrailQuery struct {
	Organization domain.OrganizationID
	Before       domain.Position // only events before it; 0: from the end
	Most         int
	Key          domain.KeyID // zero: all keys, and the members
	Types        []string     // empty: all
	Since, Until time.Time    // zero: no bound; Until is not included
}

const trailStreams = `WITH streams AS (
	SELECT 'key/' || k.key_id::text AS stream FROM keylist k WHERE k.organization = $1 AND ($2::uuid IS NULL OR k.key_id = $2)
	UNION ALL SELECT 'organization/' || $1 WHERE $2::uuid IS NULL
) SELECT e.position, e.epoch, e.id, e.stream, e.version, e.organization, e.type, e.schema, e.recorded_at, e.data, e.metadata, e.sealed
  FROM streams s JOIN events e ON e.lane = 'lifecycle' AND e.stream = s.stream `

// Events gives a page.
func (t *Trail) Events(ctx context.Context, q TrailQuery) ([]eventstore.Event, error) {
	head, err := t.current(ctx)
	if err != nil {
		return nil, err
	}
	before := q.Before
	if before == 0 {
		before = head + 1
	}
	if q.Key.IsZero() {
		return t.newest(ctx, q, head, before)
	}
	var types []string
	if len(q.Types) > 0 {
		types = q.Types
	}
	return t.read(ctx, trailStreams+`WHERE e.position < $3 AND ($4::text[] IS NULL OR e.type = ANY($4))
		AND ($5::timestamptz IS NULL OR e.recorded_at >= $5) AND ($6::timestamptz IS NULL OR e.recorded_at < $6) ORDER BY e.position DESC LIMIT $7`,
		string(q.Organization), keyOrNull(q.Key), int64(before), types, timeOrNull(q.Since), timeOrNull(q.Until), q.Most)
}

// partsAtOnce is how many parts of the lane one query looks into.
const partsAtOnce = 32

const newestEvents = `SELECT e.position, e.epoch, e.id, e.stream, e.version, e.organization, e.type, e.schema, e.recorded_at, e.data, e.metadata, e.sealed
  FROM unnest($2::bigint[]) AS p (part)
  JOIN events e ON e.lane = 'lifecycle' AND e.position > p.part * $3 AND e.position <= (p.part + 1) * $3
 WHERE e.organization = $1 AND e.position < $4 AND e.position >= $5 AND ($6::text[] IS NULL OR e.type = ANY($6))
 ORDER BY e.position DESC LIMIT $7`

// newest gives a page of everything in an organization, from its newest parts back: what
// it costs depends on the page and on how far back the filter's first event lies, not
// on how much ever happened.
func (t *Trail) newest(ctx context.Context, q TrailQuery, head, before domain.Position) ([]eventstore.Event, error) {
	if err := t.CatchUpParts(ctx, head); err != nil {
		return nil, err
	}
	// Times never run backwards in a lane, so moments are positions.
	least := domain.Position(1)
	var err error
	if !q.Since.IsZero() {
		if least, err = t.Store.FirstSince(ctx, domain.Lifecycle, q.Since); err != nil {
			return nil, err
		}
	}
	if !q.Until.IsZero() {
		until, err := t.Store.FirstSince(ctx, domain.Lifecycle, q.Until)
		if err != nil {
			return nil, err
		}
		before = min(before, until)
	}
	var types []string
	if len(q.Types) > 0 {
		types = q.Types
	}
	events := []eventstore.Event{}
	for before > least && len(events) < q.Most {
		rows, err := t.Pool.Query(ctx, `SELECT part FROM organization_parts WHERE organization = $1 AND part <= $2 AND part >= $3 ORDER BY part DESC LIMIT $4`,
			string(q.Organization), int64((before-2)/organizations.PartSize), int64((least-1)/organizations.PartSize), partsAtOnce)
		if err != nil {
			return nil, eventstore.Wrap(err, "look where events of %s stand", q.Organization)
		}
		parts, err := pgx.CollectRows(rows, pgx.RowTo[int64])
		if err != nil {
			return nil, eventstore.Wrap(err, "look where events of %s stand", q.Organization)
		}
		if len(parts) == 0 {
			break
		}
		more, err := t.read(ctx, newestEvents, string(q.Organization), parts, int64(organizations.PartSize), int64(before), int64(least), types, q.Most-len(events))
		if err != nil {
			return nil, err
		}
		events = append(events, more...)
		before = domain.Position(parts[len(parts)-1])*organizations.PartSize + 1
	}
	return events, nil
}

// KeysAt gives an organization's keys as they stood at a position, a moment or so
// long ago, newest first, and which moment that was.
func (t *Trail) KeysAt(ctx context.Context, organization domain.OrganizationID, at string, now time.Time) ([]domain.Key, time.Time, error) {
	if _, err := t.current(ctx); err != nil {
		return nil, now, err
	}
	position, err := ResolvePosition(ctx, t.Store, domain.Lifecycle, at, now)
	if err != nil {
		return nil, now, err
	}
	moment := now
	if exact, err := time.Parse(time.RFC3339Nano, at); err == nil {
		moment = exact
	} else if ago, err := time.ParseDuration(at); err == nil && at != "0" {
		moment = now.Add(-ago)
	} else if err := t.Pool.QueryRow(ctx, `SELECT coalesce((SELECT recorded_at FROM events WHERE lane = 'lifecycle' AND position = $1), 'epoch')`,
		int64(position)).Scan(&moment); err != nil {
		return nil, now, eventstore.Wrap(err, "read lifecycle %d", position)
	}
	events, err := t.read(ctx, trailStreams+`WHERE e.position <= $3 AND s.stream LIKE 'key/%' ORDER BY e.position`, string(organization), nil, int64(position))
	if err != nil {
		return nil, now, err
	}
	keys := map[domain.KeyID]domain.Key{}
	for _, e := range events {
		id, _ := e.Stream.Key()
		if keys[id], err = domain.EvolveKey(keys[id], e.Event); err != nil {
			return nil, now, fmt.Errorf("fold %s %d: %w", e.Lane, e.Position, err)
		}
	}
	return NewestFirst(keys), moment, nil
}

// current brings the list of keys up to the log's end.
func (t *Trail) current(ctx context.Context) (domain.Position, error) {
	head, err := t.Store.Head(ctx, domain.Lifecycle)
	if err != nil {
		return 0, err
	}
	return head.Position, t.CatchUp(ctx, head.Position)
}

func (t *Trail) read(ctx context.Context, query string, args ...any) ([]eventstore.Event, error) {
	ledger, _ := t.Store.Ledger()
	recorded, err := scan(ctx, t.Pool, ledger, domain.Lifecycle, query, args...)
	if err != nil {
		return nil, err
	}
	events := make([]eventstore.Event, len(recorded))
	for i, r := range recorded {
		if events[i], err = t.Store.Decode(ctx, r); err != nil {
			return nil, err
		}
	}
	return events, nil
}

func keyOrNull(id domain.KeyID) *[16]byte {
	if id.IsZero() {
		return nil
	}
	return (*[16]byte)(&id)
}

func timeOrNull(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}
