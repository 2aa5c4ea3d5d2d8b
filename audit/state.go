package audit

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"keyledger/domain"
	"keyledger/eventstore"
)

// Events is a log whose personal fields can be read. *eventstore.Store is one.
type Events interface {
	Read(ctx context.Context, lane domain.Lane, after domain.Position) iter.Seq2[eventstore.Recorded, error]
	Decode(ctx context.Context, r eventstore.Recorded) (eventstore.Event, error)
	Head(ctx context.Context, lane domain.Lane) (eventstore.Head, error)
	FirstSince(ctx context.Context, lane domain.Lane, t time.Time) (domain.Position, error)
}

// Filter chooses events. What is zero chooses all.
type Filter struct {
	Organization domain.OrganizationID
	Key          domain.KeyID
	Types        []string
}

// Wants says whether the filter lets an event through. Uses are of many keys, so
// they are let through by key when one of them is it.
func (f Filter) Wants(e eventstore.Event) bool {
	if f.Organization != "" && e.Organization != f.Organization || len(f.Types) > 0 && !slices.Contains(f.Types, e.Type) {
		return false
	}
	if f.Key.IsZero() {
		return true
	}
	if used, ok := e.Event.(domain.KeyUsed); ok {
		return slices.ContainsFunc(used.Uses, func(u domain.Use) bool { return u.Key == f.Key })
	}
	key, ok := e.Stream.Key()
	return ok && key == f.Key
}

// ResolvePosition gives the position of a lane that a person means: a number, a
// moment (the last event that was recorded at it or before), or how long ago.
// empty stands for the end.
func ResolvePosition(ctx context.Context, log Events, lane domain.Lane, text string, now time.Time) (domain.Position, error) {
	head, err := log.Head(ctx, lane)
	if err != nil || text == "" {
		return head.Position, err
	}
	var n uint64
	if _, err := fmt.Sscanf(text, "%d", &n); err == nil && fmt.Sprint(n) == text {
		if domain.Position(n) > head.Position {
			return 0, domain.Errorf(domain.CodeNotFound, "the lane %s ends at position %d", lane, head.Position)
		}
		return domain.Position(n), nil
	}
	if token, err := domain.ParseToken(text); err == nil && token.Lane == lane {
		return min(token.Position, head.Position), nil
	}
	at, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		ago, err := time.ParseDuration(text)
		if err != nil || ago < 0 {
			return 0, domain.Errorf(domain.CodeInvalid, "%q is neither a position, nor a moment such as 2026-01-15T10:00:00Z, nor how long ago, such as 24h", text)
		}
		at = now.Add(-ago)
	}
	// The first that was recorded later, and the one before it.
	first, err := log.FirstSince(ctx, lane, at.Add(time.Microsecond).Truncate(time.Microsecond))
	return first - min(first, 1), err
}

// KeysAt gives the keys as they stood when the lane had reached a position, newest
// first: the list as it was.
func KeysAt(ctx context.Context, log Events, at domain.Position, f Filter) ([]domain.Key, error) {
	keys := map[domain.KeyID]domain.Key{}
	for r, err := range log.Read(ctx, domain.Lifecycle, 0) {
		if err != nil {
			return nil, err
		}
		if r.Position > at {
			break
		}
		id, ok := r.Stream.Key()
		if !ok || f.Organization != "" && r.Organization != f.Organization || !f.Key.IsZero() && id != f.Key {
			continue
		}
		e, err := log.Decode(ctx, r)
		if err != nil {
			return nil, err
		}
		if keys[id], err = domain.EvolveKey(keys[id], e.Event); err != nil {
			return nil, fmt.Errorf("fold %s %d: %w", r.Lane, r.Position, err)
		}
	}
	return NewestFirst(keys), nil
}

// NewestFirst is the order of lists.
func NewestFirst(keys map[domain.KeyID]domain.Key) []domain.Key {
	list := make([]domain.Key, 0, len(keys))
	for _, key := range keys {
		list = append(list, key)
	}
	slices.SortFunc(list, func(a, b domain.Key) int {
		if c := b.CreatedAt.Compare(a.CreatedAt); c != 0 {
			return c
		}
		return slices.Compare(b.ID[:], a.ID[:])
	})
	return list
}

// Between gives the events of a lane behind one position, through another one,
// that a filter lets through.
func Between(ctx context.Context, log Events, lane domain.Lane, after, through domain.Position, f Filter) iter.Seq2[eventstore.Event, error] {
	return func(yield func(eventstore.Event, error) bool) {
		for r, err := range log.Read(ctx, lane, after) {
			if err != nil {
				yield(eventstore.Event{}, err)
				return
			}
			if r.Position > through {
				return
			}
			if f.Organization != "" && r.Organization != f.Organization {
				continue // before it is opened: nobody else's personal fields are needed
			}
			e, err := log.Decode(ctx, r)
			if err != nil {
				yield(eventstore.Event{}, err)
				return
			}
			if f.Wants(e) && !yield(e, nil) {
				return
			}
		}
	}
}

// Sentence tells what an event did, without when and where in the log.
func Sentence(e eventstore.Event) string {
	var what string
	switch event := e.Event.(type) {
	case domain.KeyCreated:
		what = fmt.Sprintf("created key %s as %q (%s…) with %s", event.Key, orErased(event.Name, e.Erased), event.Prefix, strings.Join(event.Scopes.Strings(), ", "))
		if event.RateLimit > 0 {
			what += fmt.Sprintf(", %d requests a minute", event.RateLimit)
		}
		if q := event.Quota; q.Given() {
			what += fmt.Sprintf(", %d uses", q.Limit)
			if q.Refill != domain.RefillNone {
				what += " a " + string(q.Refill)
			}
		}
		if !event.ExpiresAt.IsZero() {
			what += ", until " + event.ExpiresAt.Format(time.RFC3339)
		}
	case domain.KeyRevoked:
		what = fmt.Sprintf("revoked key %s", event.Key)
		if event.Reason != "" {
			what += fmt.Sprintf(", because: %s", event.Reason)
		}
	case domain.RevocationFenced:
		return fmt.Sprintf("no verifier accepts key %s any more: %d confirmed, the leases of %d ran out, in %s", event.Key, len(event.Confirmed), len(event.Expired), event.Waited)
	case domain.MemberAdded:
		what = fmt.Sprintf("made %s a member as %s", orErased(string(event.User), e.Erased), event.Role)
	case domain.MemberRemoved:
		what = fmt.Sprintf("ended the membership of %s", orErased(string(event.User), e.Erased))
	case domain.OrganizationErased:
		what = fmt.Sprintf("erased the organization %s", event.Organization)
		if event.Reason != "" {
			what += fmt.Sprintf(", because: %s", event.Reason)
		}
	case domain.KeyUsed:
		var accepted, refused uint64
		for _, use := range event.Uses {
			if use.Outcome.Accepted() {
				accepted += use.Count
			} else {
				refused += use.Count
			}
		}
		return fmt.Sprintf("%d uses of %d keys were accepted, %d refused", accepted, len(event.Uses), refused)
	default:
		what = e.Type
	}
	return Who(e) + " " + what
}

func orErased(text string, erased bool) string {
	if text == "" && erased {
		return "[erased]"
	}
	return text
}

// Who names who did it, and from where.
func Who(e eventstore.Event) string {
	m := e.EventMetadata
	var who string
	switch m.Actor.Kind {
	case domain.ActorKey:
		who = "key " + m.Actor.Key.String()
	case domain.ActorUser:
		who = "user " + orErased(string(m.Actor.User), e.Erased)
	case domain.ActorConsole:
		who = "somebody at the console"
		if m.Actor.User != "" {
			who = string(m.Actor.User) + " at the console"
		}
	default:
		who = "the service"
	}
	if m.Source.IsValid() {
		who += " from " + m.Source.String()
	}
	return who
}
