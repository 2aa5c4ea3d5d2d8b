package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"keyledger/domain"
	"keyledger/fence"
	"keyledger/internal/backing"
	"keyledger/projections"
	"keyledger/projections/keylist"
)

func (p *program) erase() *cobra.Command {
	cmd := &cobra.Command{
		Use: "erase", Short: "Erase an organization for good",
		Long: `Revoke every key of an organization, wait until no verifier accepts any of them, and
destroy the key under which its personal fields are sealed: names, users, addresses
and reasons can be read by nobody any more. Events, hashes and proofs stay. Nothing can be added
to the organization afterwards, and there is no way back. Servers may run meanwhile.

It can be called again, and finishes what was broken off. --reason is kept in plain
and published: name a ticket, never a person. docs/privacy.md says what an erasure
does not reach, backups above all.`,
		Example: `  keyledger erase --organization org_abc123 --dry-run
  keyledger erase --organization org_abc123 --reason "ticket 4711" --yes`,
	}
	return p.command(cmd, p.eraseOrganization, []string{"organization", "reason", "dry-run", "yes", "json"}, ledgerFlags)
}

func (p *program) eraseOrganization(ctx context.Context) (err error) {
	c := p.config
	if c.Organization == "" {
		return need("organization", "KEYLEDGER_ORGANIZATION")
	}
	l, err := p.openLedger(ctx, backing.Needs{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.close(ctx)) }()
	follower := projections.NewFollower(l.store, keylist.New(l.pool), projections.FollowerOptions{Logger: p.logger})
	e := &erasure{ledger: l, organization: c.Organization, follower: follower, list: keylist.NewList(l.pool, follower)}
	if e.fence, err = fence.New(fence.Options{Pool: l.pool, Log: l.store, Transport: silence{}, Logger: p.logger}); err != nil {
		return err
	}
	before, err := e.look(ctx)
	if err != nil {
		return err
	}
	if c.DryRun {
		return p.sayErasable(before)
	}
	if !before.Erased {
		err := p.confirm(fmt.Sprintf("%d active keys of %s are revoked, and the names of all its %d keys and %d members are gone for good. Erase it?",
			before.Active, c.Organization, before.Keys, before.Members))
		if err != nil {
			return err
		}
	}
	done, err := e.run(ctx, c.Reason)
	if err != nil {
		return err
	}
	if c.JSON {
		return p.printJSON(done)
	}
	if done.Changed {
		p.say("%s is erased, at position %d; %d keys were revoked. Backups from before still hold what was erased (docs/privacy.md).",
			done.Organization, done.Position, done.Revoked)
	} else {
		p.say("%s was erased before; %d keys were revoked now.", done.Organization, done.Revoked)
	}
	return nil
}

// erasable is what there is to erase.
type erasable struct {
	Organization domain.OrganizationID `json:"organizationId"`
	Erased       bool                  `json:"erased"` // already
	Keys         int                   `json:"keys"`
	Active       int                   `json:"active"` // of these
	Members      int                   `json:"members"`
}

func (p *program) sayErasable(e erasable) error {
	if p.config.JSON {
		return p.printJSON(e)
	}
	if e.Erased {
		p.say("%s is erased already. %d keys are left to revoke.", e.Organization, e.Active)
		return nil
	}
	p.say("Erasing %s would revoke %d active keys, and make %d keys and %d members nameless for good. Nothing was changed.",
		e.Organization, e.Active, e.Keys, e.Members)
	return nil
}

// erased is what an erasure did, as --json prints it.
type erased struct {
	Organization domain.OrganizationID `json:"organizationId"`
	Position     domain.Position       `json:"position"` // by which it is erased
	Changed      bool                  `json:"changed"`  // false: it was erased before
	Revoked      int64                 `json:"revoked"`  // keys
}

// erasure is one run of keyledger erase.
type erasure struct {
	*ledger
	organization domain.OrganizationID
	follower     *projections.Follower
	list         *keylist.List
	fence        *fence.Fence
}

// run erases. The order is the order for these reasons. Keys are revoked first, so that
// nobody acts for an organization that is gone, and the fence comes before the
// erasure, so that no verifier still accepts them. From the erasure on the log
// refuses new keys: those that were made in between are revoked after it, and then there are
// none. The second fence waits until every server that answers has met the erasure, and
// so has forgotten what it kept in memory. The list comes last, since it needs nobody's
// patience: whoever reads it brings it here.
func (e *erasure) run(ctx context.Context, reason string) (erased, error) {
	done := erased{Organization: e.organization}
	n, err := e.revokeAll(ctx)
	done.Revoked += n
	if err != nil {
		return done, err
	}
	_, receipt, err := e.store.ChangeOrganization(ctx, consoleRequest(), e.organization,
		domain.EraseOrganization{Now: now(), Organization: e.organization, Reason: reason})
	if err != nil {
		return done, err
	}
	done.Position, done.Changed = receipt.Position, receipt.Changed
	n, err = e.revokeAll(ctx)
	done.Revoked += n
	if err != nil {
		return done, err
	}
	return done, e.follower.CatchUp(ctx, receipt.Position)
}

// revokedKey is a key that this run has revoked.
type revokedKey struct {
	id       domain.KeyID
	position domain.Position
}

// revokeAll revokes the active keys and returns when no verifier accepts any key of the
// organization, whoever revoked it. No reason is given: it would be sealed, and gone.
func (e *erasure) revokeAll(ctx context.Context) (int64, error) {
	var revoked []revokedKey
	for page, err := range e.pages(ctx) {
		if err != nil {
			return int64(len(revoked)), err
		}
		positions := make([]domain.Position, len(page)) // 0: it was revoked already
		err := atOnce(ctx, page, func(ctx context.Context, i int) error {
			if page[i].Revoked {
				return nil
			}
			_, receipt, err := e.store.ChangeKey(ctx, consoleRequest(), page[i].ID, domain.RevokeKey{Now: now(), Organization: e.organization})
			if receipt.Changed {
				positions[i] = receipt.Position
			}
			return err
		})
		for i, position := range positions {
			if position > 0 {
				revoked = append(revoked, revokedKey{page[i].ID, position})
			}
		}
		if err != nil {
			return int64(len(revoked)), err
		}
	}
	head, err := e.store.Head(ctx, domain.Lifecycle)
	if err != nil {
		return int64(len(revoked)), err
	}
	fenced, err := e.fence.Hold(ctx, head.Position, time.Now())
	if err != nil {
		return int64(len(revoked)), err
	}
	return int64(len(revoked)), atOnce(ctx, revoked, func(ctx context.Context, i int) error {
		_, _, err := e.store.ChangeKey(ctx, consoleRequest(), revoked[i].id, domain.RecordFence{
			Now: now(), Position: revoked[i].position, Confirmed: fenced.Confirmed, Expired: fenced.Expired, Waited: fenced.Waited,
		})
		return err
	})
}

// look counts what there is to erase. CodeNotFound: the ledger has never heard of it.
func (e *erasure) look(ctx context.Context) (erasable, error) {
	found := erasable{Organization: e.organization}
	o, version, err := e.store.Organization(ctx, e.organization)
	if err != nil {
		return found, err
	}
	found.Erased, found.Members = o.Erased, len(o.Members)
	for page, err := range e.pages(ctx) {
		if err != nil {
			return found, err
		}
		found.Keys += len(page)
		for i := range page {
			if !page[i].Revoked {
				found.Active++
			}
		}
	}
	if found.Keys == 0 && version == 0 {
		return found, domain.Errorf(domain.CodeNotFound, "this ledger knows no organization %s", e.organization)
	}
	return found, nil
}

const keysPage = 1000

// pages gives the organization's keys, newest first.
func (e *erasure) pages(ctx context.Context) iter.Seq2[[]domain.KeyView, error] {
	return func(yield func([]domain.KeyView, error) bool) {
		query := domain.KeyQuery{Organization: e.organization, Most: keysPage}
		for {
			page, err := e.list.List(ctx, query)
			if err != nil {
				yield(nil, err)
				return
			}
			if len(page) == 0 || !yield(page, nil) {
				return
			}
			query.Before = page[len(page)-1].ID
		}
	}
}

// mostAtOnce is how many commands are on their way at once: the log takes them as one batch.
const mostAtOnce = 64

func atOnce[T any](ctx context.Context, all []T, do func(ctx context.Context, i int) error) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(mostAtOnce)
	for i := range all {
		group.Go(func() error { return do(ctx, i) })
	}
	return group.Wait()
}

// consoleRequest is a command of somebody at this command line, of whom nothing is kept.
func consoleRequest() domain.Request {
	request := domain.Request{Metadata: domain.Metadata{Actor: domain.Actor{Kind: domain.ActorConsole}}}
	_, _ = rand.Read(request.ID[:]) // never fails
	return request
}

// silence carries nothing: a command line waits for leases instead of confirmations,
// which takes about a second.
type silence struct{}

func (silence) Ask(domain.Position, bool)          {}
func (silence) Confirm(domain.ID, domain.Position) {}
func (silence) Listen(context.Context, func(domain.Position, bool), func(domain.ID, domain.Position)) error {
	return nil
}
