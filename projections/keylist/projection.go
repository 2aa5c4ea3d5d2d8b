package keylist

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"keyledger/domain"
	"keyledger/eventstore"
	"keyledger/projections"
)

// Name is the projection's name, and its table's.
const Name = "keylist"

// Projection folds the lifecycle lane into the table.
type Projection struct {
	db    projections.DB
	name  string // of the checkpoint
	table string
	alone bool // nobody else drives it: it stands beside the live one
}

// New makes the projection. Whoever drives it is a projections.Follower.
func New(db projections.DB) *Projection {
	return &Projection{db: db, name: Name, table: Name}
}

// Beside gives the same fold onto a table beside the live one, for a rebuild.
func (p *Projection) Beside(db projections.DB, suffix string) projections.Projection {
	return &Projection{db: db, name: p.name + suffix, table: p.table + suffix, alone: true}
}

// Tables are the tables that the projection owns, with their primary keys.
func (p *Projection) Tables() []projections.Table {
	return []projections.Table{{Name: p.table, Key: []string{"key_id"}}}
}

func (p *Projection) Name() string      { return p.name }
func (p *Projection) Lane() domain.Lane { return domain.Lifecycle }

func (p *Projection) Checkpoint(ctx context.Context) (projections.Checkpoint, error) {
	return projections.ReadCheckpoint(ctx, p.db, p.name)
}

// Apply folds events into the rows that they concern, and writes each row once.
func (p *Projection) Apply(ctx context.Context, from, to projections.Checkpoint, events []eventstore.Event) (bool, error) {
	rows, ok, err := p.load(ctx, from, events)
	if err != nil || !ok {
		return false, err
	}
	var created, changed []*entry
	change := projections.NewChange(from.Position)
	var erased []string
	for _, e := range events {
		change.Through(e.Position - 1)
		id, ok, err := keyOf(e)
		if err != nil {
			return false, err
		}
		if !ok {
			if event, ok := e.Event.(domain.OrganizationErased); ok {
				erased = append(erased, string(event.Organization))
			}
			continue
		}
		row := rows[id]
		if row == nil {
			row = &entry{}
			rows[id] = row
		}
		if e.Version != row.Version+1 {
			return false, projections.Broken(e.Recorded, fmt.Errorf("version %d of %s follows version %d", e.Version, e.Stream, row.Version))
		}
		if row.Version > 0 {
			change.Sum.Minus(row.hash())
		}
		if row.Key, err = domain.EvolveKey(row.Key, e.Event); err != nil {
			return false, projections.Broken(e.Recorded, err)
		}
		switch {
		case row.Position > from.Position: // changed earlier in this batch
		case row.Version == 0:
			created = append(created, row)
		default:
			changed = append(changed, row)
		}
		row.Version, row.Position = e.Version, e.Position
		change.Sum.Plus(row.hash(), 1)
	}
	for _, row := range rows {
		// What an event of this batch still told is gone with the erasure in the same batch.
		if row != nil && slices.Contains(erased, string(row.Organization)) {
			row.Name, row.CreatedBy = "", ""
		}
	}
	if !p.alone {
		return p.write(ctx, from, to, append(created, changed...), erased, change)
	}
	if err := p.copy(ctx, created); err != nil {
		return false, err
	}
	return p.write(ctx, from, to, changed, erased, change)
}

// keyOf says which key an event of the lane changes, if any.
func keyOf(e eventstore.Event) (domain.KeyID, bool, error) {
	switch event := e.Event.(type) {
	case domain.KeyCreated:
		return event.Key, true, nil
	case domain.RevocationFenced:
		return event.Key, true, nil
	case domain.KeyRevoked:
		return event.Key, true, nil
	case domain.MemberAdded, domain.MemberRemoved, domain.OrganizationErased:
		return domain.KeyID{}, false, nil
	case domain.KeyUsed:
		return domain.KeyID{}, false, projections.Broken(e.Recorded, fmt.Errorf("%s does not belong to the lane", e.Type))
	}
	return domain.KeyID{}, false, projections.Broken(e.Recorded, fmt.Errorf("unknown event %T", e.Event))
}

// load reads the rows that events change and do not create. Rows and checkpoint are of one snapshot:
// when the checkpoint is from, the rows are what the events before made of them,
// and if it still is when the statement of write has its lock, they still are. ok
// is false when the checkpoint is elsewhere.
func (p *Projection) load(ctx context.Context, from projections.Checkpoint, events []eventstore.Event) (map[domain.KeyID]*entry, bool, error) {
	rows := make(map[domain.KeyID]*entry, len(events))
	var missing []string
	for _, e := range events {
		id, ok, err := keyOf(e)
		if err != nil {
			return nil, false, err
		}
		if _, seen := rows[id]; seen || !ok {
			continue
		}
		rows[id] = nil
		if e.Version > 1 {
			missing = append(missing, id.UUID())
		}
	}
	if len(missing) == 0 {
		return rows, true, nil
	}
	result, err := p.db.Query(ctx, `
SELECT c.ledger_id, c.epoch, c.position, `+columns+`
  FROM projection_checkpoints c
  LEFT JOIN `+p.table+` k ON k.key_id = ANY($2::uuid[])
 WHERE c.name = $1`, pgx.QueryExecModeSimpleProtocol, p.name, missing)
	if err != nil {
		return nil, false, eventstore.Wrap(err, "load %d keys of %s", len(missing), p.table)
	}
	defer result.Close()
	for result.Next() {
		var ledger [16]byte
		var epoch, position int64
		var r row
		if err := result.Scan(append([]any{&ledger, &epoch, &position}, r.targets()...)...); err != nil {
			return nil, false, eventstore.Wrap(err, "scan a key of %s", p.table)
		}
		if projections.NewCheckpoint(ledger, epoch, position) != from {
			return nil, false, nil
		}
		if r.id.Valid {
			e := r.entry()
			rows[e.ID] = &e
		}
	}
	return rows, true, eventstore.Wrap(result.Err(), "load %d keys of %s", len(missing), p.table)
}

// write moves the checkpoint and writes the rows as they are now. New and changed
// ones go the same way, found by the primary key. Erased organizations lose what is
// personal in their other rows.
func (p *Projection) write(ctx context.Context, from, to projections.Checkpoint, changed []*entry, erased []string, change projections.Change) (bool, error) {
	if len(changed)+len(erased) == 0 {
		return projections.Move(ctx, p.db, p, from, to, change, "")
	}
	n := len(changed)
	ids, organizations, prefixes := make([]string, n), make([]string, n), make([]string, n)
	names, scopes, creators := make([]string, n), make([]string, n), make([]string, n)
	digests := make([][]byte, n)
	limits := make([]int64, n)
	created, expires, revokedAt := make([]*time.Time, n), make([]*time.Time, n), make([]*time.Time, n)
	disabled, revoked := make([]bool, n), make([]bool, n)
	versions, positions := make([]int64, n), make([]int64, n)
	quotas, refills := make([]int64, n), make([]string, n)
	for i, e := range changed {
		ids[i], organizations[i], prefixes[i] = e.ID.UUID(), string(e.Organization), e.Prefix
		names[i], scopes[i], creators[i] = e.Name, strings.Join(e.Scopes.Strings(), " "), string(e.CreatedBy)
		digests[i] = e.Digest[:]
		limits[i] = int64(e.RateLimit)
		created[i], expires[i], revokedAt[i] = orNull(&e.CreatedAt), orNull(&e.ExpiresAt), orNull(&e.RevokedAt)
		disabled[i], revoked[i] = e.Disabled, e.Revoked
		versions[i], positions[i] = int64(e.Version), int64(e.Position)
		quotas[i], refills[i] = int64(e.Quota.Limit), string(e.Quota.Refill)
	}
	arguments := []any{
		ids, organizations, digests, prefixes, names, scopes, limits,
		created, creators, expires, disabled, revoked, revokedAt, versions, positions, quotas, refills,
	}
	forget := ""
	if len(erased) > 0 {
		// A statement changes a row once: those that it writes anyway are nameless already.
		forget = `, forgotten AS (
UPDATE ` + p.table + ` k SET name = '', created_by = ''
 WHERE k.organization = ANY ($25::text[]) AND k.key_id <> ALL ($8::uuid[]) AND (k.name <> '' OR k.created_by <> '') AND EXISTS (SELECT FROM moved))`
		arguments = append(arguments, erased)
	}
	return projections.Move(ctx, p.db, p, from, to, change, `, kept AS (
INSERT INTO `+p.table+` AS k (key_id, organization, digest, prefix, name, scopes, rate_limit,
       created_at, created_by, expires_at, disabled, revoked, revoked_at, version, position, quota_limit, quota_refill)
SELECT n.key_id, n.organization, n.digest, n.prefix, n.name, string_to_array(n.scopes, ' '), n.rate_limit,
       n.created_at, n.created_by, n.expires_at, n.disabled, n.revoked, n.revoked_at, n.version, n.position, n.quota_limit, n.quota_refill
  FROM unnest($8::uuid[], $9::text[], $10::bytea[], $11::text[], $12::text[], $13::text[], $14::integer[],
              $15::timestamptz[], $16::text[], $17::timestamptz[], $18::boolean[], $19::boolean[], $20::timestamptz[], $21::bigint[], $22::bigint[], $23::bigint[], $24::text[])
       AS n (key_id, organization, digest, prefix, name, scopes, rate_limit,
             created_at, created_by, expires_at, disabled, revoked, revoked_at, version, position, quota_limit, quota_refill)
 WHERE EXISTS (SELECT FROM moved)
    ON CONFLICT (key_id) DO UPDATE SET organization = excluded.organization, digest = excluded.digest, prefix = excluded.prefix,
       name = excluded.name, scopes = excluded.scopes, rate_limit = excluded.rate_limit,
       created_at = excluded.created_at, created_by = excluded.created_by, expires_at = excluded.expires_at,
       disabled = excluded.disabled, revoked = excluded.revoked, revoked_at = excluded.revoked_at,
       version = excluded.version, position = excluded.position, quota_limit = excluded.quota_limit, quota_refill = excluded.quota_refill)`+forget, arguments...)
}

// copy writes new rows the fast way, in a statement of its own. That is sound only
// where nobody else drives the projection, and all is thrown away when it fails.
func (p *Projection) copy(ctx context.Context, created []*entry) error {
	if len(created) == 0 {
		return nil
	}
	_, err := p.db.CopyFrom(ctx, pgx.Identifier{p.table}, []string{
		"key_id", "organization", "digest", "prefix", "name", "scopes", "rate_limit",
		"created_at", "created_by", "expires_at", "disabled", "revoked", "revoked_at", "version", "position", "quota_limit", "quota_refill",
	}, pgx.CopyFromSlice(len(created), func(i int) ([]any, error) {
		e := created[i]
		return []any{
			[16]byte(e.ID), string(e.Organization), e.Digest[:], e.Prefix, e.Name, e.Scopes.Strings(), int32(e.RateLimit),
			e.CreatedAt, string(e.CreatedBy), orNull(&e.ExpiresAt), e.Disabled, e.Revoked, orNull(&e.RevokedAt), int64(e.Version), int64(e.Position), int64(e.Quota.Limit), string(e.Quota.Refill),
		}, nil
	}))
	return eventstore.Wrap(err, "copy %d keys into %s", len(created), p.table)
}

func orNull(t *time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return t
}
