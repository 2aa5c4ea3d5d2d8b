package projections

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// makeBeside makes an empty table like another one, with its primary key and no
// other index.
func makeBeside(ctx context.Context, conn *pgx.Conn, table string) error {
	// LIKE copies columns, defaults and checks, but not the table's storage parameters. The
	// primary key is how the fold finds its rows; the rest is made when they are all there.
	return run(ctx, conn, `
SELECT 1, format('CREATE TABLE %I (LIKE %I INCLUDING ALL EXCLUDING INDEXES) %s', $2::text, $1::text,
              'WITH (' || array_to_string(c.reloptions, ', ') || ')')
  FROM pg_class c WHERE c.oid = ($1::text)::regclass
UNION ALL
SELECT 2, format('ALTER TABLE %I ADD CONSTRAINT %I %s', $2::text, replace(k.conname, $1::text, $2::text), pg_get_constraintdef(k.oid))
  FROM pg_constraint k WHERE k.conrelid = ($1::text)::regclass AND k.contype = 'p'`, table)
}

// finish makes the indexes, and tells the planner about the new table before
// anybody reads it.
func finish(ctx context.Context, conn *pgx.Conn, table string) error {
	return run(ctx, conn, `
SELECT 1, format('CREATE %s INDEX %I ON %I %s', CASE WHEN i.indisunique THEN 'UNIQUE' END, replace(c.relname, $1::text, $2::text), $2::text,
              substring(pg_get_indexdef(c.oid) FROM 'USING .*'))
  FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
 WHERE i.indrelid = ($1::text)::regclass AND NOT i.indisprimary
UNION ALL
SELECT 2, format('ANALYZE %I', $2::text)`, table)
}

// replace drops a table and gives its name, its indexes' names, its owner and its
// rights to the one beside it.
func replace(ctx context.Context, tx pgx.Tx, table string) error {
	return run(ctx, tx.Conn(), `
SELECT 1, format('ALTER TABLE %I OWNER TO %I', $2::text, pg_get_userbyid(c.relowner))
  FROM pg_class c WHERE c.oid = ($1::text)::regclass
UNION ALL
SELECT 2, format('GRANT %s ON %I TO %s%s', a.privilege_type, $2::text,
              CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END,
              CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' END)
  FROM pg_class c, aclexplode(c.relacl) a WHERE c.oid = ($1::text)::regclass AND a.grantee <> c.relowner
UNION ALL
SELECT 3, format('DROP TABLE %I', $1::text)
UNION ALL
SELECT 4, format('ALTER TABLE %I RENAME TO %I', $2::text, $1::text)
UNION ALL
SELECT 5, format('ALTER INDEX %I RENAME TO %I', c.relname, replace(c.relname, $2::text, $1::text))
  FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid WHERE i.indrelid = ($2::text)::regclass`, table)
}

// run executes the statements that a query about a table and the one beside it
// gives, in the order of the numbers before them.
func run(ctx context.Context, conn *pgx.Conn, query, table string) error {
	rows, err := conn.Query(ctx, `SELECT s.statement FROM (`+query+`) AS s (step, statement) ORDER BY s.step`, table, table+shadowSuffix)
	if err != nil {
		return err
	}
	statements, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	for _, statement := range statements {
		if _, err := conn.Exec(ctx, statement); err != nil {
			return fmt.Errorf("%s: %w", statement, err)
		}
	}
	return nil
}
