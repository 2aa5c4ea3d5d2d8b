package index

import (
	"strings"
	"sync/atomic"

	"keyledger/domain"
)

// scopeSets keeps every distinct set of scopes once, with what it implies worked
// out for the scopes that are asked for most. There are as many as the keys'
// creators thought of, few even among millions of keys.
//
// One goroutine adds; any number read.
type scopeSets struct {
	sets   atomic.Pointer[[]scopeSet]
	byText map[string]uint32
	buffer []byte
}

type scopeSet struct {
	scopes  domain.Scopes
	implied uint8 // one bit for each plain scope
}

// plain numbers the scopes that routes ask for.
func plain(s domain.Scope) (bit uint8, ok bool) {
	switch s {
	case domain.ScopeRead:
		return 1 << 0, true
	case domain.ScopeWrite:
		return 1 << 1, true
	case domain.ScopeAdmin:
		return 1 << 2, true
	case domain.ScopeVerify:
		return 1 << 3, true
	}
	return 0, false
}

func newScopeSets() scopeSets {
	return scopeSets{byText: map[string]uint32{}}
}

// intern gives a set's number. The order of the scopes is part of the set, since
// clients see it.
func (s *scopeSets) intern(scopes domain.Scopes) uint32 {
	s.buffer = s.buffer[:0]
	for _, scope := range scopes {
		s.buffer = append(append(s.buffer, scope...), ' ') // no scope contains a space
	}
	if number, ok := s.byText[string(s.buffer)]; ok {
		return number
	}
	set := scopeSet{scopes: make(domain.Scopes, len(scopes))}
	for i, scope := range scopes {
		set.scopes[i] = domain.Scope(strings.Clone(string(scope)))
	}
	for _, scope := range []domain.Scope{domain.ScopeRead, domain.ScopeWrite, domain.ScopeAdmin, domain.ScopeVerify} {
		if bit, ok := plain(scope); ok && scopes.Imply(scope) {
			set.implied |= bit
		}
	}
	var sets []scopeSet
	if old := s.sets.Load(); old != nil {
		sets = *old
	}
	number := uint32(len(sets))
	// A reader of the old slice never looks behind its end, so the array may be shared.
	sets = append(sets, set)
	s.sets.Store(&sets)
	s.byText[string(s.buffer)] = number
	return number
}

func (s *scopeSets) at(number uint32) *scopeSet { return &(*s.sets.Load())[number] }

// implyAll is what domain.Scopes.ImplyAll says of the set.
func (s *scopeSet) implyAll(required domain.Scopes) bool {
	for _, scope := range required {
		if bit, ok := plain(scope); ok {
			if s.implied&bit == 0 {
				return false
			}
		} else if !s.scopes.Imply(scope) {
			return false
		}
	}
	return true
}
