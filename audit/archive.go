package audit

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/mod/sumdb/tlog"

	"keyledger/domain"
	"keyledger/eventstore"
)

// An archive is an exported file (file.go) of a range of the usage lane that the
// database does not hold any more. The tree over the lane stays, so the file is held
// against it, event by event, and there is no way to exchange one.

// Part is a part of the usage lane in the database.
type Part struct {
	Table       string
	First, Last domain.Position // both are in it
}

const partsSQL = `SELECT p.relname, substring(pg_get_expr(p.relpartbound, p.oid) FROM 'FROM \(''?(\d+)''?\)')::bigint,
	substring(pg_get_expr(p.relpartbound, p.oid) FROM 'TO \(''?(\d+)''?\)')::bigint
	FROM pg_inherits i JOIN pg_class p ON p.oid = i.inhrelid WHERE i.inhparent = 'events_usage'::regclass ORDER BY 2`

type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// Parts lists the parts of the usage lane, oldest first.
func Parts(ctx context.Context, db querier) ([]Part, error) {
	rows, err := db.Query(ctx, partsSQL)
	if err != nil {
		return nil, eventstore.Wrap(err, "read the parts of usage")
	}
	defer rows.Close()
	var parts []Part
	for rows.Next() {
		var p Part
		var from, to int64
		if err := rows.Scan(&p.Table, &from, &to); err != nil {
			return nil, eventstore.Wrap(err, "read the parts of usage")
		}
		p.First, p.Last = domain.Position(max(from, 1)), domain.Position(to-1)
		parts = append(parts, p)
	}
	return parts, eventstore.Wrap(rows.Err(), "read the parts of usage")
}

// Detached gives the last position of the usage lane that the database does not hold
// any more, 0 when it holds all.
func Detached(ctx context.Context, db querier) (domain.Position, error) {
	parts, err := Parts(ctx, db)
	if err != nil || len(parts) == 0 {
		return 0, err
	}
	return parts[0].First - 1, nil
}

// Detachable gives the oldest parts that end before a position. They are full: the one
// that is written to is never among them.
func Detachable(ctx context.Context, db querier, head, before domain.Position) ([]Part, error) {
	parts, err := Parts(ctx, db)
	if err != nil {
		return nil, err
	}
	n := 0
	for n < len(parts) && parts[n].Last < before && parts[n].Last < head {
		n++
	}
	return parts[:n], nil
}

// DetachOptions say what is detached, and from where.
type DetachOptions struct {
	Admin *pgx.Conn // the owner's
	Parts []Part    // the oldest ones, without a gap
	Path  string    // of the archive, which holds all of them
	Options
}

// Detach verifies an archive and takes the parts that it holds out of the
// database. The order is the point of it: nothing is dropped before the file was
// read back, its tree was led to a signed checkpoint, and both ends were compared with
// the parts.
func Detach(ctx context.Context, o DetachOptions) error {
	first, last := o.Parts[0].First, o.Parts[len(o.Parts)-1].Last
	if len(o.Keys) == 0 {
		return domain.Errorf(domain.CodeUnprocessable, "the archive cannot be verified without the public key of checkpoints")
	}
	file, err := os.Open(o.Path)
	if err != nil {
		return fmt.Errorf("read the archive back: %w", err)
	}
	defer file.Close() //nolint:errcheck // nothing was written
	report, err := VerifyFile(ctx, file, o.Options)
	if err != nil {
		return err
	}
	if !report.OK || len(report.Skipped) > 0 {
		return fmt.Errorf("the archive is not what was signed, and nothing was detached: %v %v", report.Faults, report.Skipped)
	}
	sum := sha256.New()
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("read the archive back: %w", err)
	}
	if _, err := io.Copy(sum, file); err != nil {
		return fmt.Errorf("read the archive back: %w", err)
	}
	a, err := openArchive(o.Path)
	if err != nil {
		return err
	}
	a.close()
	if a.ledger.UUID() != report.Ledger || a.part.From != first || a.part.To != last {
		return fmt.Errorf("the archive holds positions %d to %d, and the parts %d to %d", a.part.From, a.part.To, first, last)
	}
	for try := 0; ; try++ {
		err := o.drop(ctx, first, last, sum.Sum(nil))
		if err == nil || domain.CodeOf(err) != domain.CodeUnavailable || try == mostDrops {
			return err
		}
		select {
		case <-time.After(dropRecess):
		case <-ctx.Done():
			return err
		}
	}
}

// Whoever reads the lane is let through first: they would queue up behind us.
const (
	mostDrops  = 100
	dropRecess = time.Second
)

func (o DetachOptions) drop(ctx context.Context, first, last domain.Position, sum []byte) error {
	tx, err := o.Admin.Begin(ctx)
	if err != nil {
		return eventstore.Wrap(err, "begin to detach")
	}
	defer tx.Rollback(context.WithoutCancel(ctx)) //nolint:errcheck // after a commit there is nothing to roll back
	if _, err := tx.Exec(ctx, `SET LOCAL lock_timeout = '300ms'; SET LOCAL idle_in_transaction_session_timeout = '2s'`); err != nil {
		return eventstore.Wrap(err, "begin to detach")
	}
	if _, err := tx.Exec(ctx, `LOCK TABLE events_usage IN ACCESS EXCLUSIVE MODE`); err != nil {
		return eventstore.Wrap(err, "lock the usage lane")
	}
	now, err := Parts(ctx, tx)
	if err != nil {
		return err
	}
	if len(now) < len(o.Parts) || !slices.Equal(now[:len(o.Parts)], o.Parts) {
		return errors.New("the parts have changed meanwhile: begin again")
	}
	for _, p := range o.Parts {
		table := pgx.Identifier{p.Table}.Sanitize()
		if _, err := tx.Exec(ctx, `ALTER TABLE events_usage DETACH PARTITION `+table+`; DROP TABLE `+table); err != nil {
			return eventstore.Wrap(err, "detach %s", p.Table)
		}
	}
	_, err = tx.Exec(ctx, `INSERT INTO usage_archives (first, last, file, sha256) VALUES ($1, $2, $3, $4)`, int64(first), int64(last), filepath.Base(o.Path), sum)
	if err != nil {
		return eventstore.Wrap(err, "note the archive")
	}
	return eventstore.Wrap(tx.Commit(ctx), "detach")
}

// archive is an archive that is read.
type archive struct {
	*exported
	file   *os.File
	path   string
	ledger domain.ID
	part   exportRange
}

func openArchive(path string) (*archive, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open the archive: %w", err)
	}
	e, err := openExport(file)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), file.Close())
	}
	a := &archive{exported: e, file: file, path: path}
	if a.ledger, err = domain.ParseID(e.header.Ledger); err == nil && (e.header.Filtered || len(e.header.Lanes) != 1 || e.header.Lanes[0].Lane != domain.Usage) {
		err = errors.New("it is no archive of the usage lane")
	}
	if err != nil {
		a.close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	a.part = e.header.Lanes[0]
	return a, nil
}

func (a *archive) close() {
	a.exported.close()
	_ = a.file.Close()
}

// openArchives opens archives of one ledger, in the order of their positions. Close them.
func openArchives(ledger domain.ID, paths []string) (all []*archive, err error) {
	defer func() {
		if err != nil {
			closeAll(all)
		}
	}()
	for _, path := range paths {
		a, err := openArchive(path)
		if err != nil {
			return all, err
		}
		all = append(all, a)
		if a.ledger != ledger {
			return all, fmt.Errorf("%s is an archive of ledger %s, and this is ledger %s", path, a.ledger.UUID(), ledger.UUID())
		}
	}
	slices.SortFunc(all, func(a, b *archive) int { return int(a.part.From) - int(b.part.From) })
	return all, nil
}

func closeAll(all []*archive) {
	for _, a := range all {
		a.close()
	}
}

// archived checks the events of archives, as far as they continue each other.
func (s *snapshot) archived(ctx context.Context, c *chain, paths []string, lane *LaneReport) error {
	all, err := openArchives(s.ledger, paths)
	if err != nil {
		return err
	}
	defer closeAll(all)
	for _, a := range all {
		if uint64(a.part.From) != c.next {
			c.report.Skip(fmt.Sprintf("%s: it begins at position %d of %s, and %d was next", a.path, a.part.From, c.lane, c.next))
			continue
		}
		var tiles *storedLeaves
		var damage, failed error
		leaves := func(position uint64) (tlog.Hash, bool) {
			if tiles == nil || position < tiles.first || position > tiles.first+span(c.lane)-1 {
				after := (position - 1) / tileWidth * tileWidth
				if tiles, err = s.lowerTiles(ctx, c.lane, after, after+span(c.lane)); err != nil {
					failed, tiles = err, &storedLeaves{first: after + 1}
				}
			}
			return tiles.leaf(position)
		}
		err := pipe(ctx, c.lane, s.ledger, c.watch, func(_ context.Context, emit func(piece) error) error {
			damage = a.lane(c.lane, emit)
			return ctx.Err()
		}, func(events []checked, _ leavesOf) {
			for i := range events {
				c.add(&events[i], leaves)
				lane.Events++
			}
		})
		if err = errors.Join(err, failed); err != nil {
			return err
		}
		if damage != nil || c.next != uint64(a.part.To)+1 {
			c.fault(c.next, "the archive %s ends here, or cannot be read any further: %v", a.path, damage)
			return nil
		}
	}
	return nil
}

// Lacks gives the first positions of the usage lane that are neither in the database nor in
// one of the archives; 0 when all are.
func Lacks(ctx context.Context, db querier, ledger domain.ID, paths []string) (from, through domain.Position, err error) {
	last, err := Detached(ctx, db)
	if err != nil || last == 0 {
		return 0, 0, err
	}
	all, err := openArchives(ledger, paths)
	if err != nil {
		return 0, 0, err
	}
	defer closeAll(all)
	next := domain.Position(1)
	for _, a := range all {
		if a.part.From > next {
			break
		}
		next = max(next, a.part.To+1)
	}
	if next > last {
		return 0, 0, nil
	}
	return next, last, nil
}

// Archived is a log whose detached events are read from archives.
type Archived struct {
	*eventstore.Store
	Paths []string
}

// Read gives the events of a lane behind a position, from archives first.
func (l *Archived) Read(ctx context.Context, lane domain.Lane, after domain.Position) iter.Seq2[eventstore.Recorded, error] {
	if lane != domain.Usage || len(l.Paths) == 0 {
		return l.Store.Read(ctx, lane, after)
	}
	return func(yield func(eventstore.Recorded, error) bool) {
		ledger, _ := l.Ledger()
		all, err := openArchives(ledger, l.Paths)
		if err != nil {
			yield(eventstore.Recorded{}, err)
			return
		}
		defer closeAll(all)
		for _, a := range all {
			if a.part.To <= after || a.part.From > after+1 {
				continue
			}
			for r, err := range a.events() {
				if err == nil && r.Position <= after {
					continue
				}
				if !yield(r, err) || err != nil {
					return
				}
				after = r.Position
			}
		}
		for r, err := range l.Store.Read(ctx, lane, after) {
			if !yield(r, err) {
				return
			}
		}
	}
}

// events gives the archive's events as the log held them.
func (a *archive) events() iter.Seq2[eventstore.Recorded, error] {
	return func(yield func(eventstore.Recorded, error) bool) {
		err := a.lane(domain.Usage, func(p piece) error {
			rows, err := p.rows(nil)
			if err != nil {
				return err
			}
			for i := range rows {
				r := &rows[i]
				if r.damage != "" || r.left {
					return fmt.Errorf("%s has no event %d", a.path, r.position)
				}
				if !yield(r.recorded(domain.Usage, a.ledger), nil) {
					return errStopped
				}
			}
			return nil
		})
		if err != nil && !errors.Is(err, errStopped) {
			yield(eventstore.Recorded{}, err)
		}
	}
}

func (r *row) recorded(lane domain.Lane, ledger domain.ID) eventstore.Recorded {
	return eventstore.Recorded{
		Ledger: ledger, Epoch: r.epoch, Lane: lane, Position: domain.Position(r.position), ID: r.id, Stream: eventstore.Stream(r.stream), Version: r.version,
		Organization: domain.OrganizationID(r.organization), Type: string(r.kind), Schema: r.schema, RecordedAt: time.UnixMicro(r.at).UTC(),
		Data: r.data, Metadata: r.metadata, Sealed: r.sealed,
	}
}
