package verification

import (
	"math"
	"math/bits"
	"sync/atomic"
)

// table finds references by hash: open addressing with linear probing over cells
// of four bytes, 28 bits of reference and 4 bits of the hash that spare most
// visits to what is referred to. References count from 1.
//
// It is cut into shards by the first bits of the hash. A shard that is full is
// built anew a little larger and swapped in, so growing is many small steps and
// never one large one, and nobody who reads ever waits. A cell never changes but
// from empty to a reference and from there to removed, so a reader needs no retry to
// be sure of a miss.
//
// One goroutine writes at a time; any number read.
type table struct {
	shards []shard
	shift  uint                // of the hash, leaves the shard's number
	full   float64             // share of cells in use at which a shard grows
	growth float64             // and by how much
	hash   func(uint32) uint64 // of what a reference refers to
}

type shard struct {
	cells atomic.Pointer[[]atomic.Uint32]
	used  int // cells that are not empty: references and removed
	gone  int // removed
}

const (
	refBits   = 28
	refMask   = 1<<refBits - 1
	removed   = refMask // a cell's reference that stands for none any more
	mostRefs  = refMask - 1
	leastCell = 8
)

func newTable(shards int, full, growth float64, hash func(uint32) uint64) table {
	t := table{shards: make([]shard, shards), shift: uint(64 - bits.TrailingZeros(uint(shards))), full: full, growth: growth, hash: hash}
	for i := range t.shards {
		cells := make([]atomic.Uint32, leastCell)
		t.shards[i].cells.Store(&cells)
	}
	return t
}

// probe walks the cells that may refer to what has a certain hash.
type probe struct {
	cells []atomic.Uint32
	at    uint32
	tag   uint32
}

func (t *table) probe(hash uint64) probe {
	cells := *t.shards[hash>>t.shift].cells.Load()
	return probe{cells: cells, at: home(hash, len(cells)), tag: tag(hash)}
}

// next gives the next candidate, or 0 when there is none any more.
func (p *probe) next() uint32 {
	for {
		cell := p.cells[p.at].Load()
		if cell == 0 {
			return 0
		}
		if p.at++; p.at == uint32(len(p.cells)) {
			p.at = 0
		}
		if ref := cell & refMask; cell&^refMask == p.tag && ref != removed {
			return ref
		}
	}
}

// home spreads the low half of a hash over any number of cells.
func home(hash uint64, cells int) uint32 { return uint32(hash & (1<<32 - 1) * uint64(cells) >> 32) }

func tag(hash uint64) uint32 { return uint32(hash>>32) << refBits }

// insert adds a reference that is not there yet.
func (t *table) insert(hash uint64, ref uint32) {
	s := &t.shards[hash>>t.shift]
	cells := *s.cells.Load()
	if float64(s.used+1) > t.full*float64(len(cells)) {
		t.resize(s, s.used-s.gone+1)
		cells = *s.cells.Load()
	}
	put(cells, hash, ref)
	s.used++
}

func put(cells []atomic.Uint32, hash uint64, ref uint32) {
	at := home(hash, len(cells))
	for cells[at].Load() != 0 {
		if at++; at == uint32(len(cells)) {
			at = 0
		}
	}
	cells[at].Store(tag(hash) | ref)
}

// remove takes a reference out.
func (t *table) remove(hash uint64, ref uint32) {
	s := &t.shards[hash>>t.shift]
	cells := *s.cells.Load()
	for at := home(hash, len(cells)); cells[at].Load() != 0; {
		if cells[at].Load() == tag(hash)|ref {
			cells[at].Store(removed)
			s.gone++
			return
		}
		if at++; at == uint32(len(cells)) {
			at = 0
		}
	}
}

// resize builds a shard anew with room for so many references and then some.
func (t *table) resize(s *shard, references int) {
	t.rebuild(s, max(leastCell, int(float64(references)*t.growth/t.full)+1))
}

// reserve makes room for so many references, so that they can come without
// building many shards anew on the way.
func (t *table) reserve(references int) {
	// Shards differ: an even share, and three deviations more.
	share := float64(references) / float64(len(t.shards))
	cells := int((share+3*math.Sqrt(share))/t.full) + 1
	for i := range t.shards {
		if s := &t.shards[i]; cells > len(*s.cells.Load()) {
			t.rebuild(s, cells)
		}
	}
}

func (t *table) rebuild(s *shard, size int) {
	old, cells := *s.cells.Load(), make([]atomic.Uint32, size)
	for i := range old {
		if ref := old[i].Load() & refMask; ref != 0 && ref != removed {
			put(cells, t.hash(ref), ref)
		}
	}
	s.used -= s.gone
	s.gone = 0
	s.cells.Store(&cells)
}

func (t *table) bytes() uint64 {
	n := 0
	for i := range t.shards {
		n += len(*t.shards[i].cells.Load())
	}
	return 4 * uint64(n)
}
