package index

import (
	"time"

	"keyledger/domain"
)

// Key is a key's state as a snapshot brings it.
type Key struct {
	Digest       domain.Digest
	ID           domain.KeyID
	Organization string // may be a view of memory that changes after Add has returned
	Name         string // likewise
	Scopes       ScopeSet
	Limit        uint32 // a minute; 0: none
	Quota        domain.Quota
	ExpiresAt    time.Time
	Revoked      bool
	Disabled     bool
	Version      uint64 // of its stream
}

// ScopeSet numbers a set of scopes within one snapshot.
type ScopeSet uint32

// Loading is a snapshot on its way into an index, which goes on answering from what
// it has until Replace. One goroutine fills it.
type Loading struct{ contents *contents }

// Begin begins a snapshot of so many keys, more or less, that shows everything up to a position.
func Begin(history History, position domain.Position, keys int) *Loading {
	c := newContents()
	c.history = history
	c.position.Store(uint64(position))
	c.reserve(keys)
	return &Loading{c}
}

// Position is what Begin was told.
func (l *Loading) Position() domain.Position { return domain.Position(l.contents.position.Load()) }

// Through says that keys were added while they changed: some may show what
// happened after Position, up to here. Of the events up to here, those that a key shows
// already are passed over.
func (l *Loading) Through(end domain.Position) { l.contents.through = end }

// Len counts the keys that were added.
func (l *Loading) Len() int { return l.contents.len() }

// Scopes gives the number of a set of scopes, whose texts it copies.
func (l *Loading) Scopes(scopes domain.Scopes) ScopeSet {
	return ScopeSet(l.contents.profiles.scopes.intern(scopes))
}

// Add takes a key in. No key may come twice.
func (l *Loading) Add(k *Key) error {
	row := key{
		digest: k.Digest, id: k.ID, organization: k.Organization, name: k.Name, scopes: uint32(k.Scopes),
		limit: k.Limit, quota: k.Quota, expires: instant(k.ExpiresAt), version: k.Version,
	}
	if k.Revoked {
		row.flags |= flagRevoked
	}
	if k.Disabled {
		row.flags |= flagDisabled
	}
	if k.Quota.Given() {
		l.contents.defined = append(l.contents.defined, definition{k.ID, k.Quota})
	}
	return l.contents.add(&row)
}

// Replace makes the index answer from a snapshot. It answers once it has applied everything
// up to target, where the log ended when the snapshot was taken. took is what Loaded says then.
func (x *Index) Replace(l *Loading, target domain.Position, took time.Duration) {
	c := l.contents
	x.mu.Lock()
	defer x.mu.Unlock()
	x.loads++
	c.load = x.loads
	x.loadedAt = x.clock()
	x.define(c) // before they are found
	if old := x.contents.Swap(c); old != nil {
		x.keepFormer(old)
		// What was confirmed of the old keys, the new ones may not know yet. So whoever
		// says yes from here on must have asked after that.
		x.leases = leases{}
	}
	x.target, x.keys, x.took = target, c.len(), took
	x.reached(c) // not before: the new contents may be behind the end of the log
	x.announce()
	x.tuneCollector()
	x.logger.Info("the verification index is loaded", "keys", x.keys, "position", x.Position(), "head", target, "took", took.Round(time.Millisecond))
	if c.shadowed > 0 {
		x.logger.Error("keys share a digest: only the one with the smallest id is found", "others", c.shadowed)
	}
}

// Following says whether there are keys to which events can be applied: they were
// loaded, and not distrusted since. They may still be behind where the log ended then.
func (x *Index) Following() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.contents.Load() != nil && x.target != distrusted
}

const distrusted = 1<<64 - 1

// Distrust makes the index stop answering until the next Replace.
func (x *Index) Distrust() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.target = distrusted // applying more does not help
	x.leases = leases{}   // of a history that may be another one
	if c := x.contents.Load(); c != nil {
		c.loaded.Store(false)
		c.until.Store(notReady)
	}
}
