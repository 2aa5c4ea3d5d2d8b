package main

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"keyledger/domain"
	"keyledger/internal/backing"
)

func (p *program) members() *cobra.Command {
	return p.family("members", "Say who may act for an organization",
		p.command(&cobra.Command{
			Use: "add", Short: "Make a user a member of an organization, or change the role",
			Example: "  keyledger members add --organization org_abc123 --user user_1 --role admin",
		}, p.addMember, []string{"organization", "user", "role", "json"}, ledgerFlags),
		p.command(&cobra.Command{
			Use: "remove", Short: "End a membership",
		}, p.removeMember, []string{"organization", "user", "json"}, ledgerFlags),
		p.command(&cobra.Command{
			Use: "list", Short: "List an organization's members",
		}, p.listMembers, []string{"organization", "json"}, ledgerFlags),
	)
}

func (p *program) addMember(ctx context.Context) error {
	role, err := domain.ParseRole(p.config.Role)
	if err != nil {
		return usageError{err}
	}
	return p.changeMembers(ctx, domain.AddMember{Now: now(), Organization: p.config.Organization, User: p.config.User, Role: role},
		"%s is a member of %s now, with the role "+role+".", "%s is a member of %s with this role already.")
}

func (p *program) removeMember(ctx context.Context) error {
	return p.changeMembers(ctx, domain.RemoveMember{Now: now(), Organization: p.config.Organization, User: p.config.User},
		"%s is no member of %s any more.", "%s is no member of %s anyway.")
}

func (p *program) changeMembers(ctx context.Context, command domain.OrganizationCommand, changed, unchanged string) (err error) {
	switch {
	case p.config.Organization == "":
		return need("organization", "KEYLEDGER_ORGANIZATION")
	case p.config.User == "":
		return need("user", "KEYLEDGER_USER")
	}
	l, err := p.openLedger(ctx, backing.Needs{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.close(ctx)) }()
	organization, receipt, err := l.store.ChangeOrganization(ctx, consoleRequest(), p.config.Organization, command)
	if err != nil {
		return err
	}
	said := changed
	if !receipt.Changed {
		said = unchanged
	}
	p.say(said, p.config.User, p.config.Organization)
	if p.config.JSON {
		return p.printMembers(organization)
	}
	return nil
}

func (p *program) listMembers(ctx context.Context) (err error) {
	if p.config.Organization == "" {
		return need("organization", "KEYLEDGER_ORGANIZATION")
	}
	l, err := p.openLedger(ctx, backing.Needs{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.close(ctx)) }()
	organization, _, err := l.store.Organization(ctx, p.config.Organization)
	if err != nil {
		return err
	}
	return p.printMembers(organization)
}

// member is a membership as --json prints it.
type member struct {
	User  domain.UserID `json:"user"`
	Role  string        `json:"role"`
	Since time.Time     `json:"since"`
}

func (p *program) printMembers(o domain.Organization) error {
	members := make([]member, 0, len(o.Members))
	for user, m := range maps.All(o.Members) {
		members = append(members, member{user, m.Role, m.Since})
	}
	slices.SortFunc(members, func(a, b member) int { return cmp.Compare(a.User, b.User) })
	if p.config.JSON {
		return p.printJSON(members)
	}
	rows := [][]string{{"USER", "ROLE", "SINCE"}}
	for _, m := range members {
		rows = append(rows, []string{string(m.User), m.Role, m.Since.Format(time.RFC3339)})
	}
	return p.printTable(rows)
}

// now is the moment as the log keeps it.
func now() time.Time { return time.Now().UTC().Truncate(time.Microsecond) }
