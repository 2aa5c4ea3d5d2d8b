package verification

import "time"

// Memory says what an index holds, in bytes.
type Memory struct {
	Entries  uint64
	Tables   uint64
	Names    uint64
	Profiles uint64 // what keys have in common, organizations among it
	Tallies  uint64 // of the keys that are in use
}

// Total adds it up.
func (m Memory) Total() uint64 { return m.Entries + m.Tables + m.Names + m.Profiles + m.Tallies }

// Memory measures the index. Segments count as a whole, though the system gives their pages only
// as they are filled.
func (x *Index) Memory() Memory {
	x.mu.Lock()
	defer x.mu.Unlock()
	c := x.contents.Load()
	if c == nil {
		return Memory{}
	}
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

// Unknown counts the verifications of keys that are not in the ledger.
func (x *Index) Unknown() uint64 {
	var n uint64
	for i := range x.unknown {
		n += x.unknown[i].count.Load()
	}
	return n
}
