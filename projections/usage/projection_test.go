package usage_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/jackc/pgx/v5"
	"pgregory.net/rapid"

	"keyledger/domain"
	"keyledger/projections"
	"keyledger/projections/internal/logtest"
	"keyledger/projections/usage"
)

// The tables' rows, as this test reads them.
type (
	keyRow struct {
		ID                uuid
		Accepted, Refused int64
		Used, Refusal     *time.Time
	}
	hourRow struct {
		ID      uuid
		Hour    time.Time
		Outcome int16
		Count   int64
	}
	uuid = [16]byte
)

// Whatever the uses, and however they are spread over events and batches, the
// tables say what adding them up one by one says.
func TestEveryUseIsCountedOnce(t *testing.T) {
	t.Parallel()
	log := logtest.New(t)
	follower := projections.NewFollower(log, usage.New(log.Pool), projections.FollowerOptions{})
	keys := []domain.KeyID{domain.KeyID(logtest.NewID(t)), domain.KeyID(logtest.NewID(t)), domain.KeyID(logtest.NewID(t))}
	start := time.Date(2026, 3, 1, 12, 59, 59, 500_000_000, time.UTC)
	wantKeys := map[uuid]keyRow{}
	type hour struct {
		id      uuid
		hour    time.Time
		outcome int16
	}
	wantHours := map[hour]int64{}
	rapid.Check(t, func(rt *rapid.T) {
		var events []domain.KeyUsed
		for range rapid.IntRange(1, 4).Draw(rt, "events") {
			var uses []domain.Use
			for range rapid.IntRange(0, 6).Draw(rt, "uses") {
				first := start.Add(time.Duration(rapid.IntRange(0, 7200).Draw(rt, "second")) * time.Second)
				use := domain.Use{
					Key:     rapid.SampledFrom(keys).Draw(rt, "key"),
					Outcome: domain.Outcome(rapid.IntRange(0, domain.Outcomes-1).Draw(rt, "outcome")),
					Count:   rapid.Uint64Range(1, 1e9).Draw(rt, "count"),
					First:   first, Last: first.Add(time.Second),
				}
				uses = append(uses, use)
				row := wantKeys[uuid(use.Key)]
				row.ID = uuid(use.Key)
				if use.Outcome.Accepted() {
					row.Accepted += int64(use.Count)
					row.Used = later(row.Used, use.Last)
				} else {
					row.Refused += int64(use.Count)
					row.Refusal = later(row.Refusal, use.Last)
				}
				wantKeys[row.ID] = row
				wantHours[hour{row.ID, use.Last.Truncate(time.Hour), int16(use.Outcome)}] += int64(use.Count)
			}
			events = append(events, domain.KeyUsed{Organization: "org_a", Uses: uses})
		}
		log.UseAll(events...)
		logtest.Must(t, follower.CatchUp(t.Context(), log.End(domain.Usage)))
	})

	var want []keyRow
	for _, row := range wantKeys {
		want = append(want, row)
	}
	var spread []hourRow
	for at, count := range wantHours {
		spread = append(spread, hourRow{at.id, at.hour, at.outcome, count})
	}
	inOrder := cmp.Options{
		cmpopts.SortSlices(func(a, b keyRow) bool { return string(a.ID[:]) < string(b.ID[:]) }),
		cmpopts.SortSlices(func(a, b hourRow) bool {
			if a.ID != b.ID {
				return string(a.ID[:]) < string(b.ID[:])
			}
			return a.Hour.Before(b.Hour) || a.Hour.Equal(b.Hour) && a.Outcome < b.Outcome
		}),
		cmpopts.EquateApproxTime(0),
	}
	if diff := cmp.Diff(want, all[keyRow](t, log, `SELECT key_id, accepted, refused, last_used_at, last_refused_at FROM usage_keys`), inOrder); diff != "" {
		t.Errorf("counts by key (-added up +table):\n%s", diff)
	}
	if diff := cmp.Diff(spread, all[hourRow](t, log, `SELECT key_id, hour, outcome, count FROM usage_hours`), inOrder); diff != "" {
		t.Errorf("counts by hour (-added up +table):\n%s", diff)
	}
}

func later(a *time.Time, b time.Time) *time.Time {
	if a == nil || b.After(*a) {
		return &b
	}
	return a
}

func all[T any](t *testing.T, log *logtest.Log, query string) []T {
	t.Helper()
	rows, err := log.Pool.Query(t.Context(), query)
	logtest.Must(t, err)
	values, err := pgx.CollectRows(rows, pgx.RowToStructByPos[T])
	logtest.Must(t, err)
	return values
}
