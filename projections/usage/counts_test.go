package usage_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"keyledger/domain"
	"keyledger/projections"
	"keyledger/projections/internal/logtest"
	"keyledger/projections/usage"
)

// Nothing drives the projection here but the reader.
func TestCountsShowWhatWasRecordedWhenTheyWereAsked(t *testing.T) {
	t.Parallel()
	log := logtest.New(t)
	counts := usage.NewCounts(log.Pool, log, projections.NewFollower(log, usage.New(log.Pool), projections.FollowerOptions{}))
	key, another := domain.KeyID(logtest.NewID(t)), domain.KeyID(logtest.NewID(t))
	midnight := time.Date(2026, 3, 2, 0, 0, 0, 0, time.UTC)
	use := func(key domain.KeyID, outcome domain.Outcome, at time.Time, n uint64) domain.Use {
		return domain.Use{Key: key, Outcome: outcome, Count: n, First: at, Last: at}
	}
	expect := func(from, to time.Time, daily bool, want ...domain.UsageCount) {
		t.Helper()
		got, err := counts.Counts(t.Context(), key, from, to, daily)
		logtest.Must(t, err)
		if difference := cmp.Diff(want, got); difference != "" {
			t.Error(difference)
		}
	}
	const valid, revoked = domain.OutcomeValid, domain.OutcomeRevoked
	expect(midnight.Add(-24*time.Hour), midnight, false)

	log.Use("org_1", use(key, valid, midnight.Add(-time.Second), 3), use(key, valid, midnight, 4), use(another, valid, midnight, 100), use(key, revoked, midnight.Add(time.Hour), 5))
	log.Use("org_1", use(key, valid, midnight.Add(59*time.Minute), 6), use(key, valid, midnight.Add(24*time.Hour), 7))
	expect(midnight.Add(-time.Hour), midnight.Add(24*time.Hour), false,
		domain.UsageCount{Start: midnight.Add(-time.Hour), Outcome: valid, Count: 3},
		domain.UsageCount{Start: midnight, Outcome: valid, Count: 10},
		domain.UsageCount{Start: midnight.Add(time.Hour), Outcome: revoked, Count: 5})
	expect(midnight.Add(-24*time.Hour), midnight.Add(48*time.Hour), true,
		domain.UsageCount{Start: midnight.Add(-24 * time.Hour), Outcome: valid, Count: 3},
		domain.UsageCount{Start: midnight, Outcome: valid, Count: 10},
		domain.UsageCount{Start: midnight, Outcome: revoked, Count: 5},
		domain.UsageCount{Start: midnight.Add(24 * time.Hour), Outcome: valid, Count: 7})
	expect(midnight, midnight.Add(time.Hour), true, domain.UsageCount{Start: midnight, Outcome: valid, Count: 10})

	log.Use("org_1", use(key, valid, midnight, 1))
	expect(midnight, midnight.Add(time.Hour), false, domain.UsageCount{Start: midnight, Outcome: valid, Count: 11})
}
