package index

import (
	"math"
	"math/bits"
	"sync/atomic"
)

// table finds references by hash: open addressing with linear probing over cells
// of four bytes. A cell holds a reference, and in the bits that the references do
// not need a part of the hash, which spares nearly all visits to what is referred
// to by something else. References count from 1.
//
// It is cut into shards by the first bits of the hash. A shard that is full is
// built anew a little larger and swapped in, so growing is many small steps and
// never one large one, and nobody who reads ever waits. A cell never changes but
// from empty to a reference and from there to removed, so a reader needs no retry to
// be sure of a miss.
//
// One goroutine writes at a time; any number read.
type table struct {
	shards []atomic.Pointer[shard]
	shift  uint                // of the hash, leaves the shard's number
	full   float64             // share of cells in use at which a shard grows
	growth float64             // and by how much
	hash   func(uint32) uint64 // of what a reference refers to
}

type shard struct {
	cells []atomic.Uint32
	mask  uint32 // of the reference in a cell
	used  int    // the writer's: cells that are not empty, references and removed
	gone  int    // removed
}

const (
	refBits   = 28
	mostRefs  = 1<<refBits - 2 // all ones stand for a removed one
	leastCell = 8
	leastBits = 16
)

func newTable(shards int, full, growth float64, hash func(uint32) uint64) table {
	t := table{shards: make([]atomic.Pointer[shard], shards), shift: uint(64 - bits.TrailingZeros(uint(shards))), full: full, growth: growth, hash: hash}
	for i := range t.shards {
		t.shards[i].Store(&shard{cells: make([]atomic.Uint32, leastCell), mask: 1<<leastBits - 1})
	}
	return t
}

// probe walks the cells that may refer to what has a certain hash.
type probe struct {
	cells []atomic.Uint32
	at    uint32
	mask  uint32
	tag   uint32
}

func (t *table) probe(hash uint64) probe {
	s := t.shards[hash>>t.shift].Load()
	return probe{cells: s.cells, at: s.home(hash), mask: s.mask, tag: s.tag(hash)}
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
		if ref := cell & p.mask; cell&^p.mask == p.tag && ref != p.mask {
			return ref
		}
	}
}

// home spreads the low half of a hash over any number of cells.
func (s *shard) home(hash uint64) uint32 {
	return uint32(hash & (1<<32 - 1) * uint64(len(s.cells)) >> 32)
}

func (s *shard) tag(hash uint64) uint32 { return uint32(hash>>16) &^ s.mask }

// insert adds a reference that is not there yet.
func (t *table) insert(hash uint64, ref uint32) {
	at := &t.shards[hash>>t.shift]
	s := at.Load()
	if float64(s.used+1) > t.full*float64(len(s.cells)) || ref >= s.mask {
		s = t.rebuild(at, int(float64(s.used-s.gone+1)*t.growth/t.full)+1, ref)
	}
	s.put(hash, ref)
	s.used++
}

func (s *shard) put(hash uint64, ref uint32) {
	at := s.home(hash)
	for s.cells[at].Load() != 0 {
		if at++; at == uint32(len(s.cells)) {
			at = 0
		}
	}
	s.cells[at].Store(s.tag(hash) | ref)
}

// remove takes a reference out.
func (t *table) remove(hash uint64, ref uint32) {
	s := t.shards[hash>>t.shift].Load()
	for at := s.home(hash); s.cells[at].Load() != 0; {
		if s.cells[at].Load() == s.tag(hash)|ref {
			s.cells[at].Store(s.mask) // removed
			s.gone++
			return
		}
		if at++; at == uint32(len(s.cells)) {
			at = 0
		}
	}
}

// reserve makes room for so many references, so that they can come without
// building many shards anew on the way.
func (t *table) reserve(references int) {
	// Shards differ: an even share, and three deviations more.
	share := float64(references) / float64(len(t.shards))
	cells := int((share+3*math.Sqrt(share))/t.full) + 1
	for i := range t.shards {
		if s := t.shards[i].Load(); cells > len(s.cells) {
			t.rebuild(&t.shards[i], cells, uint32(min(references, mostRefs)))
		}
	}
}

// rebuild makes a shard anew with so many cells, for references up to one and
// half as many more, and swaps it in.
func (t *table) rebuild(at *atomic.Pointer[shard], size int, ref uint32) *shard {
	old := at.Load()
	width := max(bits.Len32(ref+ref/2+1), leastBits)
	s := &shard{cells: make([]atomic.Uint32, max(size, leastCell)), mask: 1<<min(width, refBits) - 1, used: old.used - old.gone}
	s.mask = max(s.mask, old.mask)
	for i := range old.cells {
		if ref := old.cells[i].Load() & old.mask; ref != 0 && ref != old.mask {
			s.put(t.hash(ref), ref)
		}
	}
	at.Store(s)
	return s
}

func (t *table) bytes() uint64 {
	n := 0
	for i := range t.shards {
		n += len(t.shards[i].Load().cells)
	}
	return 4 * uint64(n)
}
