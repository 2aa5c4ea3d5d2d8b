package index

import (
	"math/rand/v2"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

func TestATableHoldsWhatAMapHolds(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		hashes := map[uint32]uint64{} // by reference
		table := newTable(1<<rapid.IntRange(0, 3).Draw(t, "shards"), 0.88, 1.18, func(ref uint32) uint64 { return hashes[ref] })
		// Few different hashes, so that shards and homes collide.
		width := rapid.IntRange(1, 63).Draw(t, "width")
		for range rapid.IntRange(1, 300).Draw(t, "steps") {
			ref := rapid.OneOf(rapid.Uint32Range(1, 50), rapid.Uint32Range(1, mostRefs)).Draw(t, "ref")
			hash, known := hashes[ref]
			switch {
			case !known:
				hashes[ref] = rapid.Uint64().Draw(t, "hash") << width
				table.insert(hashes[ref], ref)
			case rapid.Bool().Draw(t, "remove"):
				table.remove(hash, ref)
				delete(hashes, ref)
			default:
				table.reserve(rapid.IntRange(0, 500).Draw(t, "room"))
			}
		}
		for ref, hash := range hashes {
			if !contains(&table, hash, ref) {
				t.Fatalf("reference %d of hash %x is missing", ref, hash)
			}
		}
		seen := 0
		for hash := range invert(hashes) {
			for p := table.probe(hash); ; seen++ {
				ref := p.next()
				if ref == 0 {
					break
				}
				if _, known := hashes[ref]; !known {
					t.Fatalf("reference %d was removed", ref)
				}
			}
		}
	})
}

func invert(hashes map[uint32]uint64) map[uint64]bool {
	set := map[uint64]bool{}
	for _, hash := range hashes {
		set[hash] = true
	}
	return set
}

func contains(t *table, hash uint64, ref uint32) bool {
	for p := t.probe(hash); ; {
		switch p.next() {
		case ref:
			return true
		case 0:
			return false
		}
	}
}

// The writer stands still in the middle of building a shard anew, for as long as
// the readers like.
func TestReadersDoNotWaitForATableThatGrows(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(7, 8))
	hashes := make([]uint64, 101)
	for i := range hashes {
		hashes[i] = random.Uint64()
	}
	inside, leave := make(chan struct{}), make(chan struct{})
	var once sync.Once
	var grown bool
	table := newTable(1, 0.88, 1.18, func(ref uint32) uint64 {
		if grown {
			once.Do(func() { close(inside); <-leave })
		}
		return hashes[ref]
	})
	for ref := uint32(1); ref <= 100; ref++ {
		table.insert(hashes[ref], ref)
	}
	grown = true
	done := make(chan struct{})
	go func() { table.reserve(10_000); close(done) }()
	<-inside
	for range 1000 {
		for ref := uint32(1); ref <= 100; ref++ {
			if !contains(&table, hashes[ref], ref) {
				t.Fatalf("reference %d is missing while the table grows", ref)
			}
		}
	}
	close(leave)
	<-done
	for ref := uint32(1); ref <= 100; ref++ {
		if !contains(&table, hashes[ref], ref) {
			t.Fatalf("reference %d is missing after the table has grown", ref)
		}
	}
}
