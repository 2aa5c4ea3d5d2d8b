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

func (AddMember) organizationCommand()    {}
func (RemoveMember) organizationCommand() {}

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
		if m, ok := o.Members[c.User]; ok && m.Role == c.Role {
			return nil, nil
		}
		return []Event{MemberAdded{Organization: c.Organization, User: c.User, Role: c.Role, At: c.Now}}, nil
	case RemoveMember:
		if _, ok := o.Members[c.User]; !ok {
			return nil, nil
		}
		return []Event{MemberRemoved{Organization: c.Organization, User: c.User, At: c.Now}}, nil
	}
	return nil, fmt.Errorf("decide: unknown organization command %T", command)
}

// EvolveOrganization folds one event of the organization's stream. It never
// changes the map of the state that it was given.
func EvolveOrganization(o Organization, event Event) (Organization, error) {
	switch e := event.(type) {
	case MemberAdded:
		members := maps.Clone(o.Members)
		if members == nil {
			members = map[UserID]Member{}
		}
		since := e.At
		if m, ok := members[e.User]; ok {
			since = m.Since
		}
		members[e.User] = Member{Role: e.Role, Since: since}
		return Organization{Members: members}, nil
	case MemberRemoved:
		members := maps.Clone(o.Members)
		delete(members, e.User)
		return Organization{Members: members}, nil
	case KeyCreated, KeyRevoked, RevocationFenced, KeyUsed:
		return o, fmt.Errorf("evolve: %s does not belong to an organization's stream", event.EventName())
	}
	return o, fmt.Errorf("evolve: unknown event %T", event)
}
