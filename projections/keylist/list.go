package keylist

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"keyledger/domain"
	"keyledger/eventstore"
	"keyledger/projections"
)

// Driver brings the projection up to a position. *projections.Follower is one.
type Driver interface {
	CatchUp(context.Context, domain.Position) error
}

// List answers from the table, as of the log's head.
type List struct {
	pool   *pgxpool.Pool
	driver Driver
}

// NewList makes a list that is read from pool and that driver keeps up.
func NewList(pool *pgxpool.Pool, driver Driver) *List {
	return &List{pool: pool, driver: driver}
}

// List gives one page of an organization's keys, newest first.
func (l *List) List(ctx context.Context, q domain.KeyQuery) ([]domain.KeyView, error) {
	var most *int
	if q.Most > 0 {
		most = &q.Most
	}
	if q.Before.IsZero() {
		views, _, err := l.fresh(ctx, q.AtLeast, firstPage, q.Organization, most)
		return views, err
	}
	views, known, err := l.fresh(ctx, q.AtLeast, nextPage, q.Organization, most, q.Before.UUID())
	if err == nil && !known {
		return nil, domain.Invalid("cursor", "names no key of this organization")
	}
	return views, err
}

// Get gives one key of an organization.
func (l *List) Get(ctx context.Context, organization domain.OrganizationID, id domain.KeyID, atLeast domain.Position) (domain.KeyView, error) {
	views, _, err := l.fresh(ctx, atLeast, oneKey, organization, nil, id.UUID())
	if err != nil {
		return domain.KeyView{}, err
	}
	if len(views) == 0 {
		return domain.KeyView{}, domain.Errorf(domain.CodeNotFound, "no such key")
	}
	return views[0], nil
}

// Used gives how often a key was accepted and when it was used last, as far as it is known: nobody
// catches up for it. A key without uses, or none, has zeros.
func (l *List) Used(ctx context.Context, id domain.KeyID) (uses uint64, last time.Time, err error) {
	var accepted int64
	var at pgtype.Timestamptz
	err = l.pool.QueryRow(ctx, `SELECT accepted, last_used_at FROM usage_keys WHERE key_id = $1`, [16]byte(id)).Scan(&accepted, &at)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return 0, last, nil
	case err != nil:
		return 0, last, eventstore.Wrap(err, "read the uses of a key")
	}
	if at.Valid {
		last = at.Time.UTC()
	}
	return uint64(accepted), last, nil
}

// The queries read head, checkpoint and keys in one statement, so in one
// snapshot. $1 is the position that the checkpoint must have reached, or null for the
// head's: while it has not, there are no keys, and the reader has to catch up.
const (
	statusBefore = `
SELECT h.ledger_id, h.epoch, h.position, c.ledger_id, c.epoch, c.position, `
	statusAfter = `,
       ` + columns + `, k.accepted, k.last_used_at
  FROM log_head h
  JOIN projection_checkpoints c ON c.name = '` + Name + `'
  LEFT JOIN LATERAL (
       SELECT k.*, u.accepted, u.last_used_at
         FROM ` + Name + ` k
         LEFT JOIN usage_keys u ON u.key_id = k.key_id
        WHERE c.position >= coalesce($1, h.position) AND k.organization = $2`
	order = `
        ORDER BY k.created_at DESC, k.key_id DESC
        LIMIT $3`
	statusEnd = `) k ON true
 WHERE h.lane = 'lifecycle'
 ORDER BY k.created_at DESC, k.key_id DESC`

	firstPage = statusBefore + `true` + statusAfter + order + statusEnd

	nextPage = statusBefore + `EXISTS (SELECT FROM ` + Name + ` b WHERE b.key_id = $4::uuid AND b.organization = $2)` + statusAfter + `
          AND (k.created_at, k.key_id) < ((SELECT b.created_at FROM ` + Name + ` b WHERE b.key_id = $4::uuid AND b.organization = $2), $4::uuid)` +
		order + statusEnd

	oneKey = statusBefore + `true` + statusAfter + ` AND k.key_id = $4::uuid LIMIT $3` + statusEnd
)

// mostCatchUps bounds how often a reader drives the projection: once is enough
// unless the database was replaced underneath.
const mostCatchUps = 3

// fresh runs a query until its answer is as new as the log's head was when it
// was called, and at least at a given position. When nobody is behind, that is
// one round trip.
func (l *List) fresh(ctx context.Context, atLeast domain.Position, query string, args ...any) (views []domain.KeyView, known bool, err error) {
	var need *int64
	for range mostCatchUps + 1 {
		views, known, head, at, err := l.query(ctx, query, append([]any{pgx.QueryExecModeCacheDescribe, need}, args...))
		if err != nil {
			return nil, false, err
		}
		if err := at.Fits(head); err != nil {
			return nil, false, domain.Unavailable(fmt.Errorf("list keys: %w", err))
		}
		if head.Position < atLeast {
			return nil, false, domain.Errorf(domain.CodeStale, "the ledger has not reached this position")
		}
		if need == nil {
			// The head as it was when the request arrived is enough: it need not be
			// run after while others write.
			p := int64(head.Position)
			need = &p
		}
		if at.Position >= domain.Position(*need) {
			return views, known, nil
		}
		if err := l.driver.CatchUp(ctx, domain.Position(*need)); err != nil {
			return nil, false, fmt.Errorf("bring the list up to position %d: %w", *need, err)
		}
	}
	return nil, false, domain.Unavailable(errors.New("the list does not come up to the log's head"))
}

func (l *List) query(ctx context.Context, query string, args []any) (views []domain.KeyView, known bool, head eventstore.Head, at projections.Checkpoint, err error) {
	rows, err := l.pool.Query(ctx, query, args...)
	if err != nil {
		return nil, false, head, at, eventstore.Wrap(err, "list keys")
	}
	defer rows.Close()
	var r row
	var ledger, ledgerAt [16]byte
	var epoch, position, epochAt, positionAt int64
	var accepted pgtype.Int8
	var lastUsed pgtype.Timestamptz
	targets := append(append([]any{&ledger, &epoch, &position, &ledgerAt, &epochAt, &positionAt, &known}, r.targets()...), &accepted, &lastUsed)
	views = []domain.KeyView{}
	for rows.Next() {
		if err := rows.Scan(targets...); err != nil {
			return nil, false, head, at, eventstore.Wrap(err, "list keys")
		}
		if !r.id.Valid {
			continue
		}
		view := domain.KeyView{Key: r.entry().Key, Uses: uint64(accepted.Int64)}
		if lastUsed.Valid {
			view.LastUsedAt = lastUsed.Time.UTC()
		}
		views = append(views, view)
	}
	head = eventstore.Head(projections.NewCheckpoint(ledger, epoch, position))
	return views, known, head, projections.NewCheckpoint(ledgerAt, epochAt, positionAt), eventstore.Wrap(rows.Err(), "list keys")
}
