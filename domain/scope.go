package domain

import (
	"slices"
	"strings"
)

// Scope is one permission: read, write, admin, verify, a resource:action, all
// actions of a resource (resource:*), or everything (*).
type Scope string

const (
	ScopeRead   Scope = "read"
	ScopeWrite  Scope = "write"
	ScopeAdmin  Scope = "admin"
	ScopeVerify Scope = "verify"
	ScopeAll    Scope = "*"

	ScopeSystemVerify Scope = "system:verify"
	ScopeSystemEvents Scope = "system:events"
	ScopeSystemAudit  Scope = "system:audit"
)

const (
	mostScopes     = 64
	mostScopeBytes = 64
	systemResource = "system"
)

// Scopes is a set, kept in the order in which it was given.
type Scopes []Scope

// ParseScopes checks every scope and drops repetitions. An empty list is an
// error: what it means differs between dialects, so each says it explicitly.
func ParseScopes(texts []string) (Scopes, error) {
	if len(texts) == 0 {
		return nil, Invalid("scopes", "must name at least one scope")
	}
	if len(texts) > mostScopes {
		return nil, Invalid("scopes", "must name at most %d scopes", mostScopes)
	}
	scopes := make(Scopes, 0, len(texts))
	for _, text := range texts {
		if !isScope(text) {
			return nil, Invalid("scopes", "must each be read, write, admin, verify, * or of the form resource:action")
		}
		if !slices.Contains(scopes, Scope(text)) {
			scopes = append(scopes, Scope(text))
		}
	}
	return scopes, nil
}

func isScope(text string) bool {
	switch Scope(text) {
	case ScopeRead, ScopeWrite, ScopeAdmin, ScopeVerify, ScopeAll:
		return true
	}
	resource, action, found := strings.Cut(text, ":")
	return found && len(text) <= mostScopeBytes && isToken(resource, mostScopeBytes) && (action == "*" || isToken(action, mostScopeBytes))
}

// Imply says whether a holder of s may do what wanted allows. admin implies
// read and write; x:* implies x:y; * implies everything but system:*. Who may hold all keys,
// to verify them (system:verify), may also ask about them (verify).
func (s Scopes) Imply(wanted Scope) bool {
	resource, _, qualified := strings.Cut(string(wanted), ":")
	for _, have := range s {
		switch {
		case have == wanted:
			return true
		case have == ScopeAll:
			if resource != systemResource || !qualified {
				return true
			}
		case have == ScopeAdmin:
			if wanted == ScopeRead || wanted == ScopeWrite {
				return true
			}
		case wanted == ScopeVerify && (have == ScopeSystemVerify || have == systemResource+":*"):
			return true
		case qualified && len(have) == len(resource)+2 && strings.HasSuffix(string(have), ":*") && strings.HasPrefix(string(have), resource):
			return true
		}
	}
	return false
}

// ImplyAll says whether every scope of wanted is implied.
func (s Scopes) ImplyAll(wanted Scopes) bool {
	for _, w := range wanted {
		if !s.Imply(w) {
			return false
		}
	}
	return true
}

// Strings gives the scopes as texts, in their order; never nil.
func (s Scopes) Strings() []string {
	texts := make([]string, len(s))
	for i, scope := range s {
		texts[i] = string(scope)
	}
	return texts
}
