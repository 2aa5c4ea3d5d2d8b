package index

import (
	"testing"
	"time"
	"unsafe"

	"keyledger/domain"
)

// clocks makes readings of a clock whose two parts have advanced by different times.
type clocks struct{ base time.Time }

func (c clocks) at(monotonic, wall time.Duration) time.Time {
	t, w := c.base.Add(monotonic), c.base.Add(wall)
	// The second word of a Time from time.Now is its monotonic part.
	*(*int64)(unsafe.Add(unsafe.Pointer(&w), 8)) = *(*int64)(unsafe.Add(unsafe.Pointer(&t), 8))
	if w.Sub(c.base) != monotonic || w.UnixNano()-c.base.UnixNano() != int64(wall) {
		panic("a Time looks different now")
	}
	return w
}

const second, ms = time.Second, time.Millisecond

// leasedIndex has one key, and has applied one position.
func leasedIndex(t *testing.T, maxStale time.Duration) (*Index, clocks, []byte) {
	t.Helper()
	keys := plainKeys(1)
	x := empty(Options{Leased: true, Lease: second, MaxStale: maxStale})
	now := time.Now()
	if err := x.Apply([]Event{created(1, keys[0], now)}); err != nil {
		t.Fatal(err)
	}
	return x, clocks{now}, keys[0]
}

func verifyAt(x *Index, plain []byte, now time.Time) (domain.Verdict, error) {
	return x.Verify(domain.Verification{Digest: digestOf(plain), Now: now})
}

func TestALeaseLastsByBothClocks(t *testing.T) {
	t.Parallel()
	const asked = 10 * second
	for name, test := range map[string]struct {
		monotonic, wall time.Duration // since it was asked for
		age             time.Duration // -1: no verdict
	}{
		"at once":                                {0, 0, 0},
		"for a request that came before":         {-ms, -ms, 0},
		"in the middle":                          {400 * ms, 400 * ms, 400 * ms},
		"a nanosecond before it ends":            {second - 1, second - 1, second - 1},
		"when it has ended":                      {second, second, -1},
		"long after it has ended":                {time.Hour, time.Hour, -1},
		"slewed within what is let pass":         {100 * ms, 150 * ms, 100 * ms},
		"suspended":                              {100 * ms, 150*ms + 1, -1},
		"suspended for hours":                    {100 * ms, 5 * time.Hour, -1},
		"stepped back":                           {100 * ms, -time.Hour, 100 * ms},
		"stepped back, and ended":                {second, -time.Hour, -1},
		"stepped back for a request from before": {-ms, -time.Hour, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			x, clock, key := leasedIndex(t, 0)
			x.Grant(clock.at(asked, asked), 1)
			verdict, err := verifyAt(x, key, clock.at(asked+test.monotonic, asked+test.wall))
			if test.age < 0 {
				if domain.CodeOf(err) != domain.CodeUnavailable || verdict.Outcome != domain.OutcomeValid || verdict.Key != (domain.KeyID{}) {
					t.Errorf("%+v, %v", verdict, err)
				}
				return
			}
			if err != nil || verdict.Outcome != domain.OutcomeValid || verdict.Age != test.age || verdict.Stale || verdict.Position != 1 {
				t.Errorf("%+v, %v, want an age of %v", verdict, err, test.age)
			}
		})
	}
}

func TestALeaseCountsFromBeforeItWasAskedForAndOnceItsHeadIsApplied(t *testing.T) {
	t.Parallel()
	keys := plainKeys(3)
	x, clock, key := leasedIndex(t, 0)
	expect := func(when string, at time.Duration, want time.Duration) {
		t.Helper()
		verdict, err := verifyAt(x, key, clock.at(at, at))
		switch {
		case want < 0 && domain.CodeOf(err) != domain.CodeUnavailable:
			t.Errorf("%s: %+v, %v", when, verdict, err)
		case want >= 0 && (err != nil || verdict.Age != want):
			t.Errorf("%s: age %v, %v, want %v", when, verdict.Age, err, want)
		}
	}
	apply := func(position int) {
		t.Helper()
		if err := x.Apply([]Event{created(position, keys[position-1], clock.base)}); err != nil {
			t.Fatal(err)
		}
	}
	expect("without a lease", 0, -1)
	if !x.Ready() || x.Leased() {
		t.Error("loaded and leased are not told apart")
	}
	// Each answer comes late: the lease is what the clock said before.
	x.Grant(clock.at(5*second, 5*second), 2)
	expect("before its head is applied", 5*second, -1)
	apply(2)
	expect("when its head is applied", 5500*ms, 500*ms)
	x.Grant(clock.at(5500*ms, 5500*ms), 3)
	x.Grant(clock.at(5600*ms, 5600*ms), 3)
	expect("a newer one does not count yet, the older one does", 5900*ms, 900*ms)
	expect("when the older one ends", 6*second, -1)
	apply(3)
	expect("when the newest counts", 6*second, 400*ms)
	x.Grant(clock.at(5200*ms, 5200*ms), 3)
	expect("one that was asked for earlier changes nothing", 6*second, 400*ms)
	x.Grant(clock.at(7*second, 7*second), 3)
	expect("after a gap", 7*second, 0)
}

// An index that is always some positions behind would never have applied the newest head.
func TestAnIndexThatLagsGetsLeasesAllTheSame(t *testing.T) {
	t.Parallel()
	const renewals = 40
	keys := plainKeys(renewals * 4)
	x, clock, key := leasedIndex(t, 0)
	var refused time.Duration
	for i := range renewals {
		now := time.Duration(i) * 250 * ms
		x.Grant(clock.at(now, now), domain.Position(3+i)) // two positions ahead of what comes here
		if err := x.Apply([]Event{created(2+i, keys[1+i], clock.base)}); err != nil {
			t.Fatal(err)
		}
		if _, err := verifyAt(x, key, clock.at(now+249*ms, now+249*ms)); err != nil && i > 0 {
			refused += 250 * ms
		}
	}
	if refused > 0 {
		t.Errorf("no lease counted for %v of %v", refused, renewals*250*ms)
	}
}

func TestALeaseSaysNothingAboutKeysThatAreLoadedAnew(t *testing.T) {
	t.Parallel()
	x, clock, key := leasedIndex(t, 0)
	x.Grant(clock.at(0, 0), 1)
	if _, err := verifyAt(x, key, clock.at(0, 0)); err != nil {
		t.Fatal(err)
	}
	// A snapshot from before what the lease knows of.
	x.Replace(Begin(History{}, 0, 0), 0, 0)
	if v, err := verifyAt(x, key, clock.at(0, 0)); domain.CodeOf(err) != domain.CodeUnavailable || !x.Ready() {
		t.Errorf("%+v, %v, loaded %v", v, err, x.Ready())
	}
	if err := x.Apply([]Event{created(1, key, clock.base)}); err != nil {
		t.Fatal(err)
	}
	// Not even now: of the old keys more may have been confirmed than the lease knows of.
	if _, err := verifyAt(x, key, clock.at(50*ms, 50*ms)); domain.CodeOf(err) != domain.CodeUnavailable {
		t.Errorf("a lease from before counts: %v", err)
	}
	x.Grant(clock.at(100*ms, 100*ms), 1)
	if _, err := verifyAt(x, key, clock.at(100*ms, 100*ms)); err != nil {
		t.Error(err)
	}
	// What is distrusted may be another history, about which no lease says anything.
	x.Distrust()
	x.Replace(Begin(History{}, 1, 0), 1, 0)
	if _, err := verifyAt(x, key, clock.at(100*ms, 100*ms)); domain.CodeOf(err) != domain.CodeUnavailable {
		t.Errorf("the lease of another history counts: %v", err)
	}
	x.Grant(clock.at(200*ms, 200*ms), 1)
	if v, err := verifyAt(x, key, clock.at(200*ms, 200*ms)); err != nil || v.Outcome != domain.OutcomeNotFound {
		t.Errorf("%+v, %v", v, err)
	}
}

func TestBeyondItsLeaseAnIndexGoesOnOnlyWhenItIsToldTo(t *testing.T) {
	t.Parallel()
	const maxStale = 60 * second
	for name, test := range map[string]struct {
		monotonic, wall time.Duration
		age             time.Duration // -1: no verdict
		stale           bool
	}{
		"within the lease":               {second - 1, second - 1, second - 1, false},
		"beyond it":                      {second, second, second, true},
		"just before the end":            {maxStale - 1, maxStale - 1, maxStale - 1, true},
		"at the end":                     {maxStale, maxStale, -1, false},
		"a short sleep":                  {100 * ms, 300 * ms, second, true}, // a void lease is never young
		"a sleep counts":                 {2 * second, 12 * second, 12 * second, true},
		"a sleep that was too long":      {2 * second, maxStale, -1, false},
		"the clock was set back":         {30 * second, -time.Hour, 30 * second, true},
		"the clock was set back, at end": {maxStale, -time.Hour, -1, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			x, clock, key := leasedIndex(t, maxStale)
			x.Grant(clock.at(0, 0), 1)
			verdict, err := verifyAt(x, key, clock.at(test.monotonic, test.wall))
			if test.age < 0 {
				if domain.CodeOf(err) != domain.CodeUnavailable {
					t.Errorf("%+v, %v", verdict, err)
				}
				return
			}
			if err != nil || verdict.Outcome != domain.OutcomeValid || verdict.Age != test.age || verdict.Stale != test.stale {
				t.Errorf("%+v, %v, want an age of %v, stale %v", verdict, err, test.age, test.stale)
			}
			want := domain.OutcomeValid
			if test.stale {
				want = domain.OutcomeValidStale
			}
			if counts := collected(t, NewCollector(x), time.Now); counts[want] != 1 {
				t.Errorf("counted as %v", counts)
			}
		})
	}
}

func TestWithoutAnyLeaseNothingIsStaleEnough(t *testing.T) {
	t.Parallel()
	x, clock, key := leasedIndex(t, time.Hour)
	if v, err := verifyAt(x, key, clock.at(0, 0)); domain.CodeOf(err) != domain.CodeUnavailable {
		t.Errorf("%+v, %v", v, err)
	}
}

func TestStaleUsesCostTheLimit(t *testing.T) {
	t.Parallel()
	x, clock, key := leasedIndex(t, time.Hour)
	x.Grant(clock.at(0, 0), 1)
	accepted := 0
	for range domain.DefaultRateLimit + 10 {
		if v, err := verifyAt(x, key, clock.at(2*second, 2*second)); err == nil && v.Outcome == domain.OutcomeValid && v.Stale {
			accepted++
		}
	}
	if accepted != int(domain.DefaultRateLimit) {
		t.Errorf("%d uses of %d were accepted", accepted, domain.DefaultRateLimit)
	}
	counts := collected(t, NewCollector(x), time.Now)
	if counts[domain.OutcomeValidStale] != uint64(accepted) || counts[domain.OutcomeRateLimited] != 10 || counts[domain.OutcomeValid] != 0 {
		t.Errorf("counted as %v", counts)
	}
}

func TestVerifyingWithALeaseAllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	x, clock, key := leasedIndex(t, time.Hour)
	x.Grant(clock.at(0, 0), 1)
	for name, at := range map[string]time.Duration{"leased": 0, "stale": 2 * second, "refused": 2 * time.Hour} {
		now := clock.at(at, at)
		_, _ = verifyAt(x, key, now)
		if n := testing.AllocsPerRun(1000, func() { _, _ = verifyAt(x, key, now) }); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}
