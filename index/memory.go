package index

import (
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// Memory says what an index holds, in bytes.
type Memory struct {
	Entries  uint64
	Tables   uint64
	Names    uint64
	Profiles uint64 // what keys have in common, organizations among it
	Tallies  uint64 // of the keys that are in use
	Quotas   uint64 // of the keys that have one
}

// Total adds it up.
func (m Memory) Total() uint64 {
	return m.Entries + m.Tables + m.Names + m.Profiles + m.Tallies + m.Quotas
}

// Memory measures the index. Segments count as a whole, though the system gives their pages only
// as they are filled.
func (x *Index) Memory() Memory {
	x.mu.Lock()
	defer x.mu.Unlock()
	if c := x.contents.Load(); c != nil {
		m := c.memory()
		if qs := x.quotas.Load(); qs != nil {
			m.Quotas = qs.all.bytes() + qs.byKey.bytes()
		}
		return m
	}
	return Memory{}
}

func (c *contents) memory() Memory {
	return Memory{
		Entries:  c.entries.bytes() + c.inUse.bytes(),
		Tables:   c.byDigest.bytes() + c.byID.bytes(),
		Names:    c.names.chunks.bytes(),
		Profiles: c.profiles.bytes(),
		Tallies:  c.tallies.all.bytes(),
	}
}

// Loaded says how long the last load took, and how many keys it brought.
func (x *Index) Loaded() (took time.Duration, keys int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.took, x.keys
}

// Shadowed counts the keys that are not found, since an older key has the same digest.
func (x *Index) Shadowed() int {
	x.mu.Lock()
	defer x.mu.Unlock()
	if c := x.contents.Load(); c != nil {
		return c.shadowed
	}
	return 0
}

// Unknown counts the verifications of keys that are not in the ledger.
func (x *Index) Unknown() uint64 {
	var n uint64
	for i := range x.unknown {
		n += x.unknown[i].count.Load()
	}
	return n
}

// leastGarbage is how much garbage may always gather between two collections.
const leastGarbage = 64 << 20

// tuneCollector keeps the garbage that may gather between two collections in
// proportion to the rest of the program. The collector would let it grow with
// the index, to as much again, though there is nothing to collect in it and
// looking after it costs nothing. The caller holds mu.
func (x *Index) tuneCollector() {
	if x.percent <= 0 {
		return
	}
	c := x.contents.Load()
	held := c.memory().Total()
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(live)
	rest := uint64(leastGarbage)
	if live[0].Value.Kind() == metrics.KindUint64 {
		rest = max(rest, live[0].Value.Uint64()-min(held, live[0].Value.Uint64()))
	}
	debug.SetGCPercent(max(1, int(uint64(x.percent)*rest/(held+rest))))
	x.tuned = c.count >> segmentBits
}
