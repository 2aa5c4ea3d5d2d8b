package eventstore

import "keyledger/domain"

// An erasure takes effect in the database at once (migrations/0006_erasure.sql). What
// a process keeps of the organization in memory goes when it meets the event: before its own
// callers are answered, and before any of its followers is handed the event.

// notice forgets the organizations that were erased by some of these events.
func (s *Store) notice(events []Recorded) {
	for i := range events {
		if events[i].Type == (domain.OrganizationErased{}).EventName() {
			s.forget(events[i].Organization)
		}
	}
}

// forget drops what is kept of an erased organization: its data keys, its members,
// and what its newest events say.
func (s *Store) forget(organization domain.OrganizationID) {
	s.keyring.forget(organization)
	s.members.forget(organization)
	s.tails[domain.Lifecycle].forget(organization)
}

// forget drops the data keys of an organization, and takes none of them in any more.
func (k *keyring) forget(organization domain.OrganizationID) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.erased[organization] = true
	for id := range k.keys {
		if id.organization == organization {
			delete(k.keys, id)
		}
	}
}

// forget drops the fold of an organization's members. Somebody who is folding them at
// this moment cannot bring them back.
func (c *memberCache) forget(organization domain.OrganizationID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.erased[organization] = true
	delete(c.entries, organization)
}

// forget leaves of an organization's kept events what is not personal, as anybody
// reads them from now on.
func (t *tail) forget(organization domain.OrganizationID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range t.events {
		e := &t.events[i]
		if e.Organization != organization || e.Sealed == nil || e.Event == nil {
			continue
		}
		// What was encoded here can be decoded; should it not, the tail gives up what it keeps.
		event, err := DecodeData(e.Recorded)
		metadata, err2 := decodeMetadata(e.Recorded, personal{})
		if err != nil || err2 != nil {
			t.events, t.bytes = nil, 0
			return
		}
		*e = Event{Recorded: e.Recorded, Event: event, EventMetadata: metadata, Erased: true}
	}
}
