package index

import (
	"errors"
	"fmt"

	"keyledger/domain"
)

// Event is what the fold needs of an event of the lifecycle lane.
type Event struct {
	History
	Position domain.Position
	Version  uint64 // in the key's stream, from 1
	Event    domain.Event
}

// History names one epoch of one ledger: positions of two histories say nothing
// about each other.
type History struct {
	Ledger domain.ID
	Epoch  uint32
}

// What Apply refuses. Neither goes away by trying again, only by loading anew.
var (
	// ErrGap says that an event does not follow the one before it.
	ErrGap = errors.New("the events have a gap")
	// ErrForeign says that an event, or the snapshot, belongs to another ledger or another epoch.
	ErrForeign = errors.New("the events belong to another history of the log")
	// ErrBroken says that an event cannot be folded.
	ErrBroken = errors.New("the event cannot be folded")
)

// Apply folds events of the lifecycle lane: the next ones, in order, without a gap.
func (x *Index) Apply(events []Event) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	defer x.announce()
	return x.apply(events)
}

func (x *Index) apply(events []Event) error {
	c := x.contents.Load()
	if c == nil {
		return fmt.Errorf("%w: nothing is loaded", ErrGap)
	}
	for i := range events {
		e := &events[i]
		if next := c.position.Load() + 1; uint64(e.Position) != next {
			return fmt.Errorf("%w: position %d came where %d was next", ErrGap, e.Position, next)
		}
		// Events of an earlier epoch are still history when the log says so; a later
		// epoch may have handed out positions again that were applied here.
		if e.Ledger != c.history.Ledger || e.Epoch > c.history.Epoch {
			return fmt.Errorf("%w: epoch %d of ledger %s, after epoch %d of %s", ErrForeign, e.Epoch, e.Ledger.UUID(), c.history.Epoch, c.history.Ledger.UUID())
		}
		shadowed := c.shadowed
		if err := x.defineNew(c, e); err != nil {
			return fmt.Errorf("%w: %T at position %d: %w", ErrBroken, e.Event, e.Position, err)
		}
		if err := c.fold(e); err != nil {
			return fmt.Errorf("%w: %T at position %d: %w", ErrBroken, e.Event, e.Position, err)
		}
		if c.shadowed != shadowed {
			x.logger.Error("two keys have the same digest: only the one with the smaller id is found", "position", e.Position)
		}
		// Published after the entry: whoever sees the position sees the change.
		c.position.Store(uint64(e.Position))
	}
	if c.count>>segmentBits != x.tuned {
		x.tuneCollector()
	}
	x.reached(c)
	return nil
}

// reached makes the index ready once it has come to where the log ended when it
// was loaded: from then on it knows all that was acknowledged before it began. The caller holds mu.
func (x *Index) reached(c *contents) {
	if c.position.Load() >= uint64(x.target) {
		c.loaded.Store(true)
	}
	x.settle(c)
}

// fold is the index's own domain.EvolveKey. It applies an event only to the state
// that the event was decided at.
func (c *contents) fold(e *Event) error {
	switch event := e.Event.(type) {
	case domain.KeyCreated:
		if e.Version != 1 {
			return fmt.Errorf("key %s is created at version %d", event.Key, e.Version)
		}
		if c.lookUp(event.Key) != 0 {
			if e.Position <= c.through {
				return nil
			}
			return fmt.Errorf("key %s is created twice", event.Key)
		}
		return c.add(&key{
			digest: event.Digest, id: event.Key, organization: string(event.Organization), name: event.Name,
			scopes: c.profiles.scopes.intern(event.Scopes), limit: event.RateLimit, quota: event.Quota, expires: instant(event.ExpiresAt), version: e.Version,
		})
	case domain.KeyRevoked:
		ref, err := c.next(event.Key, e)
		if ref == 0 || err != nil {
			return err
		}
		return c.change(ref, func(t *traits) {
			t.flags |= flagRevoked
			t.version = e.Version
		})
	case domain.RevocationFenced:
		ref, err := c.next(event.Key, e)
		if ref == 0 || err != nil {
			return err
		}
		return c.change(ref, func(t *traits) { t.version = e.Version })
	case domain.OrganizationErased:
		c.forgetNames(string(event.Organization))
		return nil
	case domain.MemberAdded, domain.MemberRemoved:
		return nil // nothing that a verdict depends on
	case domain.KeyUsed:
		return errors.New("a use does not belong to the lifecycle lane")
	}
	return fmt.Errorf("unknown event %T", e.Event)
}

// next finds the key that an event changes, and refuses an event that does not
// come right after what the entry holds. It gives 0 for one that the entry shows
// already, since it was read while it changed.
func (c *contents) next(id domain.KeyID, e *Event) (uint32, error) {
	ref := c.lookUp(id)
	if ref == 0 {
		return 0, fmt.Errorf("key %s is changed before it is created", id)
	}
	has := c.profiles.at(c.entry(ref).profile()).traits().version
	switch {
	case e.Position <= c.through && e.Version <= has:
		return 0, nil
	case e.Version != has+1:
		return 0, fmt.Errorf("version %d of key %s came after version %d", e.Version, id, has)
	}
	return ref, nil
}

// Forget removes keys that were revoked long ago; from then on they are not found.
// It says how many: not those that are not revoked, and none that was used in the
// last minutes.
func (x *Index) Forget(ids ...domain.KeyID) int {
	x.mu.Lock()
	defer x.mu.Unlock()
	c := x.contents.Load()
	if c == nil {
		return 0
	}
	n := 0
	for _, id := range ids {
		ref := c.lookUp(id)
		if ref != 0 && c.profiles.at(c.entry(ref).profile()).traits().flags&flagRevoked != 0 && c.remove(ref) {
			n++
		}
	}
	return n
}
