package transparency

import "golang.org/x/mod/sumdb/tlog"

// Grow builds the tiles of a tree from nothing.
func Grow(leaves []tlog.Hash) (tiles map[TileID][]byte, root tlog.Hash, err error) {
	g, err := newGrowth(0, nil)
	if err != nil {
		return nil, root, err
	}
	for _, leaf := range leaves {
		g.add(leaf)
	}
	root, err = g.root()
	return g.tiles, root, err
}

// Regrow goes on from the edge of a tree, as a step does.
func Regrow(size int64, tiles map[TileID][]byte, leaves []tlog.Hash) (tlog.Hash, error) {
	g, err := newGrowth(size, tiles)
	if err != nil {
		return tlog.Hash{}, err
	}
	for _, leaf := range leaves {
		g.add(leaf)
	}
	return g.root()
}
