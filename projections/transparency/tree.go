package transparency

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/mod/sumdb/tlog"

	"keyledger/domain"
	"keyledger/eventstore"
)

// ErrFork says that the log does not continue what was signed of it. It is never
// signed over: somebody has to look, and to decide which history is true.
var ErrFork = errors.New("the log does not continue what was signed of it")

// Log reads events from the database, up to the head as it was.
// *eventstore.Store is one.
type Log interface {
	Read(ctx context.Context, lane domain.Lane, after domain.Position) iter.Seq2[eventstore.Recorded, error]
}

// Memory keeps the newest checkpoint that this node has seen of a lane, outside
// the database. Without it a node notices a rolled-back database only as long as
// it runs.
type Memory interface {
	Recall(lane domain.Lane) (signed []byte, err error) // nil when there is none
	Remember(lane domain.Lane, signed []byte) error
}

// Options are what a tree needs.
type Options struct {
	Pool       *pgxpool.Pool
	Log        Log
	Lane       domain.Lane
	Keys       []ed25519.PrivateKey // each signs
	Memory     Memory               // nil: none
	Interval   time.Duration        // between checkpoints; 0: 400 ms
	Logger     *slog.Logger
	Clock      func() time.Time
	Registerer prometheus.Registerer // nil: no metrics
}

const (
	defaultInterval = 400 * time.Millisecond
	// mostLeaves and mostLeafBytes bound one step, so that a tree that is far behind
	// still publishes how far it has come.
	mostLeaves    = 8192
	mostLeafBytes = 16 << 20
	stepTimeout   = 20 * time.Second
	// keepEvery spares the disk that an embedded Postgres commits to. A memory of
	// some seconds ago is still one.
	keepEvery   = 5 * time.Second
	longBackOff = 5 * time.Second
)

// Tree drives the tree of one lane. Make one with New.
type Tree struct {
	options Options
	logger  *slog.Logger
	metrics *metrics
	known   *Checkpoint // the newest that this process has seen; nil: it has not looked yet

	unkept []byte // the newest that this process has signed, when the memory has not got it yet
	kept   time.Time
}

// New makes a tree. It does nothing before Run or Advance is called.
func New(o Options) (*Tree, error) {
	if len(o.Keys) == 0 {
		return nil, errors.New("a tree needs a key to sign its checkpoints")
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.Interval == 0 {
		o.Interval = defaultInterval
	}
	m, err := newMetrics(o.Registerer, o.Lane, o.Clock)
	if err != nil {
		return nil, err
	}
	return &Tree{options: o, logger: o.Logger.With("tree", string(o.Lane)), metrics: m}, nil
}

// Run publishes checkpoints until ctx ends, which is no error. It waits and tries
// again when the database cannot be reached, and returns an error that is
// [ErrFork] when the log is not what was signed.
func (t *Tree) Run(ctx context.Context) error {
	defer t.keep()
	wait := t.options.Interval
	for {
		more, err := t.step(ctx, t.options.Interval)
		if time.Since(t.kept) >= keepEvery {
			t.keep()
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, ErrFork):
			t.metrics.forked.Set(1)
			t.logger.Error("THE LOG HAS FORKED: no checkpoint is signed until this is resolved. Keep the database as it is, and run keyledger audit verify with a checkpoint that was kept elsewhere", "error", err)
			return err
		case err != nil:
			wait = min(2*wait, longBackOff)
			t.logger.Warn("the tree waits to go on", "pause", wait, "error", err)
		case more:
			wait = 0
		default:
			wait = t.options.Interval
		}
		pause := wait
		if pause > 0 {
			pause += rand.N(pause / 4) // nodes that started together drift apart
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

// Advance brings the tree up to the log's head as it is now and signs it.
func (t *Tree) Advance(ctx context.Context) error {
	defer t.keep()
	for {
		if more, err := t.step(ctx, 0); err != nil || !more {
			return err
		}
	}
}

// standing is where log and tree are, in one snapshot.
type standing struct {
	head     eventstore.Head
	tree     Checkpoint
	signedAt time.Time
	tiles    map[TileID][]byte // the edge
}

// step takes the tree one step further, and says whether more is waiting.
//
// The order is the order for these reasons. What was signed last and the edge of
// its tree are read in one snapshot, and the edge must have that very root: then
// whatever grows from it continues what was signed. The leaves are read from the
// database, behind the position that the snapshot names. The proof that the new
// tree contains the old one is made and checked before anything is signed, by the
// library's code and not by ours. The signature comes before the statement that
// stores it together with the tiles, and that statement does nothing when
// somebody else has moved the tree meanwhile: then the signature is thrown away. Only what was stored is
// remembered.
func (t *Tree) step(ctx context.Context, fresh time.Duration) (more bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	s, err := t.stand(ctx)
	if err != nil {
		return false, err
	}
	t.metrics.stand(s.head.Position, s.tree.Size)
	if err := t.compare(ctx, s); err != nil {
		return false, err
	}
	sameLog := s.tree.Ledger == s.head.Ledger && s.tree.Epoch == s.head.Epoch
	behind := s.head.Position - s.tree.Size
	if s.head.Position == 0 || behind == 0 && sameLog || sameLog && behind < mostLeaves && t.options.Clock().Sub(s.signedAt) < fresh {
		return false, nil // another node has just signed, or there is nothing to sign
	}

	tree, err := newGrowth(int64(s.tree.Size), s.tiles)
	if err != nil {
		return false, fmt.Errorf("%w: %w", ErrFork, err)
	}
	root, err := tree.root()
	if err != nil {
		return false, fmt.Errorf("%w: %w", ErrFork, err)
	}
	if root != s.tree.Root {
		return false, fmt.Errorf("%w: the tiles do not have the root that was signed at size %d", ErrFork, s.tree.Size)
	}
	more, err = t.grow(ctx, tree, s)
	if err != nil {
		return false, err
	}
	next := Checkpoint{Origin: Origin{s.head.Ledger, s.head.Epoch, t.options.Lane}, Size: domain.Position(tree.size)}
	if next.Root, err = tree.root(); err != nil {
		return false, err
	}
	if err := continues(s.tree, next, HashReader(tree.tile)); err != nil {
		return false, err
	}
	signed, err := sign(next, t.options.Keys)
	if err != nil {
		return false, err
	}
	stored, err := t.store(ctx, s.tree, next, signed, tree)
	if err != nil || !stored {
		return true, err
	}
	t.metrics.signed(next.Size)
	t.known, t.unkept = &next, signed
	return more, nil
}

// stand reads where log and tree are.
func (t *Tree) stand(ctx context.Context) (standing, error) {
	s := standing{tree: Checkpoint{Origin: Origin{Lane: t.options.Lane}}, tiles: map[TileID][]byte{}}
	rows, err := t.options.Pool.Query(ctx, `
SELECT h.ledger_id, h.epoch, h.position, t.ledger_id, t.epoch, t.size, t.root, t.signed_at, l.level, coalesce(e.number, 0), e.hashes
  FROM log_head h
  JOIN log_trees t ON t.lane = h.lane
 CROSS JOIN generate_series(0, 6) AS l (level)
  LEFT JOIN log_tiles e ON e.lane = $1 AND e.level = l.level AND e.number = t.size >> (8 * (l.level + 1))
 WHERE h.lane = $1`, string(t.options.Lane))
	if err != nil {
		return s, eventstore.Wrap(err, "read the tree of %s", t.options.Lane)
	}
	defer rows.Close()
	var root []byte
	for rows.Next() {
		var id TileID
		var hashes []byte
		if err := rows.Scan((*[16]byte)(&s.head.Ledger), &s.head.Epoch, &s.head.Position,
			(*[16]byte)(&s.tree.Ledger), &s.tree.Epoch, &s.tree.Size, &root, &s.signedAt, &id.Level, &id.Number, &hashes); err != nil {
			return s, eventstore.Wrap(err, "read the tree of %s", t.options.Lane)
		}
		if hashes != nil {
			s.tiles[id] = hashes
		}
	}
	if err := rows.Err(); err != nil {
		return s, eventstore.Wrap(err, "read the tree of %s", t.options.Lane)
	}
	if len(root) != hashSize {
		return s, fmt.Errorf("read the tree of %s: there is none", t.options.Lane)
	}
	s.tree.Root = tlog.Hash(root)
	return s, nil
}

// compare holds what the database says was signed against what this process
// knows of it, and against the log's end.
func (t *Tree) compare(ctx context.Context, s standing) error {
	if t.known == nil {
		known, err := t.recall()
		if err != nil {
			return err
		}
		t.known = &known
	}
	known := *t.known
	switch {
	case s.tree.Size > 0 && s.tree.Ledger != s.head.Ledger:
		return fmt.Errorf("%w: the tree is that of ledger %s, the log is ledger %s", ErrFork, s.tree.Ledger.UUID(), s.head.Ledger.UUID())
	case s.tree.Size > s.head.Position:
		return fmt.Errorf("%w: size %d was signed, and the log ends at position %d", ErrFork, s.tree.Size, s.head.Position)
	case known.Size == 0:
		*t.known = s.tree
		return nil
	case known == s.tree:
		return nil
	case known.Ledger != s.head.Ledger || known.Epoch < s.head.Epoch:
		// A restore that the owner has declared by raising the epoch, or another ledger on this
		// data directory. Both are said aloud elsewhere, and have other origins.
		t.logger.Warn("the checkpoint that this node remembers belongs to another history", "origin", known.Origin.String(), "size", known.Size)
		*t.known = s.tree
		return nil
	case known.Size > s.tree.Size:
		return fmt.Errorf("%w: this node has seen size %d signed, and the database knows of %d: was it rolled back?", ErrFork, known.Size, s.tree.Size)
	}
	reader := NewReader(t.options.Pool, t.options.Log)
	if err := continues(known, s.tree, reader.hashes(ctx, t.options.Lane)); err != nil {
		return err
	}
	*t.known = s.tree
	return nil
}

// grow hashes the events behind the tree, up to the head or to the bounds of a step.
func (t *Tree) grow(ctx context.Context, tree *growth, s standing) (more bool, err error) {
	var buffer []byte
	leaves, bytes := 0, 0
	if s.tree.Size == s.head.Position {
		return false, nil
	}
	for r, err := range t.options.Log.Read(ctx, t.options.Lane, s.tree.Size) {
		if err != nil {
			return false, err
		}
		if leaves == mostLeaves || bytes >= mostLeafBytes {
			return true, nil
		}
		if r.Position != domain.Position(tree.size)+1 {
			return false, fmt.Errorf("read the leaves of %s: position %d follows %d", t.options.Lane, r.Position, tree.size)
		}
		if r.Position > s.head.Position {
			return true, nil // behind the snapshot: the next step's
		}
		buffer = r.AppendEnvelope(buffer[:0])
		tree.add(tlog.RecordHash(buffer))
		t.metrics.pending(r.RecordedAt, leaves == 0)
		leaves++
		bytes += len(buffer)
	}
	return false, nil
}

// continues proves that a tree begins with another one.
func continues(old, next Checkpoint, hashes tlog.HashReader) error {
	if old.Size > next.Size {
		return fmt.Errorf("%w: size %d cannot follow size %d", ErrFork, next.Size, old.Size)
	}
	if old.Size == 0 {
		return nil
	}
	if old.Size == next.Size {
		if old.Root != next.Root {
			return fmt.Errorf("%w: there are two roots of size %d", ErrFork, old.Size)
		}
		return nil
	}
	proof, err := tlog.ProveTree(int64(next.Size), int64(old.Size), hashes)
	if err != nil {
		return eventstore.Wrap(err, "prove that size %d continues size %d", next.Size, old.Size)
	}
	if err := tlog.CheckTree(proof, int64(next.Size), next.Root, int64(old.Size), old.Root); err != nil {
		return fmt.Errorf("%w: size %d does not continue size %d: %w", ErrFork, next.Size, old.Size, err)
	}
	return nil
}

// storeSQL moves the tree. It travels in the simple protocol: the server begins when it has all of
// it and commits when it is done, so that a paused client holds no lock.
const storeSQL = `
WITH moved AS (
UPDATE log_trees t SET ledger_id = $2, epoch = $3, size = $4, root = $5, signed_at = now()
 WHERE t.lane = $1 AND t.ledger_id = $6 AND t.epoch = $7 AND t.size = $8 AND t.root = $9
   AND EXISTS (SELECT FROM log_head h WHERE h.lane = $1 AND h.ledger_id = $2 AND h.epoch = $3 AND h.position >= $4)
RETURNING t.lane
), grown AS (
INSERT INTO log_tiles (lane, level, number, hashes)
SELECT $1, n.level, n.number, n.hashes FROM unnest($10::smallint[], $11::bigint[], $12::bytea[]) AS n (level, number, hashes)
 WHERE EXISTS (SELECT FROM moved)
    ON CONFLICT (lane, level, number) DO UPDATE SET hashes = excluded.hashes
), signed AS (
INSERT INTO log_checkpoints (lane, epoch, size, root, note, signed_at, kept)
SELECT $1, $3, $4, $5, $13, now(), NOT EXISTS (
       SELECT FROM log_checkpoints k WHERE k.lane = $1 AND k.epoch = $3 AND k.kept AND k.signed_at >= date_trunc('hour', now()))
 WHERE EXISTS (SELECT FROM moved)
), forgotten AS (
DELETE FROM log_checkpoints k
 WHERE k.lane = $1 AND NOT k.kept AND k.signed_at < now() - interval '1 hour' AND EXISTS (SELECT FROM moved)
)
SELECT EXISTS (SELECT FROM moved)`

func (t *Tree) store(ctx context.Context, old, next Checkpoint, signed []byte, tree *growth) (stored bool, err error) {
	var levels []int16
	var numbers []int64
	var hashes [][]byte
	for id := range tree.changed {
		levels, numbers, hashes = append(levels, int16(id.Level)), append(numbers, id.Number), append(hashes, tree.tiles[id])
	}
	err = t.options.Pool.QueryRow(ctx, storeSQL, pgx.QueryExecModeSimpleProtocol,
		string(t.options.Lane), next.Ledger.UUID(), int64(next.Epoch), int64(next.Size), next.Root[:],
		old.Ledger.UUID(), int64(old.Epoch), int64(old.Size), old.Root[:], levels, numbers, hashes, string(signed)).Scan(&stored)
	return stored, eventstore.Wrap(err, "store the checkpoint of %s %d", t.options.Lane, next.Size)
}

// recall gives the checkpoint that this node has kept; the zero one when there is none.
func (t *Tree) recall() (Checkpoint, error) {
	if t.options.Memory == nil {
		return Checkpoint{}, nil
	}
	signed, err := t.options.Memory.Recall(t.options.Lane)
	if err != nil || signed == nil {
		return Checkpoint{}, err
	}
	return Read(signed)
}

// keep has the memory hold what was signed last.
func (t *Tree) keep() {
	if t.unkept == nil || t.options.Memory == nil {
		return
	}
	t.kept = time.Now()
	if err := t.options.Memory.Remember(t.options.Lane, t.unkept); err != nil {
		t.logger.Warn("the checkpoint was not kept beside the database", "error", err)
		return
	}
	t.unkept = nil
}
