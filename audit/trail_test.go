package audit_test

import (
	"slices"
	"testing"

	"keyledger/audit"
	"keyledger/domain"
	"keyledger/eventstore"
	"keyledger/projections"
	"keyledger/projections/keylist"
	"keyledger/projections/organizations"
)

func TestPagesOfAnOrganizationAreItsEventsNewestFirst(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	l.fill(60)
	// Others' events push org_a's into parts that lie apart.
	for range 2 * organizations.PartSize {
		l.Create("org_z", "a key")
	}
	l.fill(60)
	trail := &audit.Trail{
		Pool: l.pool, Store: l.Store,
		CatchUp:      projections.NewFollower(l.Store, keylist.New(l.pool), projections.FollowerOptions{}).CatchUp,
		CatchUpParts: projections.NewFollower(l.Store, organizations.New(l.pool), projections.FollowerOptions{}).CatchUp,
	}
	var all []eventstore.Recorded
	for r, err := range l.Read(t.Context(), domain.Lifecycle, 0) {
		must(t, err)
		all = append(all, r)
	}
	slices.Reverse(all)
	for name, q := range map[string]audit.TrailQuery{
		"all":       {Organization: "org_a"},
		"of a type": {Organization: "org_b", Types: []string{"KeyRevoked"}},
		"of a time": {Organization: "org_a", Since: all[len(all)-20].RecordedAt, Until: all[10].RecordedAt},
		"of nobody": {Organization: "org_nobody"},
		"of a key":  {Organization: all[0].Organization, Key: mustKey(t, all[0])},
	} {
		var want, got []domain.Position
		for _, r := range all {
			key, _ := r.Stream.Key()
			if r.Organization == q.Organization && (len(q.Types) == 0 || r.Type == q.Types[0]) && (q.Key.IsZero() || key == q.Key) &&
				(q.Since.IsZero() || !r.RecordedAt.Before(q.Since)) && (q.Until.IsZero() || r.RecordedAt.Before(q.Until)) {
				want = append(want, r.Position)
			}
		}
		for q.Most = 7; ; {
			page, err := trail.Events(t.Context(), q)
			must(t, err)
			for _, e := range page {
				got = append(got, e.Position)
			}
			if len(page) < q.Most {
				break
			}
			q.Before = page[len(page)-1].Position
		}
		if !slices.Equal(want, got) || name != "of nobody" && len(want) == 0 {
			t.Errorf("%s: the pages are %v, not %v", name, got, want)
		}
	}

	// Every event is found by its id.
	for _, r := range all[:20] {
		if lane, position, err := audit.FindID(t.Context(), l.pool, r.ID); err != nil || lane != domain.Lifecycle || position != r.Position {
			t.Errorf("the event at %d is found at %s %d, %v", r.Position, lane, position, err)
		}
	}
	if _, _, err := audit.FindID(t.Context(), l.pool, domain.ID{9, 9, 9}); domain.CodeOf(err) != domain.CodeNotFound {
		t.Errorf("an event that there is not: %v", err)
	}
}

func mustKey(t *testing.T, r eventstore.Recorded) domain.KeyID {
	t.Helper()
	key, ok := r.Stream.Key()
	if !ok {
		t.Fatal("the newest event is not about a key")
	}
	return key
}
