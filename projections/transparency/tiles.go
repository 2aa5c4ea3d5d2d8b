package transparency

import (
	"fmt"

	"golang.org/x/mod/sumdb/tlog"
)

// Height is that of a tile: it holds up to 1<<Height hashes.
const Height = 8

const (
	tileWidth = 1 << Height
	hashSize  = tlog.HashSize
)

// TileID names a tile, whatever its width.
type TileID struct {
	Level  int
	Number int64
}

// Width says how many hashes a tile has in a tree of a size.
func (id TileID) Width(size int64) int {
	hashes := size >> (Height * id.Level)
	return int(max(0, min(tileWidth, hashes-id.Number*tileWidth)))
}

// edge are the tiles of a tree that are neither full nor empty: all that growing
// it needs.
func edge(size int64) []TileID {
	var ids []TileID
	for level := 0; size>>(Height*level) > 0; level++ {
		id := TileID{level, size >> (Height * (level + 1))}
		if id.Width(size) > 0 {
			ids = append(ids, id)
		}
	}
	return ids
}

// growth is a tree that grows in memory: the edge that it started from, and every
// tile that has changed since.
type growth struct {
	size    int64
	tiles   map[TileID][]byte
	changed map[TileID]bool
}

// newGrowth begins at a tree whose edge is given.
func newGrowth(size int64, tiles map[TileID][]byte) (*growth, error) {
	g := &growth{size: size, tiles: map[TileID][]byte{}, changed: map[TileID]bool{}}
	for _, id := range edge(size) {
		want := id.Width(size) * hashSize
		if len(tiles[id]) != want {
			return nil, fmt.Errorf("tile %d/%d has %d bytes, and the tree of size %d needs %d", id.Level, id.Number, len(tiles[id]), size, want)
		}
		g.tiles[id] = append(make([]byte, 0, tileWidth*hashSize), tiles[id]...)
	}
	return g, nil
}

// add appends a leaf's hash. A tile that has become full is one hash in the tile above it.
func (g *growth) add(h tlog.Hash) {
	n := g.size
	g.size++
	for level := 0; ; level++ {
		id := TileID{level, n >> Height}
		g.tiles[id] = append(g.tiles[id], h[:]...)
		g.changed[id] = true
		if n&(tileWidth-1) != tileWidth-1 {
			return
		}
		h = rootOf(g.tiles[id])
		n >>= Height
	}
}

// rootOf is the hash of a full tile.
func rootOf(tile []byte) tlog.Hash {
	var level [tileWidth]tlog.Hash
	for i := range level {
		level[i] = tlog.Hash(tile[i*hashSize:])
	}
	for n := tileWidth; n > 1; n /= 2 {
		for i := range n / 2 {
			level[i] = tlog.NodeHash(level[2*i], level[2*i+1])
		}
	}
	return level[0]
}

// tile gives a tile of the tree, or nil.
func (g *growth) tile(id TileID) ([]byte, error) { return g.tiles[id], nil }

// root is the hash of the tree as it is now.
func (g *growth) root() (tlog.Hash, error) { return tlog.TreeHash(g.size, HashReader(g.tile)) }

// HashReader reads the hashes of a tree out of its tiles. A tile may be given with more
// hashes than are needed; nothing is authenticated.
func HashReader(tile func(TileID) ([]byte, error)) tlog.HashReader {
	return tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		hashes := make([]tlog.Hash, len(indexes))
		for i, index := range indexes {
			t := tlog.TileForIndex(Height, index)
			data, err := tile(TileID{t.L, t.N})
			if err != nil {
				return nil, err
			}
			if hashes[i], err = tlog.HashFromTile(t, data, index); err != nil {
				return nil, fmt.Errorf("read tile %d/%d: %w", t.L, t.N, err)
			}
		}
		return hashes, nil
	})
}
