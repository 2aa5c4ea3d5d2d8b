package audit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"time"

	"github.com/jackc/pgx/v5"

	"keyledger/domain"
	"keyledger/eventstore"
)

// partSize is that of ensure_usage_parts (migrations/0001_log.sql).
const partSize = 16_777_216

// Import loads a whole exported ledger into an empty one, under the same
// positions, in one transaction. The connection must be the owner's. Verify the
// file first: what is loaded is taken as it is.
func Import(ctx context.Context, conn *pgx.Conn, file io.Reader, progress func(domain.Lane, domain.Position, domain.Position)) (err error) {
	e, err := openExport(file)
	if err != nil {
		return err
	}
	defer e.close()
	ledger, err := e.whole()
	if err != nil {
		return err
	}
	tx, err := conn.Begin(ctx)
	if err != nil {
		return eventstore.Wrap(err, "begin the import")
	}
	defer tx.Rollback(context.WithoutCancel(ctx)) //nolint:errcheck // after a commit there is nothing to roll back

	// 1. The head's locks keep every appender away; behind them the log must be empty.
	var events int64
	err = tx.QueryRow(ctx, `WITH heads AS (SELECT position FROM log_head ORDER BY lane FOR UPDATE)
		SELECT (SELECT sum(position) FROM heads)::bigint + (SELECT count(*) FROM (SELECT FROM events LIMIT 1) AS one)`).Scan(&events)
	if err != nil {
		return eventstore.Wrap(err, "look whether the ledger is empty")
	}
	if events > 0 {
		return domain.Errorf(domain.CodeUnprocessable, "the ledger has events of its own: import into an empty one")
	}
	// 2. The events, each lane in its partitions.
	last := map[domain.Lane]time.Time{}
	for _, part := range e.header.Lanes {
		for after := uint64(0); part.Lane == domain.Usage && after <= uint64(part.To); after += partSize {
			if _, err := tx.Exec(ctx, `UPDATE log_head SET position = $1 WHERE lane = 'usage'`, int64(after)); err != nil {
				return eventstore.Wrap(err, "make partitions")
			}
			if _, err := tx.Exec(ctx, `SELECT ensure_usage_parts()`); err != nil {
				return eventstore.Wrap(err, "make partitions")
			}
		}
		last[part.Lane] = time.Unix(0, 0)
		source := &importSource{exported: e, part: part, progress: progress}
		if source.advance, source.stop = iter.Pull2(source.rows()); true {
			defer source.stop()
		}
		n, err := tx.CopyFrom(ctx, pgx.Identifier{"events"}, []string{
			"lane", "position", "epoch", "id", "stream", "version", "organization", "type", "schema", "recorded_at", "data", "metadata", "sealed",
		}, source)
		if err != nil {
			return eventstore.Wrap(err, "load %s", part.Lane)
		}
		if n != int64(part.To) {
			return fmt.Errorf("the file has %d events of %s, and says that there are %d", n, part.Lane, part.To)
		}
		if n > 0 {
			last[part.Lane] = source.last
		}
	}
	// 3. What says which ledger this is, and what opens its personal fields.
	if err := e.identify(ctx, tx, ledger, last); err != nil {
		return err
	}
	return eventstore.Wrap(tx.Commit(ctx), "end the import")
}

// whole says whether the file is a whole ledger.
func (e *exported) whole() (domain.ID, error) {
	ledger, err := domain.ParseID(e.header.Ledger)
	if err != nil {
		return ledger, fmt.Errorf("the file names no ledger: %w", err)
	}
	lanes := map[domain.Lane]bool{}
	for _, part := range e.header.Lanes {
		lanes[part.Lane] = part.From == 1
	}
	switch {
	case e.header.Filtered, !lanes[domain.Lifecycle], !lanes[domain.Usage]:
		return ledger, domain.Errorf(domain.CodeUnprocessable, "the file is a part of a ledger: only a whole one can be imported")
	case len(e.header.DataKeys) == 0:
		return ledger, domain.Errorf(domain.CodeUnprocessable, "the file has no data keys, so that nobody could read its personal fields: export with --data-keys")
	}
	return ledger, nil
}

func (e *exported) identify(ctx context.Context, tx pgx.Tx, ledger domain.ID, last map[domain.Lane]time.Time) error {
	batch := &pgx.Batch{}
	for _, part := range e.header.Lanes {
		batch.Queue(`UPDATE log_head SET position = $1, ledger_id = $2, epoch = $3, recorded_at = $4 WHERE lane = $5`,
			int64(part.To), [16]byte(ledger), int64(e.header.Epoch), last[part.Lane], string(part.Lane))
	}
	for _, sql := range []string{
		`DELETE FROM log_epochs`, `DELETE FROM data_keys`, `DELETE FROM commands`, `DELETE FROM log_checkpoints`, `DELETE FROM log_tiles`,
		`UPDATE log_trees SET ledger_id = '00000000-0000-0000-0000-000000000000', epoch = 0, size = 0, root = sha256('')`,
	} {
		batch.Queue(sql)
	}
	for _, p := range e.header.Epochs {
		batch.Queue(`INSERT INTO log_epochs (epoch, lane, after, begun_at, reason) VALUES ($1, $2, $3, $4, $5)`, p.Epoch, string(p.Lane), p.After, p.BegunAt, p.Reason)
	}
	for _, k := range e.header.DataKeys {
		batch.Queue(`INSERT INTO data_keys (organization, number, wrapped, created_at) VALUES ($1, $2, $3, $4)`, string(k.Organization), k.Number, k.Wrapped, k.CreatedAt)
	}
	// Last, what the log says of erasures: a data key of before an erasure does not come along.
	batch.Queue(`INSERT INTO erased_organizations (organization, position, erased_at)
		SELECT organization, position, recorded_at FROM events WHERE lane = 'lifecycle' AND type = 'OrganizationErased' ORDER BY position`)
	batch.Queue(`DELETE FROM data_keys k USING erased_organizations e WHERE e.organization = k.organization`)
	return eventstore.Wrap(tx.SendBatch(ctx, batch).Close(), "name the imported ledger")
}

// importSource hands the rows of a lane to COPY.
type importSource struct {
	*exported
	part     exportRange
	progress func(domain.Lane, domain.Position, domain.Position)
	advance  func() (row, error, bool)
	stop     func()
	current  row
	err      error
	last     time.Time
}

var errStopped = errors.New("the load was stopped")

func (s *importSource) rows() iter.Seq2[row, error] {
	return func(yield func(row, error) bool) {
		err := s.lane(s.part.Lane, func(p piece) error {
			rows, err := p.rows(nil)
			if err != nil {
				return err
			}
			for _, r := range rows {
				if r.damage != "" || r.left {
					return fmt.Errorf("the file has no event %s %d", s.part.Lane, r.position)
				}
				if !yield(r, nil) {
					return errStopped
				}
			}
			return nil
		})
		if err != nil && !errors.Is(err, errStopped) {
			yield(row{}, err)
		}
	}
}

func (s *importSource) Next() bool {
	var ok bool
	s.current, s.err, ok = s.advance()
	if ok && s.err == nil && s.progress != nil && s.current.position%pageSize == 0 {
		s.progress(s.part.Lane, domain.Position(s.current.position), s.part.To)
	}
	return ok && s.err == nil
}

func (s *importSource) Err() error { return s.err }

func (s *importSource) Values() ([]any, error) {
	r := s.current
	s.last = time.UnixMicro(r.at).UTC()
	var sealed any
	if r.sealed != nil {
		sealed = r.sealed
	}
	return []any{
		string(s.part.Lane), int64(r.position), int32(r.epoch), r.id, string(r.stream), int64(r.version), string(r.organization), string(r.kind),
		int16(r.schema), s.last, r.data, r.metadata, sealed,
	}, nil
}
