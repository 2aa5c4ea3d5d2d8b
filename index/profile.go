package index

import (
	"sync/atomic"

	"keyledger/domain"
)

// profiles keeps what keys have in common, once for all of them: organization,
// scopes, limit, whether they are revoked or disabled, and the version of their
// stream. Most keys of an organization share one of a few. A profile never
// changes and is never removed; a key that changes gets another one.
//
// One goroutine adds; any number read.
type profiles struct {
	seed    *seed
	scopes  scopeSets
	all     slab[[segmentSize]profile]
	count   uint32
	byValue table

	organizations slab[[segmentSize]atomic.Uint64] // their places
	known         uint32
	byName        table
	texts         arena
}

// profile in words: the organization's place and the flags; limit and scopes; version.
type profile [3]atomic.Uint64

const (
	flagRevoked  = 1
	flagDisabled = 2
	flagQuota    = 4

	// A place is an offset into an arena, and a length above it.
	placeBits = offsetBits + 8
	placeMask = 1<<placeBits - 1
)

// traits are a profile's values.
type traits struct {
	organization uint64 // its place
	scopes       uint32
	limit        uint32
	flags        uint8
	version      uint64
}

func newProfiles(s *seed) *profiles {
	p := &profiles{seed: s, scopes: newScopeSets()}
	p.byValue = newTable(64, 0.88, 1.2, func(ref uint32) uint64 { return p.at(ref).traits().hash(s) })
	p.byName = newTable(64, 0.88, 1.2, func(ref uint32) uint64 {
		return s.text(p.organization(p.place(ref)))
	})
	return p
}

func (p *profiles) at(ref uint32) *profile {
	return &p.all.segment(ref >> segmentBits)[ref&(segmentSize-1)]
}

func (p *profiles) place(ref uint32) uint64 {
	return p.organizations.segment(ref >> segmentBits)[ref&(segmentSize-1)].Load()
}

func (p *profiles) organization(place uint64) string {
	return p.texts.text(place&(1<<offsetBits-1), uint32(place>>offsetBits))
}

func (p *profile) traits() traits {
	word, second := p[0].Load(), p[1].Load()
	return traits{
		organization: word & placeMask, flags: uint8(word >> placeBits),
		scopes: uint32(second), limit: uint32(second >> 32), version: p[2].Load(),
	}
}

func (t traits) hash(s *seed) uint64 {
	return s.pair(t.organization<<8|uint64(t.flags)^t.version<<40, uint64(t.limit)<<32|uint64(t.scopes))
}

// intern gives the profile of these traits, an old one where there is one.
func (p *profiles) intern(t traits) (uint32, error) {
	hash := t.hash(p.seed)
	for c := p.byValue.probe(hash); ; {
		ref := c.next()
		if ref == 0 {
			break
		}
		if p.at(ref).traits() == t {
			return ref, nil
		}
	}
	ref := p.count + 1
	if err := growTo(&p.all, ref); err != nil {
		return 0, err
	}
	p.count = ref
	words := p.at(ref)
	words[0].Store(t.organization | uint64(t.flags)<<placeBits)
	words[1].Store(uint64(t.limit)<<32 | uint64(t.scopes))
	words[2].Store(t.version)
	p.byValue.insert(hash, ref)
	return ref, nil
}

// organizationPlace gives the place of an organization's id, which says as much
// as the id: each id has one.
func (p *profiles) organizationPlace(id string) (uint64, error) {
	if place, ok := p.findOrganization(id); ok {
		return place, nil
	}
	hash := p.seed.text(id)
	if id == "" || len(id) >= 1<<(placeBits-offsetBits) {
		return 0, domain.Errorf(domain.CodeInternal, "an organization's id of %d bytes does not fit into the verification index", len(id))
	}
	offset, err := p.texts.add(id)
	if err != nil {
		return 0, err
	}
	ref := p.known + 1
	if err := growTo(&p.organizations, ref); err != nil {
		return 0, err
	}
	p.known = ref
	place := offset | uint64(len(id))<<offsetBits
	p.organizations.segment(ref >> segmentBits)[ref&(segmentSize-1)].Store(place)
	p.byName.insert(hash, ref)
	return place, nil
}

// findOrganization gives the place of an organization's id that is known.
func (p *profiles) findOrganization(id string) (place uint64, ok bool) {
	for c := p.byName.probe(p.seed.text(id)); ; {
		ref := c.next()
		if ref == 0 {
			return 0, false
		}
		if place := p.place(ref); p.organization(place) == id {
			return place, true
		}
	}
}

func (p *profiles) bytes() uint64 {
	return p.all.bytes() + p.organizations.bytes() + p.texts.chunks.bytes() + p.byValue.bytes() + p.byName.bytes()
}
