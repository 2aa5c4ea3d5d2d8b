package transparency

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/mod/sumdb/tlog"

	"keyledger/domain"
	"keyledger/eventstore"
)

// Reader answers those who ask for checkpoints, tiles, entries and proofs.
type Reader struct {
	pool *pgxpool.Pool
	log  Log
}

// NewReader makes a reader. log is needed for entries only.
func NewReader(pool *pgxpool.Pool, log Log) *Reader { return &Reader{pool, log} }

// Checkpoint gives the newest checkpoint, as a signed note.
func (r *Reader) Checkpoint(ctx context.Context, lane domain.Lane) ([]byte, error) {
	return r.note(ctx, `SELECT k.note FROM log_trees t JOIN log_checkpoints k ON k.lane = t.lane AND k.epoch = t.epoch AND k.size = t.size WHERE t.lane = $1`, string(lane))
}

// CheckpointFrom gives the smallest stored checkpoint of at least a size.
func (r *Reader) CheckpointFrom(ctx context.Context, lane domain.Lane, size domain.Position) ([]byte, error) {
	return r.note(ctx, `SELECT note FROM log_checkpoints WHERE lane = $1 AND size >= $2 ORDER BY epoch DESC, size LIMIT 1`, string(lane), int64(size))
}

// CheckpointCosigned gives the newest stored checkpoint of at least a size that all of
// these witnesses have cosigned.
func (r *Reader) CheckpointCosigned(ctx context.Context, lane domain.Lane, size domain.Position, witnesses []WitnessKey) ([]byte, error) {
	rows, err := r.pool.Query(ctx, `SELECT note FROM log_checkpoints WHERE lane = $1 AND size >= $2 ORDER BY epoch DESC, size DESC`, string(lane), int64(size))
	if err != nil {
		return nil, eventstore.Wrap(err, "read the checkpoints")
	}
	defer rows.Close()
	for rows.Next() {
		var note string
		if err := rows.Scan(&note); err != nil {
			return nil, eventstore.Wrap(err, "read the checkpoints")
		}
		if Missing([]byte(note), witnesses) == "" {
			return []byte(note), nil
		}
	}
	if err := rows.Err(); err != nil {
		return nil, eventstore.Wrap(err, "read the checkpoints")
	}
	return nil, domain.Errorf(domain.CodeNotFound, "no checkpoint of at least size %d is cosigned by every witness yet", size)
}

func (r *Reader) note(ctx context.Context, query string, args ...any) ([]byte, error) {
	var note string
	err := r.pool.QueryRow(ctx, query, args...).Scan(&note)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, domain.Errorf(domain.CodeNotFound, "there is no such checkpoint yet")
	}
	return []byte(note), eventstore.Wrap(err, "read a checkpoint")
}

// Size is that of the newest checkpoint.
func (r *Reader) Size(ctx context.Context, lane domain.Lane) (domain.Position, error) {
	var size int64
	err := r.pool.QueryRow(ctx, `SELECT size FROM log_trees WHERE lane = $1`, string(lane)).Scan(&size)
	return domain.Position(size), eventstore.Wrap(err, "read the size of the tree of %s", lane)
}

// Tile gives the first hashes of a tile, as many as width says. A tile that has
// more by now serves the narrower ones, too.
func (r *Reader) Tile(ctx context.Context, lane domain.Lane, level int, number int64, width int) ([]byte, error) {
	hashes, err := r.tile(ctx, lane, TileID{level, number})
	if err != nil {
		return nil, err
	}
	if width < 1 || len(hashes) < width*hashSize {
		return nil, domain.Errorf(domain.CodeNotFound, "there is no such tile")
	}
	return hashes[:width*hashSize], nil
}

func (r *Reader) tile(ctx context.Context, lane domain.Lane, id TileID) (hashes []byte, err error) {
	err = r.pool.QueryRow(ctx, `SELECT hashes FROM log_tiles WHERE lane = $1 AND level = $2 AND number = $3`, string(lane), id.Level, id.Number).Scan(&hashes)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, domain.Errorf(domain.CodeNotFound, "there is no such tile")
	}
	return hashes, eventstore.Wrap(err, "read a tile of %s", lane)
}

// Entries gives the envelopes that a level-0 tile stands for, as many as width
// says, all of which a checkpoint covers.
func (r *Reader) Entries(ctx context.Context, lane domain.Lane, number int64, width int) ([][]byte, error) {
	size, err := r.Size(ctx, lane)
	if err != nil {
		return nil, err
	}
	missing := domain.Errorf(domain.CodeNotFound, "there is no such bundle of entries")
	if width < 1 || number < 0 || number > int64(size)/tileWidth || number*tileWidth+int64(width) > int64(size) {
		return nil, missing
	}
	entries := make([][]byte, 0, width)
	for e, err := range r.log.Read(ctx, lane, domain.Position(number*tileWidth)) {
		if err != nil {
			return nil, err
		}
		entries = append(entries, e.Envelope())
		if len(entries) == width {
			return entries, nil
		}
	}
	return nil, missing
}

// Inclusion proves that an event is in the tree of a size: its leaf's hash, and
// the hashes that lead from there to the root.
func (r *Reader) Inclusion(ctx context.Context, lane domain.Lane, position, size domain.Position) (leaf [32]byte, proof [][32]byte, err error) {
	if err := r.covered(ctx, lane, size); err != nil {
		return leaf, nil, err
	}
	if position < 1 || position > size {
		return leaf, nil, domain.Invalid("position", "must be from 1 to the size of the tree")
	}
	hashes := r.hashes(ctx, lane)
	p, err := tlog.ProveRecord(int64(size), int64(position-1), hashes)
	if err != nil {
		return leaf, nil, eventstore.Wrap(err, "prove %s %d", lane, position)
	}
	own, err := hashes.ReadHashes([]int64{tlog.StoredHashIndex(0, int64(position-1))})
	if err != nil {
		return leaf, nil, eventstore.Wrap(err, "prove %s %d", lane, position)
	}
	return own[0], plain(p), nil
}

// Consistency proves that the tree of one size begins with the tree of another.
func (r *Reader) Consistency(ctx context.Context, lane domain.Lane, from, to domain.Position) ([][32]byte, error) {
	if err := r.covered(ctx, lane, to); err != nil {
		return nil, err
	}
	if from < 1 || from > to {
		return nil, domain.Invalid("from", "must be from 1 to the size of the other tree")
	}
	p, err := tlog.ProveTree(int64(to), int64(from), r.hashes(ctx, lane))
	if err != nil {
		return nil, eventstore.Wrap(err, "prove that %s %d continues %d", lane, to, from)
	}
	return plain(p), nil
}

// Root gives the root of the tree of a size, as the tiles have it.
func (r *Reader) Root(ctx context.Context, lane domain.Lane, size domain.Position) (root [32]byte, err error) {
	root, err = tlog.TreeHash(int64(size), r.hashes(ctx, lane))
	return root, eventstore.Wrap(err, "read the root of %s %d", lane, size)
}

func (r *Reader) covered(ctx context.Context, lane domain.Lane, size domain.Position) error {
	signed, err := r.Size(ctx, lane)
	if err != nil {
		return err
	}
	if size < 1 || size > signed {
		return domain.Errorf(domain.CodeNotFound, "the newest checkpoint has the size %d", signed)
	}
	return nil
}

// hashes reads hashes out of the tiles in the database, each tile once.
func (r *Reader) hashes(ctx context.Context, lane domain.Lane) tlog.HashReader {
	seen := map[TileID][]byte{}
	return HashReader(func(id TileID) ([]byte, error) {
		if hashes, ok := seen[id]; ok {
			return hashes, nil
		}
		hashes, err := r.tile(ctx, lane, id)
		if err == nil {
			seen[id] = hashes
		}
		return hashes, err
	})
}

func plain[P ~[]tlog.Hash](proof P) [][32]byte {
	hashes := make([][32]byte, len(proof))
	for i, h := range proof {
		hashes[i] = h
	}
	return hashes
}

// Edge gives the roots of the full subtrees that make up the tree of a size, the
// largest first: all that one needs to go on from there.
func (r *Reader) Edge(ctx context.Context, lane domain.Lane, size domain.Position) ([]tlog.Hash, error) {
	var indexes []int64
	start := int64(0)
	for level := 62; level >= 0; level-- {
		if int64(size)&(1<<level) != 0 {
			indexes = append(indexes, tlog.StoredHashIndex(level, start>>level))
			start += 1 << level
		}
	}
	hashes, err := r.hashes(ctx, lane).ReadHashes(indexes)
	return hashes, eventstore.Wrap(err, "read the edge of %s %d", lane, size)
}
