package audit

import (
	"context"
	"fmt"
	"hash/maphash"
	"math"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/mod/sumdb/tlog"

	"keyledger/domain"
	"keyledger/eventstore"
	"keyledger/projections/transparency"
)

// span is how many events are read at a time: whole tiles, and of usage fewer,
// since its events are larger.
func span(lane domain.Lane) uint64 {
	if lane == domain.Usage {
		return 16 * tileWidth
	}
	return 256 * tileWidth
}

// snapshot is one database at one moment.
type snapshot struct {
	tx     pgx.Tx
	ledger domain.ID
	heads  map[domain.Lane]eventstore.Head
	trees  map[domain.Lane]transparency.Checkpoint
}

// look begins a snapshot and reads where its lanes end.
func look(ctx context.Context, pool *pgxpool.Pool) (*snapshot, error) {
	tx, err := pool.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err != nil {
		return nil, eventstore.Wrap(err, "begin to read the ledger")
	}
	s := &snapshot{tx: tx, heads: map[domain.Lane]eventstore.Head{}, trees: map[domain.Lane]transparency.Checkpoint{}}
	if err := s.read(ctx); err != nil {
		s.close(ctx)
		return nil, err
	}
	return s, nil
}

func (s *snapshot) close(ctx context.Context) { _ = s.tx.Rollback(context.WithoutCancel(ctx)) }

func (s *snapshot) read(ctx context.Context) error {
	// The reader may have to wait for the processors.
	if _, err := s.tx.Exec(ctx, `SET LOCAL idle_in_transaction_session_timeout = 0`); err != nil {
		return eventstore.Wrap(err, "begin to read the ledger")
	}
	rows, err := s.tx.Query(ctx, `SELECT h.lane, h.ledger_id, h.epoch, h.position, t.ledger_id, t.epoch, t.size, t.root
		FROM log_head h JOIN log_trees t ON t.lane = h.lane`)
	if err != nil {
		return eventstore.Wrap(err, "read the heads of the log")
	}
	defer rows.Close()
	for rows.Next() {
		var h eventstore.Head
		var t transparency.Checkpoint
		var root []byte
		err := rows.Scan((*string)(&t.Lane), (*[16]byte)(&h.Ledger), &h.Epoch, &h.Position, (*[16]byte)(&t.Ledger), &t.Epoch, &t.Size, &root)
		if err != nil {
			return eventstore.Wrap(err, "read the heads of the log")
		}
		copy(t.Root[:], root)
		s.heads[t.Lane], s.trees[t.Lane], s.ledger = h, t, h.Ledger
	}
	if err := rows.Err(); err != nil {
		return eventstore.Wrap(err, "read the heads of the log")
	}
	if len(s.heads) != len(domain.Lanes()) {
		return fmt.Errorf("the log has no heads: run keyledger migrate")
	}
	return nil
}

// VerifyDatabase verifies a ledger in its database. Its error says that it could not look.
func VerifyDatabase(ctx context.Context, pool *pgxpool.Pool, o Options) (*Report, error) {
	started := time.Now()
	s, err := look(ctx, pool)
	if err != nil {
		return nil, err
	}
	defer s.close(ctx)
	report := newReport()
	report.Ledger, report.Epoch, report.Unsigned = s.ledger.UUID(), s.heads[domain.Lifecycle].Epoch, len(o.Keys) == 0
	chains := map[domain.Lane]*chain{}
	for _, lane := range domain.Lanes() {
		chains[lane] = newChain(lane, report)
	}
	if err := o.trust(s.ledger, func(lane domain.Lane, e expectation) { chains[lane].expect(e) }); err != nil {
		return nil, err
	}
	for _, lane := range domain.Lanes() { // the lifecycle first: it says which uses there must not be
		if lane == domain.Usage {
			chains[lane].watch = newWatch(chains[domain.Lifecycle].revocations, o.Skew)
		}
		if err := s.verify(ctx, chains[lane], o); err != nil {
			return nil, fmt.Errorf("verify %s: %w", lane, err)
		}
	}
	if err := s.verifyErased(ctx, chains[domain.Lifecycle]); err != nil {
		return nil, err
	}
	report.finish(started)
	return report, nil
}

// verifyErased holds the database's list of erased organizations against the log's.
func (s *snapshot) verifyErased(ctx context.Context, c *chain) error {
	all, err := s.erased(ctx)
	if err != nil {
		return err
	}
	listed := map[uint64]bool{}
	for _, e := range all {
		listed[e.position] = true
		switch at := c.erased[maphash.String(organizationSeed, string(e.organization))]; {
		case at != e.position:
			c.fault(e.position, "the organization %s is listed as erased at this position, and the log does not say so", e.organization)
		case e.keys > 0:
			c.fault(e.position, "the organization %s was erased, and has %d data keys", e.organization, e.keys)
		}
	}
	for _, at := range c.erased {
		if !listed[at] {
			c.fault(at, "the organization of the event was erased, and is not listed as erased")
		}
	}
	return nil
}

// verify checks one lane of a snapshot.
func (s *snapshot) verify(ctx context.Context, c *chain, o Options) error {
	head, tree := s.heads[c.lane], s.trees[c.lane]
	c.epoch, c.signed = head.Epoch, uint64(tree.Size)
	if tree.Size > 0 && tree.Ledger != head.Ledger {
		c.fault(0, "the tree is that of ledger %s", tree.Ledger.UUID())
	}
	if head.Ledger != s.ledger {
		c.fault(0, "the lane is that of ledger %s", head.Ledger.UUID())
	}
	if tree.Size > head.Position {
		c.fault(uint64(head.Position)+1, "the log ends before the size %d of its own tree", tree.Size)
	}
	if err := s.stored(ctx, c, o); err != nil {
		return err
	}
	if tree.Size > 0 {
		c.expect(expectation{uint64(tree.Size), tree.Root, "the stored tree"})
	} else if tree.Root != emptyRoot() {
		c.fault(0, "the stored tree is empty and has a root")
	}
	lane := LaneReport{Lane: c.lane, Covered: tree.Size, Checkpoints: len(c.checkpoints)}
	for i, w := range o.Witnesses {
		if c.cosigned[i] == 0 && tree.Size > 0 {
			c.fault(uint64(tree.Size), "the witness %s has cosigned no stored checkpoint", w.Name)
		}
		if lane.Cosigned = min(lane.Cosigned, c.cosigned[i]); i == 0 {
			lane.Cosigned = c.cosigned[i]
		}
	}
	var err error
	if c.tiles, err = s.upperTiles(ctx, c.lane); err != nil {
		return err
	}
	first, err := s.detached(ctx, c, o, &lane)
	if err != nil {
		return err
	}
	var last leavesOf
	err = pipe(ctx, c.lane, s.ledger, c.watch, func(ctx context.Context, emit func(piece) error) error {
		return s.events(ctx, c.lane, first, math.MaxInt64, emit)
	}, func(events []checked, leaves leavesOf) {
		last = leaves
		for i := range events {
			e := &events[i]
			if e.position > uint64(head.Position) {
				if c.next <= uint64(head.Position) {
					c.missing(uint64(head.Position), leaves)
				}
				c.fault(e.position, "the event stands behind the head of the log, which is at %d", head.Position)
				continue
			}
			c.add(e, leaves)
			lane.Events++
		}
		if o.Progress != nil {
			o.Progress(c.lane, domain.Position(c.next-1), head.Position)
		}
	})
	if err != nil {
		return err
	}
	c.end(uint64(head.Position), last)
	lane.Through = head.Position
	c.report.Lanes = append(c.report.Lanes, lane)
	return nil
}

// detached reads what is not in the database any more from archives. For the rest the
// tiles alone stand.
func (s *snapshot) detached(ctx context.Context, c *chain, o Options, lane *LaneReport) (after uint64, err error) {
	if c.lane != domain.Usage {
		return 0, nil
	}
	last, err := Detached(ctx, s.tx)
	if err != nil || last == 0 {
		return 0, err
	}
	after = uint64(last)
	if err := s.archived(ctx, c, o.Archives, lane); err != nil {
		return 0, err
	}
	if c.next > after {
		return after, nil
	}
	c.report.Skip(fmt.Sprintf("%s from position %d to %d is detached from the database, and in no archive that was named (--archive): the tree alone stands for it",
		c.lane, c.next, after))
	c.loose = true
	for at := (c.next - 1) / tileWidth * tileWidth; at < after; at += span(c.lane) {
		leaves, err := s.lowerTiles(ctx, c.lane, at, min(at+span(c.lane), after))
		if err != nil {
			return 0, err
		}
		for c.next <= min(at+span(c.lane), after) {
			leaf, ok := leaves.leaf(c.next)
			if !ok {
				c.fault(c.next, "the event was detached before the tree had it")
				c.broken = true
			}
			c.next++
			c.grow(leaf)
		}
	}
	return after, nil
}

// stored reads what was signed, and has the chain compare it.
func (s *snapshot) stored(ctx context.Context, c *chain, o Options) error {
	c.cosigned = make([]domain.Position, len(o.Witnesses))
	rows, err := s.tx.Query(ctx, `SELECT epoch, size, root, note FROM log_checkpoints WHERE lane = $1 ORDER BY epoch, size`, string(c.lane))
	if err != nil {
		return eventstore.Wrap(err, "read the checkpoints")
	}
	defer rows.Close()
	for rows.Next() {
		var epoch uint32
		var size domain.Position
		var root []byte
		var note string
		if err := rows.Scan(&epoch, &size, &root, &note); err != nil {
			return eventstore.Wrap(err, "read the checkpoints")
		}
		signed, err := o.open([]byte(note))
		if err != nil {
			c.fault(uint64(size), "a stored checkpoint is not what was signed: %v", err)
			continue
		}
		if signed.Origin != (transparency.Origin{Ledger: s.ledger, Epoch: epoch, Lane: c.lane}) || signed.Size != size || string(signed.Root[:]) != string(root) {
			c.fault(uint64(size), "a stored checkpoint is not what its note says: %s, size %d", signed.Origin, signed.Size)
			continue
		}
		c.expect(expectation{uint64(size), signed.Root, fmt.Sprintf("the stored checkpoint of epoch %d", epoch)})
		for i, w := range o.Witnesses {
			if _, ok := w.Cosigned([]byte(note)); ok {
				c.cosigned[i] = max(c.cosigned[i], size)
			}
		}
	}
	return eventstore.Wrap(rows.Err(), "read the checkpoints")
}

// upperTiles reads the tiles above the leaves: one hash for 256 of them.
func (s *snapshot) upperTiles(ctx context.Context, lane domain.Lane) (map[transparency.TileID][]byte, error) {
	rows, err := s.tx.Query(ctx, `SELECT level, number, hashes FROM log_tiles WHERE lane = $1 AND level > 0`, string(lane))
	if err != nil {
		return nil, eventstore.Wrap(err, "read the tiles")
	}
	defer rows.Close()
	tiles := map[transparency.TileID][]byte{}
	for rows.Next() {
		var id transparency.TileID
		var hashes []byte
		if err := rows.Scan(&id.Level, &id.Number, &hashes); err != nil {
			return nil, eventstore.Wrap(err, "read the tiles")
		}
		tiles[id] = hashes
	}
	return tiles, eventstore.Wrap(rows.Err(), "read the tiles")
}

// lowerTiles reads the hashes of the leaves behind a position, through another one.
// after is at the beginning of a tile.
func (s *snapshot) lowerTiles(ctx context.Context, lane domain.Lane, after, through uint64) (*storedLeaves, error) {
	stored := &storedLeaves{first: after + 1, size: min(through, uint64(s.trees[lane].Size))}
	if stored.size <= after {
		return stored, nil
	}
	count := (stored.size - after + tileWidth - 1) / tileWidth
	stored.hashes, stored.known = make([]byte, count*tileWidth*tlog.HashSize), make([]bool, count)
	rows, err := s.tx.Query(ctx, `SELECT number, hashes FROM log_tiles WHERE lane = $1 AND level = 0 AND number >= $2 AND number < $3`,
		string(lane), int64(after/tileWidth), int64(after/tileWidth+count))
	if err != nil {
		return nil, eventstore.Wrap(err, "read the tiles")
	}
	defer rows.Close()
	for rows.Next() {
		var number uint64
		var hashes []byte
		if err := rows.Scan(&number, &hashes); err != nil {
			return nil, eventstore.Wrap(err, "read the tiles")
		}
		i := number - after/tileWidth
		copy(stored.hashes[i*tileWidth*tlog.HashSize:], hashes)
		stored.known[i] = true
	}
	return stored, eventstore.Wrap(rows.Err(), "read the tiles")
}

// events reads the events behind a position, through another one, with the hashes
// that the tiles have of them.
func (s *snapshot) events(ctx context.Context, lane domain.Lane, after, through uint64, emit func(piece) error) error {
	head := uint64(s.heads[lane].Position)
	for after -= after % tileWidth; after < through; {
		to := after + span(lane)
		if to >= head || to > through {
			to = through // whatever stands behind the head, too
		}
		leaves, err := s.lowerTiles(ctx, lane, after, min(to, max(head, after)))
		if err != nil {
			return err
		}
		splitter := &copySplitter{emit: emit, hashes: leaves.leaf}
		_, err = s.tx.Conn().PgConn().CopyTo(ctx, splitter, fmt.Sprintf(
			`COPY (SELECT %s FROM events WHERE lane = '%s' AND position > %d AND position <= %d ORDER BY position) TO STDOUT (FORMAT binary)`,
			columnsSQL, lane, after, to))
		if err == nil {
			err = splitter.end()
		}
		if err != nil {
			return eventstore.Wrap(err, "read %s after %d", lane, after)
		}
		after = to
	}
	return nil
}
