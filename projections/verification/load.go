package verification

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"unsafe"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"keyledger/domain"
	"keyledger/eventstore"
	"keyledger/index"
)

// Load fills the index from the list of keys: everything in one read-only
// transaction with one snapshot, so that the rows, the checkpoint that they stand
// at and the end of the log belong together. What was there before is replaced when all has come, and
// not before. The index answers at once when the list was at the end of the log;
// otherwise after Apply has brought the rest.
func (p *Projection) Load(ctx context.Context, pool *pgxpool.Pool) error {
	began := p.clock()
	var l *index.Loading
	var target domain.Position
	err := pgx.BeginTxFunc(ctx, pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		// The table's lock comes before the snapshot: a snapshot that was taken while a
		// rebuild swapped the table would see the new one without its newest rows.
		_, err := tx.Exec(ctx, `LOCK TABLE keylist IN ACCESS SHARE MODE`)
		if err != nil {
			return err
		}
		if l, target, err = begin(ctx, tx); err != nil {
			return err
		}
		return copyKeys(ctx, tx, l)
	})
	if err != nil {
		return eventstore.Wrap(err, "load the verification index")
	}
	p.index.Replace(l, target, p.clock().Sub(began))
	if l.Len() > manyLoaded {
		debug.FreeOSMemory() // what the load needed beside the index
	}
	return nil
}

// begin reads where the list of keys stands, and where the log ends.
func begin(ctx context.Context, tx pgx.Tx) (l *index.Loading, target domain.Position, err error) {
	var head, list struct {
		ledger   [16]byte
		epoch    int32
		position int64
	}
	var keys int
	err = tx.QueryRow(ctx, `
		SELECT h.ledger_id, h.epoch, h.position,
		       c.ledger_id, c.epoch, c.position,
		       (SELECT count(*) FROM keylist)
		  FROM log_head h, projection_checkpoints c
		 WHERE h.lane = 'lifecycle' AND c.name = 'keylist'`).
		Scan(&head.ledger, &head.epoch, &head.position, &list.ledger, &list.epoch, &list.position, &keys)
	if err != nil {
		return nil, 0, fmt.Errorf("read the positions: %w", err)
	}
	// A list that nothing was applied to belongs to every history.
	if list.position > 0 && (list.ledger != head.ledger || list.epoch != head.epoch || list.position > head.position) {
		return nil, 0, fmt.Errorf("%w: the list of keys is at position %d of epoch %d, the log at %d of epoch %d: rebuild the list (keyledger replay)",
			index.ErrForeign, list.position, list.epoch, head.position, head.epoch)
	}
	history := index.History{Ledger: domain.ID(head.ledger), Epoch: uint32(head.epoch)}
	return index.Begin(history, domain.Position(list.position), keys), domain.Position(head.position), nil
}

const manyLoaded = 100_000

const copySQL = `COPY (
	SELECT digest, key_id, organization, name, scopes, rate_limit, expires_at, disabled, revoked, version, position, quota_limit, quota_refill
	  FROM keylist
) TO STDOUT (FORMAT binary)`

const copyFields = 13

func copyKeys(ctx context.Context, tx pgx.Tx, l *index.Loading) error {
	loader := newRowLoader(l)
	reader := &copyReader{fields: copyFields, row: loader.row}
	if _, err := tx.Conn().PgConn().CopyTo(ctx, reader, copySQL); err != nil {
		return fmt.Errorf("copy the list of keys: %w", err)
	}
	return reader.end()
}

// rowLoader turns rows of the list into keys.
type rowLoader struct {
	loading *index.Loading
	scopes  map[string]index.ScopeSet // by the bytes of the array
}

func newRowLoader(l *index.Loading) *rowLoader {
	return &rowLoader{loading: l, scopes: map[string]index.ScopeSet{}}
}

func (l *rowLoader) row(f [][]byte) error {
	var k index.Key
	limit, ok1 := copyInt32(f[5])
	expires, ok2 := copyTime(f[6])
	disabled, ok3 := copyBool(f[7])
	revoked, ok4 := copyBool(f[8])
	version, ok5 := copyInt64(f[9])
	position, ok6 := copyInt64(f[10])
	quota, ok7 := copyInt64(f[11])
	if len(f[0]) != len(k.Digest) || len(f[1]) != len(k.ID) || f[2] == nil || f[3] == nil || limit < 0 || version < 1 || quota < 0 ||
		!ok1 || !ok2 || !ok3 || !ok4 || !ok5 || !ok6 || !ok7 {
		return fmt.Errorf("%w: a row of the list of keys has another shape", errCopy)
	}
	if domain.Position(position) > l.loading.Position() {
		return errors.New("the list of keys is ahead of its own checkpoint")
	}
	if quota > 0 {
		refill, err := domain.ParseRefill(string(f[12]))
		if err != nil || uint64(quota) > domain.MostQuota {
			return fmt.Errorf("%w: a key has a quota of %d uses, refilled by %q", errCopy, quota, f[12])
		}
		k.Quota = domain.Quota{Limit: uint64(quota), Refill: refill}
	}
	copy(k.Digest[:], f[0])
	copy(k.ID[:], f[1])
	k.Limit, k.ExpiresAt, k.Version, k.Disabled, k.Revoked = uint32(limit), expires, uint64(version), disabled, revoked
	number, ok := l.scopes[string(f[4])]
	if !ok {
		var scopes domain.Scopes
		if !copyTexts(f[4], func(text []byte) { scopes = append(scopes, domain.Scope(text)) }) {
			return fmt.Errorf("%w: the scopes of key %s", errCopy, k.ID)
		}
		number = l.loading.Scopes(scopes)
		l.scopes[string(f[4])] = number
	}
	k.Scopes = number
	// Views of the row, which whatever keeps them copies.
	k.Organization, k.Name = view(f[2]), view(f[3])
	return l.loading.Add(&k)
}

// view is a string that must not outlive the bytes.
func view(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }
