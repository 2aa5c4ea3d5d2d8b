package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"keyledger/audit"
	"keyledger/domain"
	"keyledger/eventstore"
	"keyledger/internal/backing"
)

func (p *program) auditState() *cobra.Command {
	return p.command(&cobra.Command{
		Use: "state", Short: "List the keys as they stood at a moment",
		Long: `List the keys exactly as they stood at a position of the log or at a moment, folded
from the log alone.`,
		Example: `  keyledger audit state --at 2026-01-15T10:00:00Z --organization org_abc123
  keyledger audit state --at 24h --json`,
	}, func(ctx context.Context) error {
		return p.reading(ctx, func(a *audited, f audit.Filter) error {
			at, err := audit.ResolvePosition(ctx, a.store, domain.Lifecycle, p.config.At, time.Now())
			if err != nil {
				return err
			}
			keys, err := audit.KeysAt(ctx, a.store, at, f)
			if err != nil {
				return err
			}
			return p.showState(at, keys)
		})
	}, []string{"at", "organization", "key", "json"}, ledgerFlags)
}

// stateKey is a key as --json prints it.
type stateKey struct {
	ID           string                `json:"id"`
	Organization domain.OrganizationID `json:"organizationId"`
	Name         string                `json:"name"`
	Prefix       string                `json:"prefix"`
	Scopes       []string              `json:"scopes"`
	RateLimit    uint32                `json:"rateLimit"`
	Quota        stateQuota            `json:"quota,omitzero"`
	CreatedAt    time.Time             `json:"createdAt"`
	CreatedBy    domain.UserID         `json:"createdBy,omitempty"`
	ExpiresAt    time.Time             `json:"expiresAt,omitzero"`
	Revoked      bool                  `json:"revoked"`
	RevokedAt    time.Time             `json:"revokedAt,omitzero"`
}

// stateQuota is a key's quota as --json prints it.
type stateQuota struct {
	Limit  uint64        `json:"limit"`
	Refill domain.Refill `json:"refill"`
}

func (p *program) showState(at domain.Position, keys []domain.Key) error {
	if p.config.JSON {
		list := make([]stateKey, len(keys))
		for i, k := range keys {
			list[i] = stateKey{k.ID.String(), k.Organization, k.Name, k.Prefix, k.Scopes.Strings(), k.RateLimit, stateQuota(k.Quota), k.CreatedAt, k.CreatedBy, k.ExpiresAt, k.Revoked, k.RevokedAt}
		}
		return p.printJSON(struct {
			Position domain.Position `json:"position"`
			Keys     []stateKey      `json:"keys"`
		}{at, list})
	}
	rows := [][]string{{"KEY", "ORGANIZATION", "NAME", "PREFIX", "SCOPES", "CREATED", "REVOKED"}}
	for _, k := range keys {
		revoked := ""
		if k.Revoked {
			revoked = k.RevokedAt.Format(time.RFC3339)
		}
		rows = append(rows, []string{k.ID.String(), string(k.Organization), k.Name, k.Prefix, strings.Join(k.Scopes.Strings(), ","), k.CreatedAt.Format(time.RFC3339), revoked})
	}
	p.say("%d keys at position %d of the lifecycle lane", len(keys), at)
	return p.printTable(rows)
}

func (p *program) auditDiff() *cobra.Command {
	return p.command(&cobra.Command{
		Use: "diff", Short: "Tell who changed what between two moments",
		Example: "  keyledger audit diff --from 24h --organization org_abc123",
	}, func(ctx context.Context) error {
		return p.reading(ctx, func(a *audited, f audit.Filter) error {
			if p.config.From == "" {
				return need("from", "KEYLEDGER_FROM")
			}
			from, err := audit.ResolvePosition(ctx, a.store, domain.Lifecycle, p.config.From, time.Now())
			if err != nil {
				return err
			}
			to, err := audit.ResolvePosition(ctx, a.store, domain.Lifecycle, p.config.To, time.Now())
			if err != nil {
				return err
			}
			p.say("From position %d to position %d of the lifecycle lane:", from, to)
			for e, err := range audit.Between(ctx, a.store, domain.Lifecycle, from, to, f) {
				if err != nil {
					return err
				}
				if err := p.showEvent(e); err != nil {
					return err
				}
			}
			return nil
		})
	}, []string{"from", "to", "organization", "key", "types", "json"}, ledgerFlags)
}

func (p *program) auditHistory() *cobra.Command {
	cmd := &cobra.Command{
		Use: "history", Short: "Tell a key's life",
		Example: "  keyledger audit history key_01JNZ0000000000000000000AA",
	}
	var key *string
	cmd = p.command(cmd, func(ctx context.Context) error {
		id, err := domain.ParseKeyID(*key)
		if err != nil {
			return usageError{err}
		}
		return p.reading(ctx, func(a *audited, _ audit.Filter) error { return p.tellKey(ctx, a, id) })
	}, []string{"json"}, ledgerFlags)
	key = argument(cmd, "KEY")
	return cmd
}

func (p *program) tellKey(ctx context.Context, a *audited, id domain.KeyID) error {
	told := 0
	for r, err := range a.store.ReadStream(ctx, eventstore.KeyStream(id), 0) {
		if err != nil {
			return err
		}
		e, err := a.store.Decode(ctx, r)
		if err != nil {
			return err
		}
		if err := p.showEvent(e); err != nil {
			return err
		}
		told++
	}
	if told == 0 {
		return domain.Errorf(domain.CodeNotFound, "the log knows no key %s", id)
	}
	var accepted, refused uint64
	var last *time.Time
	err := a.pool.QueryRow(ctx, `SELECT coalesce(max(accepted), 0), coalesce(max(refused), 0), max(last_used_at) FROM usage_keys WHERE key_id = $1`, [16]byte(id)).
		Scan(&accepted, &refused, &last)
	if err != nil {
		return eventstore.Wrap(err, "read the uses of %s", id)
	}
	switch {
	case p.config.JSON:
		return p.printJSON(map[string]any{"uses": map[string]any{"accepted": accepted, "refused": refused, "lastUsedAt": last}})
	case last == nil:
		return p.print("It was never used, and %d uses were refused.\n", refused)
	}
	return p.print("It was used %d times, for the last time at %s, and %d uses were refused.\n", accepted, last.UTC().Format(time.RFC3339), refused)
}

func (p *program) auditTail() *cobra.Command {
	return p.command(&cobra.Command{
		Use: "tail", Short: "Show what happened last, and what happens",
		Long: `Show the events of the lifecycle lane (or of --lane) from --from on, or the last ten.
With --follow, wait for more.`,
		Example: "  keyledger audit tail --follow --organization org_abc123 --types KeyRevoked",
	}, func(ctx context.Context) error {
		return p.reading(ctx, func(a *audited, f audit.Filter) error { return p.tail(ctx, a, f) })
	}, []string{"lane", "from", "organization", "key", "types", "follow", "json"}, ledgerFlags)
}

const (
	tailEvents = 10
	tailEvery  = 250 * time.Millisecond
)

func (p *program) tail(ctx context.Context, a *audited, f audit.Filter) error {
	lane, err := p.lane(domain.Lifecycle)
	if err != nil {
		return err
	}
	head, err := a.store.Head(ctx, lane)
	if err != nil {
		return err
	}
	after := head.Position - min(head.Position, tailEvents)
	if p.config.From != "" {
		if after, err = p.behind(ctx, a, lane); err != nil {
			return err
		}
	}
	poll := time.NewTicker(tailEvery)
	defer poll.Stop()
	for {
		for e, err := range audit.Between(ctx, a.store, lane, after, head.Position, f) {
			if err != nil {
				return err
			}
			if err := p.showEvent(e); err != nil {
				return err
			}
		}
		after = max(after, head.Position)
		if !p.config.Follow {
			return nil
		}
		select {
		case <-poll.C:
		case <-ctx.Done():
			return nil
		}
		if head, err = a.store.Head(ctx, lane); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
	}
}

// behind is the position behind which what --from names begins: a position itself is
// part of it, and so is what was recorded after a moment.
func (p *program) behind(ctx context.Context, a *audited, lane domain.Lane) (domain.Position, error) {
	if n, err := strconv.ParseUint(p.config.From, 10, 62); err == nil {
		return domain.Position(n - min(n, 1)), nil
	}
	return audit.ResolvePosition(ctx, a.store, lane, p.config.From, time.Now())
}

// lane is the one that was named.
func (p *program) lane(otherwise domain.Lane) (domain.Lane, error) {
	switch lane := domain.Lane(p.config.Lane); lane {
	case "":
		return otherwise, nil
	case domain.Lifecycle, domain.Usage:
		return lane, nil
	}
	return "", usageError{errors.New("--lane (KEYLEDGER_LANE) must be lifecycle or usage")}
}

// reading opens a ledger for a command that tells what is personal, too.
func (p *program) reading(ctx context.Context, read func(*audited, audit.Filter) error) (err error) {
	f := audit.Filter{Organization: p.config.Organization, Types: p.config.Types}
	if len(p.config.Key) > 0 {
		if f.Key, err = domain.ParseKeyID(p.config.Key[0]); err != nil || len(p.config.Key) > 1 {
			return usageError{errors.New("--key (KEYLEDGER_KEY) must be one key's id")}
		}
	}
	a, err := p.openAudited(ctx, backing.Needs{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.close(ctx)) }()
	if err := a.readable(); err != nil {
		return err
	}
	return read(a, f)
}

// shownEvent is an event as --json prints it.
type shownEvent struct {
	Lane         domain.Lane           `json:"lane"`
	Position     domain.Position       `json:"position"`
	ID           string                `json:"id"`
	Type         string                `json:"type"`
	Organization domain.OrganizationID `json:"organizationId"`
	RecordedAt   string                `json:"recordedAt"`
	Who          string                `json:"who"`
	RequestID    string                `json:"requestId,omitempty"`
	Text         string                `json:"text"`
	Data         json.RawMessage       `json:"data"`
}

// colours of event types, on a terminal.
var colours = map[string]string{"KeyCreated": "\x1b[32m", "KeyRevoked": "\x1b[31m", "RevocationFenced": "\x1b[35m", "MemberAdded": "\x1b[36m", "MemberRemoved": "\x1b[35m", "OrganizationErased": "\x1b[31m"}

func (p *program) showEvent(e eventstore.Event) error {
	if p.config.JSON {
		return p.printJSON(shownEvent{
			e.Lane, e.Position, e.ID.UUID(), e.Type, e.Organization, e.RecordedAt.Format(timeLayout), audit.Who(e), e.EventMetadata.RequestID, audit.Sentence(e), e.Data,
		})
	}
	begin, end := colours[e.Type], "\x1b[0m"
	if begin == "" || !isTerminal(p.stdout) || p.isSet("NO_COLOR") {
		begin, end = "", ""
	}
	text := fmt.Sprintf("%s%-13s%s %s", begin, e.Type, end, audit.Sentence(e))
	if e.EventMetadata.RequestID != "" {
		text += " (request " + e.EventMetadata.RequestID + ")"
	}
	return p.print("%s %6d %-16s %s\n", e.RecordedAt.Format("2006-01-02 15:04:05.000"), e.Position, e.Organization, text)
}
