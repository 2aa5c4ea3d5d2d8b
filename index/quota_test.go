package index

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"keyledger/domain"
)

var noon = time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC)

// quoted is an index with one key that has a quota, created after it was loaded; and how it is used at a
// moment.
func quoted(t *testing.T, o Options, created domain.KeyCreated) (x *Index, use func(at time.Time) domain.Verdict) {
	t.Helper()
	x = empty(o)
	created.Key, created.Digest, created.Organization, created.Scopes = idOf(1), secretOf(1), "org_1", domain.Scopes{"read"}
	if err := x.Apply([]Event{{Position: 1, Version: 1, Event: created}}); err != nil {
		t.Fatal(err)
	}
	return x, func(at time.Time) domain.Verdict {
		t.Helper()
		v, err := x.Verify(domain.Verification{Digest: secretOf(1), Now: at})
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func TestAQuotaBeginsAnewWithItsPeriod(t *testing.T) {
	t.Parallel()
	clock := noon
	for name, test := range map[string]struct {
		refill      domain.Refill
		last, first time.Time // of a period, and of the next one
		reset       time.Time
	}{
		"a day":           {domain.RefillDay, time.Date(2026, 1, 31, 23, 59, 59, 999_999_999, time.UTC), time.Date(2026, 2, 1, 0, 0, 0, 0, time.UTC), time.Date(2026, 2, 1, 0, 0, 0, 0, time.UTC)},
		"a month":         {domain.RefillMonth, time.Date(2028, 2, 29, 23, 59, 59, 999_999_999, time.UTC), time.Date(2028, 3, 1, 0, 0, 0, 0, time.UTC), time.Date(2028, 3, 1, 0, 0, 0, 0, time.UTC)},
		"a year's end":    {domain.RefillMonth, time.Date(2026, 12, 31, 23, 0, 0, 0, time.UTC), time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)},
		"in another zone": {domain.RefillDay, time.Date(2026, 2, 1, 0, 59, 0, 0, time.FixedZone("CET", 3600)), time.Date(2026, 2, 1, 1, 0, 0, 0, time.FixedZone("CET", 3600)), time.Date(2026, 2, 1, 0, 0, 0, 0, time.UTC)},
		"never":           {domain.RefillNone, noon, noon.AddDate(100, 0, 0), time.Time{}},
	} {
		_, use := quoted(t, Options{Clock: func() time.Time { return clock }}, domain.KeyCreated{Quota: domain.Quota{Limit: 2, Refill: test.refill}})
		for i, want := range []domain.Outcome{domain.OutcomeValid, domain.OutcomeValid, domain.OutcomeQuotaExceeded} {
			if v := use(test.last); v.Outcome != want || v.Quota.Remaining != uint64(max(1-i, 0)) || !v.Quota.Reset.Equal(test.reset) {
				t.Errorf("%s: use %d is %s, %+v", name, i, v.Outcome, v.Quota)
			}
		}
		want := domain.OutcomeValid
		if test.refill == domain.RefillNone {
			want = domain.OutcomeQuotaExceeded
		}
		if v := use(test.first); v.Outcome != want {
			t.Errorf("%s: in the next period %s", name, v.Outcome)
		}
	}
}

// A clock that is set back brings no period back: what is accepted then is spent of the newer one, and is
// recorded there, so that the log says of no period more than its quota.
func TestAPeriodNeverComesBack(t *testing.T) {
	t.Parallel()
	clock := noon
	x, use := quoted(t, Options{Clock: func() time.Time { return clock }}, domain.KeyCreated{Quota: domain.Quota{Limit: 2, Refill: domain.RefillDay}})
	tomorrow := noon.AddDate(0, 0, 1)
	var outcomes []domain.Outcome
	for _, at := range []time.Time{noon, noon, tomorrow, noon, noon} {
		outcomes = append(outcomes, use(at).Outcome)
	}
	if want := [5]domain.Outcome{4: domain.OutcomeQuotaExceeded}; [5]domain.Outcome(outcomes) != want {
		t.Errorf("%v, want %v", outcomes, want)
	}
	x.Spend(9, false, []domain.Use{{Key: idOf(1), Count: 100, Last: noon}})
	if s, ok := x.Quota(idOf(1), tomorrow); !ok || s.Remaining != 0 {
		t.Errorf("uses of a period that is over count: %+v", s)
	}
	perDay := map[int]uint64{}
	for _, u := range allUses(t, x, tomorrow) {
		if first, last := time.UnixMilli(u.First).UTC(), time.UnixMilli(u.Last).UTC(); u.Outcome.Accepted() {
			if first.Day() != last.Day() {
				t.Errorf("one count spans %v to %v", first, last)
			}
			perDay[last.Day()] += u.Count
		}
	}
	if perDay[31] != 2 || perDay[1] != 2 {
		t.Errorf("by day %v are recorded", perDay)
	}
}

func allUses(t *testing.T, x *Index, now time.Time) (all []Counted) {
	t.Helper()
	if err := NewCollector(x).Each(func() time.Time { return now }, 1<<20, nil, func(uses []Counted) error {
		all = append(all, uses...)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

func TestWhatIsRefusedCostsNothing(t *testing.T) {
	t.Parallel()
	clock := noon
	x, use := quoted(t, Options{Clock: func() time.Time { return clock }}, domain.KeyCreated{RateLimit: 3, Quota: domain.Quota{Limit: 5, Refill: domain.RefillDay}})
	for range 3 {
		use(noon)
	}
	if v := use(noon); v.Outcome != domain.OutcomeRateLimited || v.Quota.Remaining != 2 {
		t.Errorf("over the limit: %s, %+v", v.Outcome, v.Quota)
	}
	later := noon.Add(2 * time.Minute)
	use(later)
	use(later)
	if v := use(later); v.Outcome != domain.OutcomeQuotaExceeded || v.Limit.Remaining != 1 {
		t.Errorf("over the quota: %s, %+v", v.Outcome, v.Limit)
	}
	if v, err := x.Verify(domain.Verification{Digest: secretOf(1), Required: domain.Scopes{"write"}, Now: noon.AddDate(0, 0, 1)}); err != nil || v.Outcome != domain.OutcomeInsufficientScope || v.Quota.Remaining != 5 {
		t.Errorf("without the scope: %s, %+v, %v", v.Outcome, v.Quota, err)
	}
	if v, err := x.Verify(domain.Verification{Digest: secretOf(1), Silent: true, Now: later}); err != nil || v.Outcome != domain.OutcomeValid || v.Quota.Remaining != 5 {
		t.Errorf("a silent look: %s, %+v, %v", v.Outcome, v.Quota, err)
	}
	counts := map[domain.Outcome]uint64{}
	for _, u := range allUses(t, x, later) {
		counts[u.Outcome] += u.Count
	}
	if counts[domain.OutcomeValid] != 5 || counts[domain.OutcomeRateLimited] != 1 || counts[domain.OutcomeQuotaExceeded] != 1 {
		t.Errorf("recorded are %v", counts)
	}
}

// A use of the asker's own key costs no limit, but it is recorded, and so it is spent.
func TestAFreeUseIsSpent(t *testing.T) {
	t.Parallel()
	x, _ := quoted(t, Options{}, domain.KeyCreated{RateLimit: 1, Quota: domain.Quota{Limit: 2, Refill: domain.RefillNone}})
	for i, want := range []domain.Outcome{domain.OutcomeValid, domain.OutcomeValid, domain.OutcomeQuotaExceeded} {
		if v, err := x.Verify(domain.Verification{Digest: secretOf(1), Free: true, Now: time.Now()}); err != nil || v.Outcome != want {
			t.Errorf("use %d: %s, %v", i, v.Outcome, err)
		}
	}
}

func TestAQuotaIsNotOverspentByManyAtOnce(t *testing.T) {
	t.Parallel()
	const limit, workers, each = 5_000, 8, 2_000
	x, _ := quoted(t, Options{}, domain.KeyCreated{RateLimit: 1_000_000, Quota: domain.Quota{Limit: limit, Refill: domain.RefillNone}})
	var accepted, elsewhere atomic.Uint64
	var group sync.WaitGroup
	for w := range workers {
		group.Go(func() {
			for i := range each {
				v, err := x.Verify(domain.Verification{Digest: secretOf(1), Now: time.Now()})
				switch {
				case err != nil:
					t.Error(err)
					return
				case v.Outcome == domain.OutcomeValid:
					accepted.Add(1)
				case v.Outcome != domain.OutcomeQuotaExceeded:
					t.Errorf("%s", v.Outcome)
					return
				}
				if w == 0 && i%20 == 0 && elsewhere.Load() < 50 { // others spend meanwhile
					x.Spend(domain.Position(i+1), false, []domain.Use{{Key: idOf(1), Count: 1, Last: time.Now()}, {Key: idOf(1), Outcome: domain.OutcomeQuotaExceeded, Count: 9, Last: time.Now()}})
					elsewhere.Add(1)
				}
			}
		})
	}
	var collected atomic.Uint64
	group.Go(func() {
		for range 50 {
			for _, u := range allUses(t, x, time.Now()) {
				if u.Outcome == domain.OutcomeValid {
					collected.Add(u.Count)
				}
			}
		}
	})
	group.Wait()
	for _, u := range allUses(t, x, time.Now()) {
		if u.Outcome == domain.OutcomeValid {
			collected.Add(u.Count)
		}
	}
	if n := accepted.Load() + elsewhere.Load(); n < limit || accepted.Load() > limit || n > limit+elsewhere.Load() {
		t.Errorf("%d uses were accepted here and %d elsewhere, of %d", accepted.Load(), elsewhere.Load(), limit)
	}
	if collected.Load() != accepted.Load() {
		t.Errorf("%d uses were accepted, and %d are recorded", accepted.Load(), collected.Load())
	}
}

// Of a key that comes with a snapshot nothing is said before it is known what was spent.
func TestAQuotaThatIsNotKnownIsNeitherSpentNorRefused(t *testing.T) {
	t.Parallel()
	clock := noon
	x := New(Options{Clock: func() time.Time { return clock }})
	load := func() {
		l := Begin(History{}, 7, 1)
		key := domain.Key{ID: idOf(1), Digest: secretOf(1), Organization: "org_1", Scopes: domain.Scopes{"read"}, Quota: domain.Quota{Limit: 10, Refill: domain.RefillDay}}
		if err := l.Add(row(l, key, 1)); err != nil {
			t.Fatal(err)
		}
		x.Replace(l, 7, 0)
	}
	load()
	verify := func() (domain.Verdict, error) {
		return x.Verify(domain.Verification{Digest: secretOf(1), Now: clock})
	}
	if v, err := verify(); domain.CodeOf(err) != domain.CodeUnavailable || v.Outcome != 0 || x.Ready() {
		t.Errorf("%+v, %v, ready %v", v, err, x.Ready())
	}
	select {
	case <-x.QuotaNews():
	default:
		t.Error("nobody is told that there is a quota")
	}
	unknown := x.UnknownQuotas()
	if len(unknown) != 1 || unknown[0] != (QuotaKey{idOf(1), domain.RefillDay}) {
		t.Fatalf("%v are not known", unknown)
	}
	use := func(at time.Time, n uint64) []domain.Use {
		return []domain.Use{{Key: idOf(1), Outcome: domain.OutcomeValidStale, Count: n, Last: at}}
	}
	x.Base(idOf(1), 20, clock)
	x.Before(idOf(1), clock, 2)
	x.Spend(20, true, use(clock, 100))                  // in the base already
	x.Spend(21, true, use(clock, 1))                    // it comes again, for this key
	x.Spend(21, true, use(clock.AddDate(0, 0, -1), 50)) // yesterday
	x.Heard(unknown)
	x.Spend(21, true, use(clock, 100)) // again, for others
	x.Spend(22, false, use(clock, 3))
	if _, err := verify(); err == nil {
		t.Error("it is answered for before all that was spent is told")
	}
	x.Known(unknown)
	if v, err := verify(); err != nil || v.Outcome != domain.OutcomeValid || v.Quota.Remaining != 3 || !x.Ready() {
		t.Errorf("%+v, %v, ready %v", v, err, x.Ready())
	}
	// Nothing is forgotten when the keys are loaded anew.
	load()
	if v, err := verify(); err != nil || v.Quota.Remaining != 2 || !x.Ready() {
		t.Errorf("%+v, %v, ready %v", v.Quota, err, x.Ready())
	}
	x.Base(idOf(1), 99, clock)
	if s, _ := x.Quota(idOf(1), clock); s.Remaining != 2 {
		t.Errorf("what is known begins anew: %+v", s)
	}
}

// What is not known in time must not keep a node from answering for all other keys.
func TestANodeIsReadyThoughQuotasAreLate(t *testing.T) {
	t.Parallel()
	x := New(Options{})
	l := Begin(History{}, 7, 1)
	if err := l.Add(row(l, domain.Key{ID: idOf(1), Digest: secretOf(1), Organization: "org_1", Quota: domain.Quota{Limit: 10, Refill: domain.RefillDay}}, 1)); err != nil {
		t.Fatal(err)
	}
	x.Replace(l, 7, 0)
	before := x.Ready()
	x.QuotasLate()
	if before || !x.Ready() {
		t.Errorf("ready %v, and later %v", before, x.Ready())
	}
}

func TestAVerifierLeavesQuotasToOthers(t *testing.T) {
	t.Parallel()
	x, _ := quoted(t, Options{QuotasElsewhere: true}, domain.KeyCreated{Quota: domain.Quota{Limit: 1, Refill: domain.RefillDay}})
	if _, err := x.Verify(domain.Verification{Digest: secretOf(1), Now: time.Now()}); !errors.Is(err, ErrElsewhere) {
		t.Error(err)
	}
	if v, err := x.Verify(domain.Verification{Digest: secretOf(1), Required: domain.Scopes{"write"}, Now: time.Now()}); err != nil || v.Outcome != domain.OutcomeInsufficientScope {
		t.Errorf("%s, %v", v.Outcome, err)
	}
	if !x.Ready() || len(x.UnknownQuotas()) > 0 {
		t.Error("a verifier that keeps no quotas waits for them")
	}
}

// The last use of a quota is where two may meet: so there are many last uses.
func TestEveryQuotaIsSpentToTheUse(t *testing.T) {
	t.Parallel()
	const keys, limit, workers, each = 2_000, 3, 8, 2
	x := empty(Options{})
	for n := range keys {
		created := domain.KeyCreated{
			Key: idOf(n), Digest: secretOf(n), Organization: "org_1", Scopes: domain.Scopes{"read"}, RateLimit: uint32(n%2) * 1000,
			Quota: domain.Quota{Limit: limit, Refill: domain.RefillNone},
		}
		if err := x.Apply([]Event{{Position: domain.Position(n + 1), Version: 1, Event: created}}); err != nil {
			t.Fatal(err)
		}
	}
	var accepted [keys]atomic.Uint64
	var group sync.WaitGroup
	for range workers {
		group.Go(func() {
			for n := range keys {
				for range each {
					v, err := x.Verify(domain.Verification{Digest: secretOf(n), Now: time.Now()})
					if err != nil {
						t.Error(err)
						return
					}
					if v.Outcome == domain.OutcomeValid {
						accepted[n].Add(1)
					}
				}
			}
		})
	}
	group.Wait()
	recorded := map[domain.KeyID]uint64{}
	for _, u := range allUses(t, x, time.Now()) {
		if u.Outcome == domain.OutcomeValid {
			recorded[u.Key] += u.Count
		}
	}
	for n := range keys {
		if a, r := accepted[n].Load(), recorded[idOf(n)]; a != limit || r != limit {
			t.Fatalf("key %d: %d uses of %d were accepted, and %d are recorded", n, a, limit, r)
		}
	}
}
