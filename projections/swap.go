package projections

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"keyledger/domain"
	"keyledger/eventstore"
)

// How often a swap is tried that readers do not let through, and what is left to
// them between two tries. Whoever loads the whole table may take a minute.
const (
	mostSwaps  = 100
	swapRecess = time.Second
)

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
		if pause(ctx, swapRecess) != nil {
			break
		}
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
	if _, err := tx.Exec(ctx, `SET LOCAL lock_timeout = '300ms'; SET LOCAL idle_in_transaction_session_timeout = '2s'`); err != nil {
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

	// 5. The states of the rebuilt fold are those of the live one from now on.
	name := r.Projection.Name()
	_, err = tx.Exec(ctx, `DELETE FROM projection_states WHERE name = $1`, name)
	if err == nil {
		_, err = tx.Exec(ctx, `UPDATE projection_states SET name = $1 WHERE name = $2`, name, name+shadowSuffix)
	}
	if err != nil {
		return eventstore.Wrap(err, "take over the states of %s", name)
	}

	// 6. The checkpoint last. From the commit on, drivers go on from here.
	tag, err := tx.Exec(ctx, `
UPDATE projection_checkpoints l
   SET ledger_id = s.ledger_id, epoch = s.epoch, position = s.position, state = s.state, updated_at = now()
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
