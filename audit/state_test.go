package audit_test

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"keyledger/audit"
	"keyledger/domain"
)

// told is what the test itself makes of an event, without the domain's fold.
type told struct {
	name     string
	at       time.Time // recorded
	position domain.Position
	key      domain.KeyID
	revoked  bool
}

func TestTheStateAtAnyMomentIsTheFoldUpToIt(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	l.fill(90)
	var events []told
	for r, err := range l.Read(t.Context(), domain.Lifecycle, 0) {
		must(t, err)
		e, err := l.Decode(t.Context(), r)
		must(t, err)
		switch event := e.Event.(type) {
		case domain.KeyCreated:
			events = append(events, told{name: event.Name, key: event.Key, at: r.RecordedAt, position: r.Position})
		case domain.KeyRevoked:
			events = append(events, told{key: event.Key, at: r.RecordedAt, position: r.Position, revoked: true})
		}
	}
	begin, end := events[0].at.Add(-time.Millisecond), events[len(events)-1].at.Add(time.Millisecond)
	for range soak(t, 60, 1000) {
		moment := begin.Add(rand.N(end.Sub(begin))).Truncate(time.Microsecond) //nolint:gosec // a test's
		if rand.IntN(3) == 0 {                                                 //nolint:gosec // a test's
			moment = events[rand.IntN(len(events))].at // exactly when something was recorded
		}
		want := map[domain.KeyID]told{}
		var last domain.Position
		for _, e := range events {
			if e.at.After(moment) {
				break
			}
			last = e.position
			if e.revoked {
				e.name = want[e.key].name
			}
			want[e.key] = e
		}
		at, err := audit.ResolvePosition(t.Context(), l, domain.Lifecycle, moment.Format(time.RFC3339Nano), time.Now())
		must(t, err)
		if at != last {
			t.Fatalf("%s is position %d, not %d", moment, at, last)
		}
		keys, err := audit.KeysAt(t.Context(), l, at, audit.Filter{})
		must(t, err)
		if len(keys) != len(want) {
			t.Fatalf("at %s there are %d keys, not %d", moment, len(keys), len(want))
		}
		for _, key := range keys {
			if w := want[key.ID]; key.Name != w.name || key.Revoked != w.revoked {
				t.Fatalf("at %s, %s is %q, revoked: %v", moment, key.ID, key.Name, key.Revoked)
			}
		}
	}
	mine, err := audit.KeysAt(t.Context(), l, last(events), audit.Filter{Organization: "org_b"})
	must(t, err)
	if len(mine) == 0 || slices.ContainsFunc(mine, func(k domain.Key) bool { return k.Organization != "org_b" }) {
		t.Errorf("the keys of one organization are %v", mine)
	}
}

func last(events []told) domain.Position { return events[len(events)-1].position }
