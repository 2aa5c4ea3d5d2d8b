package projections

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"keyledger/domain"
	"keyledger/eventstore"
)

// Comparison tells what stood there before from what was folded now, at one position.
type Comparison struct {
	Skipped  string // why nothing was compared; empty when it was
	Position domain.Position
	Tables   []TableComparison
	// Diverged is the first of the kept positions at which the live fold had another state
	// than the rebuilt one: it went wrong within the thousand events before. 0: at none.
	Diverged domain.Position
	States   uint64 // how many were compared
}

// TableComparison is the comparison of one table.
type TableComparison struct {
	Table       string
	Rows        uint64   // of the rebuilt table
	OnlyLive    uint64   // rows that the log does not explain
	OnlyRebuilt uint64   // rows that were missing
	Different   uint64   // rows that say something else
	Keys        []string // the first of each of these kinds
}

// Equal says whether both states were compared and are the same, row by row, and were at
// every kept position.
func (c Comparison) Equal() bool {
	for _, t := range c.Tables {
		if t.OnlyLive+t.OnlyRebuilt+t.Different > 0 {
			return false
		}
	}
	return c.Skipped == "" && c.Diverged == 0
}

// mostKeys is how many keys a comparison names of each kind of difference.
const mostKeys = 5

// compare holds the live tables against the rebuilt ones.
//
// One snapshot shows the live checkpoint and the live rows that belong to it, and
// goes on showing them while others write. The fold goes on inside the same
// transaction to exactly that checkpoint, and the transaction sees its own rows.
func (r *rebuild) compare(ctx context.Context) (Comparison, error) {
	tx, err := r.conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	if err != nil {
		return Comparison{}, eventstore.Wrap(err, "begin the comparison")
	}
	defer tx.Rollback(context.WithoutCancel(ctx)) //nolint:errcheck // after a commit there is nothing to roll back
	if _, err := tx.Exec(ctx, `SET LOCAL work_mem = '128MB'`); err != nil {
		return Comparison{}, eventstore.Wrap(err, "begin the comparison")
	}
	live, err := ReadCheckpoint(ctx, tx, r.Projection.Name())
	if err != nil {
		return Comparison{}, err
	}
	if err := r.fold(ctx, r.Projection.Beside(tx, shadowSuffix), live.Position); err != nil {
		return Comparison{}, err
	}
	c := Comparison{Position: live.Position}
	for _, t := range r.Projection.Tables() {
		table, err := compareTable(ctx, tx, t)
		if err != nil {
			return Comparison{}, eventstore.Wrap(err, "compare %s", t.Name)
		}
		c.Tables = append(c.Tables, table)
	}
	if c.Diverged, c.States, err = compareStates(ctx, tx, r.Projection.Name(), r.Projection.Name()+shadowSuffix); err != nil {
		return Comparison{}, err
	}
	return c, eventstore.Wrap(tx.Commit(ctx), "end the comparison")
}

func compareTable(ctx context.Context, db DB, t Table) (TableComparison, error) {
	c := TableComparison{Table: t.Name}
	if err := db.QueryRow(ctx, `SELECT count(*) FROM `+t.Name+shadowSuffix).Scan(&c.Rows); err != nil {
		return c, err
	}
	key := strings.Join(t.Key, ", ")
	rows, err := db.Query(ctx, fmt.Sprintf(`
SELECT d.kind, count(*), array_agg(d.key ORDER BY d.key) FILTER (WHERE d.n <= $1)
  FROM (SELECT k.kind, k.key, row_number() OVER (PARTITION BY k.kind ORDER BY k.key) AS n
          FROM (SELECT CASE WHEN s.%[2]s IS NULL THEN 'live' WHEN l.%[2]s IS NULL THEN 'rebuilt' ELSE 'different' END AS kind,
                       concat_ws(' ', %[1]s) AS key
                  FROM %[3]s l
                  FULL JOIN %[4]s s USING (%[1]s)
                 WHERE ROW(l.*) IS DISTINCT FROM ROW(s.*)) AS k) AS d
 GROUP BY d.kind
 ORDER BY d.kind`, key, t.Key[0], t.Name, t.Name+shadowSuffix), mostKeys)
	if err != nil {
		return c, err
	}
	defer rows.Close()
	for rows.Next() {
		var kind string
		var count uint64
		var keys []string
		if err := rows.Scan(&kind, &count, &keys); err != nil {
			return c, err
		}
		switch kind {
		case "live":
			c.OnlyLive = count
		case "rebuilt":
			c.OnlyRebuilt = count
		case "different":
			c.Different = count
		}
		c.Keys = append(c.Keys, keys...)
	}
	return c, rows.Err()
}
