package audit_test

import (
	"strings"
	"testing"
	"time"

	"keyledger/audit"
	"keyledger/domain"
	"keyledger/eventstore"
)

func TestAUseThatBreaksAFenceIsFound(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	confirmed, expired, stranger := domain.ID{1, 15: 1}, domain.ID{1, 15: 2}, domain.ID{1, 15: 3}
	key, other := l.Create("org_a", "a key"), l.Create("org_a", "another")
	l.Revoke(key) // 3
	at := now()
	fence := func(key domain.KeyID, position domain.Position) {
		t.Helper()
		_, _, err := l.ChangeKey(t.Context(), domain.Request{}, key, domain.RecordFence{
			Now: at, Position: position, Confirmed: []domain.ID{confirmed}, Expired: []domain.ID{expired}, Waited: time.Second,
		})
		must(t, err)
	}
	fence(key.ID, 3) // 4
	type planted struct {
		boot    domain.ID
		outcome domain.Outcome
		after   time.Duration // the fence
		decided domain.Position
		fault   string
	}
	flushed := map[domain.ID]uint64{}
	const valid, stale, revoked = domain.OutcomeValid, domain.OutcomeValidStale, domain.OutcomeRevoked
	all := []planted{
		{confirmed, revoked, time.Hour, 9, ""},
		{confirmed, valid, -time.Second, 2, ""},
		{stranger, valid, time.Second, 2, ""},
		{confirmed, valid, -time.Second, 3, "accepted the key"},
		{confirmed, valid, 3 * time.Second, 2, "which had confirmed its revocation"},
		{expired, valid, 3 * time.Second, 2, "whose lease had run out"},
		{stranger, valid, 3 * time.Second, 2, "which its fence does not name"},
		{expired, stale, time.Hour, 2, ""},
		{expired, stale, -time.Second, 3, "accepted the key"},
	}
	for _, p := range all {
		last := at.Add(p.after)
		_, err := l.AppendUsage(t.Context(), eventstore.UsageFlush{Boot: p.boot, Flush: flushed[p.boot] + 1, Expected: flushed[p.boot], Events: []domain.KeyUsed{{
			Organization: "org_a", Boot: p.boot, Flush: flushed[p.boot] + 1, At: last,
			Uses: []domain.Use{
				{Key: other.ID, Outcome: valid, Count: 3, First: last, Last: last, DecidedAt: 9},
				{Key: key.ID, Outcome: p.outcome, Count: 3, First: last, Last: last, DecidedAt: p.decided},
			},
		}}})
		must(t, err)
		flushed[p.boot]++
	}
	check := func(report *audit.Report) {
		t.Helper()
		faults := map[domain.Position]string{}
		for _, f := range report.Faults {
			if f.Lane == domain.Usage {
				faults[f.Position] += f.Fault
			}
		}
		for i, p := range all {
			fault := faults[domain.Position(i+1)]
			if (fault == "") != (p.fault == "") || !strings.Contains(fault, p.fault) {
				t.Errorf("position %d, %+v: the audit says %q", i+1, p, fault)
			}
		}
	}
	l.sign()
	check(l.verify(audit.Options{}))
	check(l.verifyFile(read(t, l.export())))
	if report := l.verify(audit.Options{Skew: time.Minute}); len(report.Faults) != 2 {
		t.Errorf("with a skew of a minute, the audit says %v", report.Faults)
	}

	// A fence that was held for less than the revocation.
	l.Revoke(other) // 5
	fence(other.ID, 4)
	report := l.verify(audit.Options{Skew: time.Minute})
	if last := report.Faults[0]; last.Lane != domain.Lifecycle || last.Position != 6 {
		t.Errorf("the audit says %v", report.Faults)
	}
}
