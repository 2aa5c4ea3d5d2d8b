package index

import (
	"bytes"
	"sync/atomic"
	"unicode/utf8"

	"keyledger/domain"
)

// contents is all that an index knows of one history of one ledger. One goroutine
// changes it; any number read.
type contents struct {
	// Verdicts may be given before this moment, in nanoseconds since the index's base, while
	// the wall clock is no more than wall nanoseconds ahead of that: lease.go.
	until    atomic.Int64
	wall     atomic.Int64
	position atomic.Uint64 // everything up to here is applied
	loaded   atomic.Bool   // and that is as far as the log went when it was loaded, or further
	named    uint64        // tells contents apart, for cursors
	seed     seed
	history  History
	load     uint8 // counts snapshots
	entries  slab[[segmentSize]entry]
	byDigest table
	names    arena
	profiles *profiles

	inUse    slab[[segmentSize]number] // the tally of each entry, 0 for none
	tallies  tallies
	refusals [refusalStripes]refusalStripe

	// The writer's own.
	through  domain.Position // up to here events may show in the keys already
	byID     table
	count    uint32       // references given out
	free     []uint32     // those given back
	defined  []definition // quotas of the keys that were loaded
	shadowed int          // keys that are not found, since their digest is another key's
}

// key is a key's state as the writer hands it over.
type key struct {
	digest       domain.Digest
	id           domain.KeyID
	organization string
	name         string
	scopes       uint32
	limit        uint32
	quota        domain.Quota
	expires      uint64 // instant
	flags        uint8
	version      uint64
}

// definition is a key's quota, until the index has a place for it.
type definition struct {
	key   domain.KeyID
	quota domain.Quota
}

const shards = 512

func newContents() *contents {
	c := &contents{seed: newSeed(), named: newSeed()[0]}
	c.until.Store(notReady)
	c.wall.Store(notReady)
	c.profiles = newProfiles(&c.seed)
	c.byDigest = newTable(shards, 0.88, 1.18, func(ref uint32) uint64 {
		d := c.entry(ref).digest()
		return c.seed.digest(&d)
	})
	// Only the writer looks here, so it may be fuller.
	c.byID = newTable(shards, 0.94, 1.1, func(ref uint32) uint64 { return c.seed.id(c.entry(ref).id()) })
	for i := range c.refusals {
		c.refusals[i].counts = map[refusalKey]refusal{}
	}
	return c
}

func (c *contents) entry(ref uint32) *entry {
	return &c.entries.segment(ref >> segmentBits)[ref&(segmentSize-1)]
}

// find looks a digest up. It gives the reference, 0 when there is none.
func (c *contents) find(d *digestWords, f *found) uint32 {
	for p := c.byDigest.probe(c.seed.digest(d)); ; {
		ref := p.next()
		if ref == 0 || c.entry(ref).read(d, f) {
			return ref
		}
	}
}

// lookUp finds a key by its id, for the writer.
func (c *contents) lookUp(id domain.KeyID) uint32 {
	for p := c.byID.probe(c.seed.id(id)); ; {
		ref := p.next()
		if ref == 0 || c.entry(ref).id() == id {
			return ref
		}
	}
}

// add takes a key in whose id is not there yet.
//
// Imported digests can repeat. Then the key with the smaller id, which is the
// older one, is found; the other one is only remembered, so that its later events
// have a place. Every node comes to the same result, whether it has loaded the keys or
// followed the log, and nobody can take over a key by importing its digest.
func (c *contents) add(k *key) error {
	organization, err := c.profiles.organizationPlace(k.organization)
	if err != nil {
		return err
	}
	if k.quota.Given() {
		k.flags |= flagQuota
	}
	profile, err := c.profiles.intern(traits{
		organization: organization, scopes: k.scopes, limit: min(k.limit, recentMask), flags: k.flags, version: k.version,
	})
	if err != nil {
		return err
	}
	text := clip(k.name)
	name, err := c.names.add(text)
	if err != nil {
		return err
	}
	ref, err := c.reference()
	if err != nil {
		return err
	}
	d := wordsOf(&k.digest)
	hash := c.seed.digest(&d)
	var other found
	earlier := c.find(&d, &other)
	c.entry(ref).write(&d, &found{id: k.id, name: name, size: uint32(len(text)), expires: k.expires, profile: profile})
	c.byID.insert(c.seed.id(k.id), ref)
	if earlier != 0 {
		c.shadowed++
		if bytes.Compare(k.id[:], other.id[:]) > 0 {
			return nil
		}
		defer c.byDigest.remove(hash, earlier)
	}
	c.byDigest.insert(hash, ref) // last: now it can be found
	return nil
}

// clip shortens a name that is longer than any that domain.ParseName lets pass.
func clip(name string) string {
	if len(name) <= mostNameSize {
		return name
	}
	end := mostNameSize
	for end > 0 && !utf8.RuneStart(name[end]) {
		end--
	}
	return name[:end]
}

func (c *contents) reference() (uint32, error) {
	if n := len(c.free); n > 0 {
		ref := c.free[n-1]
		c.free = c.free[:n-1]
		return ref, nil
	}
	ref := c.count + 1
	if err := growTo(&c.entries, ref); err != nil {
		return 0, err
	}
	if err := growTo(&c.inUse, ref); err != nil {
		return 0, err
	}
	c.count = ref
	return ref, nil
}

// change gives a key another profile.
func (c *contents) change(ref uint32, change func(*traits)) error {
	e := c.entry(ref)
	t := c.profiles.at(e.profile()).traits()
	change(&t)
	profile, err := c.profiles.intern(t)
	if err != nil {
		return err
	}
	e.setProfile(profile)
	return nil
}

// forgetNames makes the keys of an organization nameless. It looks at every key, which
// an erasure is seldom enough for; verdicts go on meanwhile.
func (c *contents) forgetNames(organization string) {
	place, ok := c.profiles.findOrganization(organization)
	if !ok {
		return
	}
	for ref := uint32(1); ref <= c.count; ref++ {
		if e := c.entry(ref); e[7].Load() != 0 && c.profiles.at(e.profile()).traits().organization == place {
			e.forgetName()
		}
	}
}

// remove forgets a revoked key: from now on it is not found. It says false while
// the key has a tally, which is for some time after its last use.
func (c *contents) remove(ref uint32) bool {
	e := c.entry(ref)
	if c.number(ref).Load() != 0 {
		return false
	}
	d := e.digest()
	c.byDigest.remove(c.seed.digest(&d), ref)
	c.byID.remove(c.seed.id(e.id()), ref)
	// Who has found the reference already sees a digest that does not match, or that
	// the last word changed, and never another key's words beside this one's.
	e.clear()
	c.free = append(c.free, ref)
	return true
}

// reserve makes room for so many keys.
func (c *contents) reserve(keys int) {
	c.byDigest.reserve(keys)
	c.byID.reserve(keys)
}

func (c *contents) len() int { return int(c.count) - len(c.free) }
