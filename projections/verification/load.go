package verification

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"
	"unsafe"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"keyledger/domain"
	"keyledger/eventstore"
)

// Load fills the index from the list of keys: everything in one read-only
// transaction with one snapshot, so that the rows, the checkpoint that they stand
// at and the end of the log belong together. What was there before is replaced when all has come, and
// not before. The index answers at once when the list was at the end of the log;
// otherwise after Apply has brought the rest.
func (x *Index) Load(ctx context.Context, pool *pgxpool.Pool) error {
	began := x.clock()
	c := newContents()
	var target domain.Position
	err := pgx.BeginTxFunc(ctx, pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		// The table's lock comes before the snapshot: a snapshot that was taken while a
		// rebuild swapped the table would see the new one without its newest rows.
		_, err := tx.Exec(ctx, `LOCK TABLE keylist IN ACCESS SHARE MODE`)
		if err != nil {
			return err
		}
		if target, err = c.beginAt(ctx, tx); err != nil {
			return err
		}
		return c.copyKeys(ctx, tx)
	})
	if err != nil {
		return eventstore.Wrap(err, "load the verification index")
	}

	x.replace(c, target, x.clock().Sub(began))
	if c.count > manyLoaded {
		debug.FreeOSMemory() // what the load needed beside the index
	}
	return nil
}

// replace makes the index answer from new contents.
func (x *Index) replace(c *contents, target domain.Position, took time.Duration) {
	x.mu.Lock()
	defer x.mu.Unlock()
	// Not ready while the new contents may be behind the end of the log.
	x.until.Store(notReady)
	if old := x.contents.Swap(c); old != nil {
		x.keepFormer(old)
	}
	x.target, x.keys, x.took = target, c.len(), took
	x.reached()
	x.announce()
	x.tuneCollector()
	x.logger.Info("the verification index is loaded", "keys", x.keys, "position", x.Position(), "head", target, "took", took.Round(time.Millisecond))
	if c.shadowed > 0 {
		x.logger.Error("keys share a digest: only the one with the smallest id is found", "others", c.shadowed)
	}
}

// beginAt reads where the list of keys stands, and where the log ends.
func (c *contents) beginAt(ctx context.Context, tx pgx.Tx) (target domain.Position, err error) {
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
		return 0, fmt.Errorf("read the positions: %w", err)
	}
	// A list that nothing was applied to belongs to every history.
	if list.position > 0 && (list.ledger != head.ledger || list.epoch != head.epoch || list.position > head.position) {
		return 0, fmt.Errorf("%w: the list of keys is at position %d of epoch %d, the log at %d of epoch %d: rebuild the list (keyledger replay)",
			ErrForeign, list.position, list.epoch, head.position, head.epoch)
	}
	c.history = history{ledger: domain.ID(head.ledger), epoch: uint32(head.epoch)}
	c.position.Store(uint64(list.position))
	c.reserve(keys)
	return domain.Position(head.position), nil
}

const manyLoaded = 100_000

const copySQL = `COPY (
	SELECT digest, key_id, organization, name, scopes, rate_limit, expires_at, disabled, revoked, version, position
	  FROM keylist
) TO STDOUT (FORMAT binary)`

func (c *contents) copyKeys(ctx context.Context, tx pgx.Tx) error {
	loader := rowLoader{contents: c, scopes: map[string]uint32{}}
	reader := &copyReader{fields: 11, row: loader.row}
	if _, err := tx.Conn().PgConn().CopyTo(ctx, reader, copySQL); err != nil {
		return fmt.Errorf("copy the list of keys: %w", err)
	}
	return reader.end()
}

// rowLoader turns rows of the list into keys.
type rowLoader struct {
	contents *contents
	scopes   map[string]uint32 // by the bytes of the array
}

func (l *rowLoader) row(f [][]byte) error {
	var k key
	limit, ok1 := copyInt32(f[5])
	expires, ok2 := copyTime(f[6])
	disabled, ok3 := copyBool(f[7])
	revoked, ok4 := copyBool(f[8])
	version, ok5 := copyInt64(f[9])
	position, ok6 := copyInt64(f[10])
	if len(f[0]) != len(k.digest) || len(f[1]) != len(k.id) || f[2] == nil || f[3] == nil || limit < 0 || version < 1 ||
		!ok1 || !ok2 || !ok3 || !ok4 || !ok5 || !ok6 {
		return fmt.Errorf("%w: a row of the list of keys has another shape", errCopy)
	}
	if uint64(position) > l.contents.position.Load() {
		return errors.New("the list of keys is ahead of its own checkpoint")
	}
	copy(k.digest[:], f[0])
	copy(k.id[:], f[1])
	k.limit, k.expires, k.version = uint32(limit), instant(expires), uint64(version)
	if disabled {
		k.flags |= flagDisabled
	}
	if revoked {
		k.flags |= flagRevoked
	}
	number, ok := l.scopes[string(f[4])]
	if !ok {
		var scopes domain.Scopes
		if !copyTexts(f[4], func(text []byte) { scopes = append(scopes, domain.Scope(text)) }) {
			return fmt.Errorf("%w: the scopes of key %s", errCopy, k.id)
		}
		number = l.contents.profiles.scopes.intern(scopes)
		l.scopes[string(f[4])] = number
	}
	k.scopes = number
	// Views of the row, which whatever keeps them copies.
	k.organization, k.name = view(f[2]), view(f[3])
	return l.contents.add(&k)
}

// view is a string that must not outlive the bytes.
func view(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }
