package projections

import (
	"context"

	"github.com/jackc/pgx/v5"

	"keyledger/domain"
	"keyledger/eventstore"
)

// DB is where a projection's tables are: a pool, a connection or a transaction.
type DB interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
	CopyFrom(ctx context.Context, table pgx.Identifier, columns []string, rows pgx.CopyFromSource) (int64, error)
}

// Move moves a projection's checkpoint and writes its effects, in one statement:
// all of it happens, or nothing does because the checkpoint was not at from. It
// says which.
//
// The effects are common table expressions, each with a comma before it. They
// write only WHERE EXISTS (SELECT FROM moved), and number their arguments from $8.
//
// Two drivers at once: the second waits for the first one's lock on the checkpoint,
// then sees that it has moved, and touches no other row.
//
// The statement travels as one message of the simple protocol. The server begins when it has all
// of it and commits when it is done, whatever becomes of the client. In the
// extended protocol the commit waits for a Sync of its own: a client that is
// stopped between the two would hold the lock until somebody continues it, and
// no timeout of the server covers that moment. It also means a fresh plan each
// time, for the tables as large as they are.
//
// The commit does not wait for the disk: a crash of the database takes back the
// newest moves, checkpoint and effects together, and they are made again from the log,
// which did wait.
//
// The state moves along with what change says was added to it.
//
// The log's head is compared too, so that no checkpoint can run ahead of the log
// or into another epoch, not even with events that were read before a restore.
func Move(ctx context.Context, db DB, projection Projection, from, to Checkpoint, change Change, effects string, args ...any) (bool, error) {
	all := append([]any{
		pgx.QueryExecModeSimpleProtocol,
		projection.Name(), from.Ledger.UUID(), int64(from.Epoch), int64(from.Position),
		to.Ledger.UUID(), int64(to.Epoch), int64(to.Position),
	}, args...)
	change.Through(to.Position)
	assignment, marks, more := change.effects(len(all) - 1)
	all = append(all, more...)
	var moved bool
	if err := db.QueryRow(ctx, `WITH moved AS (`+moveBefore+assignment+moveAfter+`)`+effects+marks+` SELECT EXISTS (SELECT FROM moved), set_config('synchronous_commit', 'off', true)`, all...).Scan(&moved, nil); err != nil {
		return false, eventstore.Wrap(err, "apply %s up to position %d", projection.Name(), to.Position)
	}
	return moved, nil
}

const moveBefore = `
UPDATE projection_checkpoints c
   SET ledger_id = $5, epoch = $6, position = $7, updated_at = now()`

const moveAfter = `
 WHERE c.name = $1 AND c.ledger_id = $2 AND c.epoch = $3 AND c.position = $4
   AND EXISTS (SELECT FROM log_head h WHERE h.lane = c.lane AND h.ledger_id = $5 AND h.epoch = $6 AND h.position >= $7)
RETURNING c.name, c.state`

// ReadCheckpoint gives the checkpoint of the projection of that name.
func ReadCheckpoint(ctx context.Context, db DB, name string) (Checkpoint, error) {
	var ledger [16]byte
	var epoch, position int64
	err := db.QueryRow(ctx, `SELECT ledger_id, epoch, position FROM projection_checkpoints WHERE name = $1`, name).
		Scan(&ledger, &epoch, &position)
	if err != nil {
		return Checkpoint{}, eventstore.Wrap(err, "read the checkpoint of %s", name)
	}
	return NewCheckpoint(ledger, epoch, position), nil
}

// NewCheckpoint makes a checkpoint of the columns that say it.
func NewCheckpoint(ledger [16]byte, epoch, position int64) Checkpoint {
	return Checkpoint{Ledger: domain.ID(ledger), Epoch: uint32(epoch), Position: domain.Position(position)}
}
