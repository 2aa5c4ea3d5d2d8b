// Package firstkey makes keys at the service's own command line: the door into
// an organization that no credential opens yet.
//
// It writes through the log's ordinary commands, so such a key is a key like any
// other, with the console as its actor.
package firstkey

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"keyledger/domain"
	"keyledger/eventstore"
)

// The scopes of a key for which none are wished: everything in one organization,
// or everything that spans organizations.
var (
	organizationScopes = domain.Scopes{domain.ScopeAdmin, domain.ScopeAll}
	systemScopes       = domain.Scopes{domain.ScopeSystemVerify, domain.ScopeSystemEvents, domain.ScopeSystemAudit}
	// consoleScopes are what somebody at the command line can hand on.
	consoleScopes = domain.Scopes{domain.ScopeAll, "system:*"}
)

// Ledger is where keys are made. *eventstore.Store is one.
type Ledger interface {
	ChangeKey(context.Context, domain.Request, domain.KeyID, domain.KeyCommand) (domain.Key, domain.Receipt, error)
}

// Wish says which key to make.
type Wish struct {
	Organization domain.OrganizationID // empty with System
	System       bool
	User         domain.UserID // may be empty
	Name         string
	Scopes       []string // empty: everything that such a key can have
	RateLimit    uint32   // 0: none
	Format       domain.KeyFormat
}

// Made is a new key, and its secret, which exists nowhere else.
type Made struct {
	Key     domain.Key
	Secret  domain.Secret
	Receipt domain.Receipt
}

// Draft is a key that is drawn and not made yet.
type Draft struct {
	id      domain.KeyID
	secret  domain.Secret
	command domain.CreateKey
	user    domain.UserID
}

// Secret is what the key will be.
func (d Draft) Secret() domain.Secret { return d.secret }

// Draw checks a wish and draws the key for it.
func Draw(w Wish, now time.Time) (Draft, error) {
	now = now.UTC().Truncate(time.Microsecond)
	organization, scopes, err := w.reach()
	if err != nil {
		return Draft{}, err
	}
	name, err := domain.ParseName(w.Name)
	if err != nil {
		return Draft{}, err
	}
	id, err := domain.NewID(now, rand.Reader)
	if err != nil {
		return Draft{}, err
	}
	secret, err := domain.NewSecret(w.Format, false, rand.Reader)
	if err != nil {
		return Draft{}, err
	}
	return Draft{id: domain.KeyID(id), secret: secret, user: w.User, command: domain.CreateKey{
		Now: now, Key: domain.KeyID(id), Organization: organization, Digest: secret.Digest(), Prefix: secret.VisiblePrefix(w.Format),
		Name: name, Scopes: scopes, RateLimit: w.RateLimit, CreatedBy: w.User, Granter: consoleScopes,
	}}, nil
}

// reach gives the organization and the scopes of a wish. Scopes of the system
// belong to keys of the system, and to no others.
func (w Wish) reach() (domain.OrganizationID, domain.Scopes, error) {
	organization, scopes := w.Organization, organizationScopes
	if w.System {
		organization, scopes = domain.SystemOrganization, systemScopes
	}
	if len(w.Scopes) > 0 {
		var err error
		if scopes, err = domain.ParseScopes(w.Scopes); err != nil {
			return "", nil, err
		}
	}
	ofSystem := func(s domain.Scope) bool { return strings.HasPrefix(string(s), "system:") }
	switch {
	case w.System && slices.ContainsFunc(scopes, func(s domain.Scope) bool { return !ofSystem(s) }):
		return "", nil, domain.Invalid("scopes", "of a system key must all begin with system:")
	case !w.System && organization == domain.SystemOrganization:
		return "", nil, domain.Invalid("organization", "%s is the service's own: use --system", organization)
	case !w.System && slices.ContainsFunc(scopes, ofSystem):
		return "", nil, domain.Invalid("scopes", "that begin with system: need --system")
	}
	return organization, scopes, nil
}

// Make appends the key to the log.
func Make(ctx context.Context, ledger Ledger, d Draft) (Made, error) {
	var id domain.CommandID
	_, _ = rand.Read(id[:]) // never fails
	request := domain.Request{ID: id, Metadata: domain.Metadata{Actor: domain.Actor{Kind: domain.ActorConsole, User: d.user}}}
	key, receipt, err := ledger.ChangeKey(ctx, request, d.id, d.command)
	if err != nil {
		return Made{}, fmt.Errorf("make the key: %w", err)
	}
	return Made{Key: key, Secret: d.secret, Receipt: receipt}, nil
}

// KeyList tells which keys an organization has.
type KeyList interface {
	List(context.Context, domain.KeyQuery) ([]domain.KeyView, error)
}

// lockFirstKey is the advisory lock under which one process looks whether an
// organization has a key and makes one. Lock numbers are listed in
// eventstore/locks.go.
const lockFirstKey = 6577803

// Once calls create when the organization has no admin key that is active. Of
// several servers that start at once, one makes the key.
func Once(ctx context.Context, pool *pgxpool.Pool, keys KeyList, organization domain.OrganizationID, now time.Time, create func() error) (made bool, err error) {
	tx, err := pool.Begin(ctx)
	if err != nil {
		return false, eventstore.Wrap(err, "look for a first key")
	}
	defer tx.Rollback(context.WithoutCancel(ctx)) //nolint:errcheck // it holds a lock and has written nothing
	if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1, hashtext($2))`, lockFirstKey, string(organization)); err != nil {
		return false, eventstore.Wrap(err, "look for a first key")
	}
	views, err := keys.List(ctx, domain.KeyQuery{Organization: organization})
	if err != nil {
		return false, fmt.Errorf("look for a first key: %w", err)
	}
	for _, view := range views {
		if !view.Revoked && !view.Disabled && !view.Expired(now) && view.Scopes.Imply(domain.ScopeAdmin) {
			return false, nil
		}
	}
	return true, create()
}
