package domain

import (
	"fmt"
	"maps"
	"time"
)

// DefaultRole is a member's role when none is given.
const DefaultRole = "member"

// Organization is an organization's members as its stream tells them. The zero
// Organization has none.
type Organization struct {
	Members map[UserID]Member
	Erased  bool // for good: nobody is a member, and nobody can become one
}

// Member is one membership.
type Member struct {
	Role  string
	Since time.Time
}

// OrganizationCommand is something that may be asked of an organization. The set is sealed.
//
//sumtype:decl
type OrganizationCommand interface{ organizationCommand() }

// AddMember makes a user a member, or changes a member's role.
type AddMember struct {
	Now          time.Time
	Organization OrganizationID
	User         UserID
	Role         string
}

// RemoveMember ends a membership.
type RemoveMember struct {
	Now          time.Time
	Organization OrganizationID
	User         UserID
}

// EraseOrganization destroys whatever names people in an organization. Its keys are
// to be revoked before.
type EraseOrganization struct {
	Now          time.Time
	Organization OrganizationID
	Reason       string // kept in plain for ever
}

// MostErasureReason bounds EraseOrganization.Reason, in bytes.
const MostErasureReason = 200

func (AddMember) organizationCommand()         {}
func (RemoveMember) organizationCommand()      {}
func (EraseOrganization) organizationCommand() {}

// OrganizationIsErased refuses whatever is asked of an organization that was erased.
func OrganizationIsErased() *Error {
	return Errorf(CodeForbidden, "the organization was erased: nothing can be added to it any more")
}

// ParseRole accepts 1 to 32 letters, digits, "_" and "-".
func ParseRole(text string) (string, error) {
	if !isToken(text, 32) {
		return "", Invalid("role", "must be 1 to 32 letters, digits, underscores or hyphens")
	}
	return text, nil
}

// DecideOrganization says which events follow from a command. An empty result
// means that it is so already.
func DecideOrganization(o Organization, command OrganizationCommand) ([]Event, error) {
	switch c := command.(type) {
	case AddMember:
		if o.Erased {
			return nil, OrganizationIsErased()
		}
		if m, ok := o.Members[c.User]; ok && m.Role == c.Role {
			return nil, nil
		}
		return []Event{MemberAdded{Organization: c.Organization, User: c.User, Role: c.Role, At: c.Now}}, nil
	case RemoveMember:
		if _, ok := o.Members[c.User]; !ok {
			return nil, nil
		}
		return []Event{MemberRemoved{Organization: c.Organization, User: c.User, At: c.Now}}, nil
	case EraseOrganization:
		switch {
		case c.Organization == SystemOrganization:
			return nil, Errorf(CodeForbidden, "the service's own organization cannot be erased")
		case len(c.Reason) > MostErasureReason:
			return nil, Invalid("reason", "must be at most %d bytes", MostErasureReason)
		case o.Erased:
			return nil, nil
		}
		return []Event{OrganizationErased{Organization: c.Organization, At: c.Now, Reason: c.Reason}}, nil
	}
	return nil, fmt.Errorf("decide: unknown organization command %T", command)
}

// EvolveOrganization folds one event of the organization's stream. It never
// changes the map of the state that it was given.
func EvolveOrganization(o Organization, event Event) (Organization, error) {
	return OrganizationFold()(o, event)
}

// OrganizationFold gives an EvolveOrganization for one run of events, each on what the one
// before gave: it copies the members once and not for every event.
func OrganizationFold() func(Organization, Event) (Organization, error) {
	mine := false
	return func(o Organization, event Event) (Organization, error) {
		if !mine {
			o.Members = maps.Clone(o.Members)
			mine = true
		}
		return evolveOrganization(o, event)
	}
}

func evolveOrganization(o Organization, event Event) (Organization, error) {
	switch e := event.(type) {
	case MemberAdded:
		if o.Members == nil {
			o.Members = map[UserID]Member{}
		}
		since := e.At
		if m, ok := o.Members[e.User]; ok {
			since = m.Since
		}
		o.Members[e.User] = Member{Role: e.Role, Since: since}
		return o, nil
	case MemberRemoved:
		delete(o.Members, e.User)
		return o, nil
	case OrganizationErased:
		return Organization{Erased: true}, nil
	case KeyCreated, KeyRevoked, RevocationFenced, KeyUsed:
		return o, fmt.Errorf("evolve: %s does not belong to an organization's stream", event.EventName())
	}
	return o, fmt.Errorf("evolve: unknown event %T", event)
}
