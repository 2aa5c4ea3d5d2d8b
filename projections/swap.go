package projections

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"keyledger/domain"
	"keyledger/eventstore"
)

// mostSwaps bounds how often a swap is tried that readers would not let through.
const mostSwaps = 20

// swap puts the rebuilt tables in the place of the live ones.
func (r *rebuild) swap(ctx context.Context) error {
	var err error
	for range mostSwaps {
		before := r.at
		if err = r.trySwap(ctx); domain.CodeOf(err) != domain.CodeUnavailable || r.conn.IsClosed() {
			break
		}
		r.at = before // what the transaction had folded is undone
		r.Logger.Info("the swap waits for readers", "projection", r.Projection.Name(), "error", err)
	}
	return err
}

// trySwap does it in one transaction, in which the order matters.
func (r *rebuild) trySwap(ctx context.Context) error {
	tx, err := r.conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.ReadCommitted})
	if err != nil {
		return eventstore.Wrap(err, "begin the swap")
	}
	defer tx.Rollback(context.WithoutCancel(ctx)) //nolint:errcheck // after a commit there is nothing to roll back

	// 1. Nobody waits long for this transaction: it gives up when it does not get its
	// locks, since readers queue up behind it; and should this process be paused
	// in the middle, the server ends it.
	if _, err := tx.Exec(ctx, `SET LOCAL lock_timeout = '1s'; SET LOCAL idle_in_transaction_session_timeout = '2s'`); err != nil {
		return eventstore.Wrap(err, "begin the swap")
	}

	// 2. The tables first, the checkpoint after them: a driver's statement takes its
	// locks in this order, too. Once they are held, no driver is at work.
	var names []string
	for _, t := range r.Projection.Tables() {
		names = append(names, t.Name)
	}
	if _, err := tx.Exec(ctx, `LOCK TABLE `+strings.Join(names, ", ")+` IN ACCESS EXCLUSIVE MODE`); err != nil {
		return eventstore.Wrap(err, "lock the tables")
	}

	// 3. What the live projection has shown must not disappear: the rebuilt state
	// goes at least as far. Where it belongs to another history, it has shown nothing
	// that is still true.
	live, err := ReadCheckpoint(ctx, tx, r.Projection.Name())
	if err != nil {
		return err
	}
	if r.comparable {
		if err := r.fold(ctx, r.Projection.Beside(tx, shadowSuffix), live.Position); err != nil {
			return err
		}
	}

	// 4. The new tables under the old names, with the old owner and rights.
	for _, t := range r.Projection.Tables() {
		if err := replace(ctx, tx, t.Name); err != nil {
			return eventstore.Wrap(err, "replace %s", t.Name)
		}
	}

	// 5. The checkpoint last. From the commit on, drivers go on from here.
	tag, err := tx.Exec(ctx, `
UPDATE projection_checkpoints l
   SET ledger_id = s.ledger_id, epoch = s.epoch, position = s.position, updated_at = now()
  FROM projection_checkpoints s
 WHERE l.name = $1 AND s.name = $2`, r.Projection.Name(), r.Projection.Name()+shadowSuffix)
	if err == nil && tag.RowsAffected() != 1 {
		err = errors.New("the checkpoint is gone")
	}
	if err != nil {
		return eventstore.Wrap(err, "move the checkpoint of %s", r.Projection.Name())
	}
	return eventstore.Wrap(tx.Commit(ctx), "swap %s", r.Projection.Name())
}

// replace drops a table and gives its name, its indexes' names, its owner and its
// rights to the one beside it.
func replace(ctx context.Context, tx pgx.Tx, table string) error {
	shadow := table + shadowSuffix
	statements, err := texts(ctx, tx, `
SELECT format('ALTER TABLE %I OWNER TO %I', $2::text, pg_get_userbyid(relowner)) FROM pg_class WHERE oid = $1::regclass
UNION ALL
SELECT format('GRANT %s ON %I TO %s%s', a.privilege_type, $2::text,
              CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END,
              CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
  FROM pg_class c, aclexplode(c.relacl) a WHERE c.oid = $1::regclass AND a.grantee <> c.relowner`, table, shadow)
	if err != nil {
		return err
	}
	renames, err := texts(ctx, tx, `
SELECT format('ALTER INDEX %I RENAME TO %I', c.relname, replace(c.relname, $2, $1))
  FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid WHERE i.indrelid = ($2::text)::regclass`, table, shadow)
	if err != nil {
		return err
	}
	statements = append(statements, fmt.Sprintf(`DROP TABLE %s`, table), fmt.Sprintf(`ALTER TABLE %s RENAME TO %s`, shadow, table))
	for _, statement := range append(statements, renames...) {
		if _, err := tx.Exec(ctx, statement); err != nil {
			return fmt.Errorf("%s: %w", statement, err)
		}
	}
	return nil
}

// analyze tells the planner about the new tables before anybody reads them.
func (r *rebuild) analyze(ctx context.Context) error {
	for _, t := range r.Projection.Tables() {
		if _, err := r.conn.Exec(ctx, `ANALYZE `+t.Name+shadowSuffix); err != nil {
			return eventstore.Wrap(err, "analyze the table beside %s", t.Name)
		}
	}
	return nil
}

func texts(ctx context.Context, db DB, query, table, shadow string) ([]string, error) {
	rows, err := db.Query(ctx, query, table, shadow)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}
