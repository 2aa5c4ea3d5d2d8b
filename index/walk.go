package index

import (
	"encoding/binary"
	"runtime"
	"time"

	"keyledger/domain"
)

// A walk goes through all keys while they change, and holds nobody up. It begins at a
// position (From) and ends at another (Walk.End): each key is as it was at some moment in
// between. Whoever takes the keys over applies the events after From, of
// which those up to the end count only where they are newer than the key: [Loading.Through].

// Row is a key as a walk finds it. Its texts are shared with the index.
type Row struct {
	Digest       domain.Digest
	ID           domain.KeyID
	Organization string
	Place        uint64 // tells organizations apart, like their ids
	Name         string
	Set          ScopeSet // tells sets of scopes apart
	Scopes       domain.Scopes
	Limit        uint32
	Quota        domain.Quota
	ExpiresAt    time.Time
	Revoked      bool
	Disabled     bool
	Version      uint64
	quoted       bool
}

// Cursor says how far a walk has come. It means something to the index that gave it
// alone, for as long as its keys are not loaded anew.
type Cursor struct {
	Contents uint64 // names what was loaded
	From     domain.Position
	Next     uint32
}

// Walk is one going through the keys. One goroutine walks.
type Walk struct {
	index    *Index
	contents *contents
	cursor   Cursor
	last     uint32
}

// Walk begins at the first key, or where a cursor stands. The error is CodeUnavailable
// while the keys are not loaded, and CodeNotFound for a cursor of another index
// or of an earlier load.
func (x *Index) Walk(cursor Cursor) (*Walk, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	c := x.contents.Load()
	if c == nil || !c.loaded.Load() {
		return nil, errNotReady
	}
	switch {
	case cursor == Cursor{}:
		cursor = Cursor{Contents: c.named, From: domain.Position(c.position.Load()), Next: 1}
	case cursor.Contents != c.named || cursor.Next == 0:
		return nil, domain.Errorf(domain.CodeNotFound, "what the cursor stands in is not here any more: begin anew")
	}
	// Keys that come later come by events that are newer than From.
	return &Walk{index: x, contents: c, cursor: cursor, last: c.count}, nil
}

// History is the keys' one, and Len how many there are about.
func (w *Walk) History() History { return w.contents.history }
func (w *Walk) Len() int         { return int(w.last) }

// Cursor is where the walk stands.
func (w *Walk) Cursor() Cursor { return w.cursor }

// Next fills rows and says how many; 0 at the end.
func (w *Walk) Next(rows []Row) int {
	n := 0
	for ; n < len(rows) && w.cursor.Next <= w.last; w.cursor.Next++ {
		if r := &rows[n]; w.contents.row(w.cursor.Next, r) {
			if r.quoted {
				r.Quota = w.index.quotas.Load().of(r.ID)
			}
			n++
		}
	}
	return n
}

// End is the position at which the walk ended. The error is CodeUnavailable when
// the keys were loaded anew meanwhile, or are not to be trusted any more.
func (w *Walk) End() (domain.Position, error) {
	// A key changes before its position does: whoever changes it now is waited for.
	w.index.mu.Lock()
	defer w.index.mu.Unlock()
	position := domain.Position(w.contents.position.Load())
	if w.index.contents.Load() != w.contents || !w.contents.loaded.Load() {
		return 0, errNotReady
	}
	return position, nil
}

// row reads a key, unless its place is empty.
func (c *contents) row(ref uint32, row *Row) bool {
	e := c.entry(ref)
	for {
		state := e[7].Load()
		if state == 0 {
			if e.digest() == (digestWords{}) {
				return false // an empty place
			}
			runtime.Gosched() // it changes at this moment
			continue
		}
		for i := range 4 {
			binary.LittleEndian.PutUint64(row.Digest[8*i:], e[i].Load())
		}
		row.ID = e.id()
		detail := e[6].Load()
		if e[7].Load() != state {
			runtime.Gosched()
			continue
		}
		t := c.profiles.at(uint32(state >> offsetBits)).traits()
		scopes := c.profiles.scopes.at(t.scopes)
		row.Organization, row.Place = c.profiles.organization(t.organization), t.organization
		row.Name = c.names.text(state&(1<<offsetBits-1), uint32(detail>>instantBits))
		row.Set, row.Scopes = ScopeSet(t.scopes), scopes.scopes
		row.Limit, row.ExpiresAt, row.Version = t.limit, moment(detail&instantMask), t.version
		row.Revoked, row.Disabled = t.flags&flagRevoked != 0, t.flags&flagDisabled != 0
		row.quoted, row.Quota = t.flags&flagQuota != 0, domain.Quota{}
		return true
	}
}

// OrganizationOf says whose key it is; false when there is no such key.
func (x *Index) OrganizationOf(id domain.KeyID) (domain.OrganizationID, bool) {
	c := x.contents.Load()
	if c == nil {
		return "", false
	}
	for p := c.byID.probe(c.seed.id(id)); ; {
		ref := p.next()
		if ref == 0 {
			return "", false
		}
		e := c.entry(ref)
		for state := e[7].Load(); state != 0 && e.id() == id; state = e[7].Load() {
			if e[7].Load() == state {
				place := c.profiles.at(uint32(state >> offsetBits)).traits().organization
				return domain.OrganizationID(c.profiles.organization(place)), true
			}
		}
	}
}
