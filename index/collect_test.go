package index

import (
	"errors"
	"testing"
	"time"

	"keyledger/domain"
)

func collected(t *testing.T, c *Collector, now func() time.Time) (counts [domain.Outcomes]uint64) {
	t.Helper()
	if err := c.Each(now, 1000, nil, func(uses []Counted) error {
		for _, u := range uses {
			counts[u.Outcome] += u.Count
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return counts
}

func TestTalliesGoBackWhenTheirKeysAreIdleAndNotBefore(t *testing.T) {
	t.Parallel()
	now := time.Now()
	keys := plainKeys(100)
	x := filled(t, keys)
	counts := NewCollector(x)
	flush := func() { collected(t, counts, func() time.Time { return now }) }
	c := x.contents.Load()
	lent := func() (n int) {
		for ref := uint32(1); ref <= c.count; ref++ {
			if c.number(ref).Load() != 0 {
				n++
			}
		}
		return n
	}
	use := func(keys [][]byte, times int) (accepted int) {
		for _, key := range keys {
			for range times {
				v, err := x.Verify(domain.Verification{Digest: digestOf(key), Now: now})
				if err != nil {
					t.Fatal(err)
				}
				if v.Outcome == domain.OutcomeValid {
					accepted++
				}
			}
		}
		return accepted
	}
	if n := use(keys, int(domain.DefaultRateLimit)+5); n != len(keys)*int(domain.DefaultRateLimit) || lent() != len(keys) {
		t.Fatalf("%d accepted, %d tallies", n, lent())
	}
	for range 6 {
		flush()
		now = now.Add(10 * time.Second)
		if n := use(keys[:50], 1); n != 0 || lent() != len(keys) {
			t.Fatalf("within the minute: %d accepted, %d tallies", n, lent())
		}
	}
	now = now.Add(20 * time.Second)
	use(keys[:50], 1)
	flush()
	if lent() != 50 {
		t.Errorf("%d tallies are lent, 50 keys are in use", lent())
	}
	made := c.tallies.made.Load()
	if n := use(keys[50:], int(domain.DefaultRateLimit)+5); n != 50*int(domain.DefaultRateLimit) {
		t.Errorf("%d accepted", n)
	}
	if c.tallies.made.Load() != made {
		t.Error("new tallies were made though old ones were free")
	}
}

func TestUsesCountedBeforeTheKeysWereLoadedAnewAreCollected(t *testing.T) {
	t.Parallel()
	keys := plainKeys(10)
	x := filled(t, keys)
	counts := NewCollector(x)
	for _, key := range keys {
		verifyPlain(x, key, nil)
	}
	x.Replace(&Loading{filled(t, keys).contents.Load()}, 10, 0)
	for _, key := range keys {
		verifyPlain(x, key, nil)
	}
	n := uint64(0)
	for range 3 {
		n += collected(t, counts, time.Now)[domain.OutcomeValid]
	}
	if n != 20 {
		t.Errorf("%d uses of 20", n)
	}
	if len(x.former) != 0 {
		t.Error("what was replaced is kept for ever")
	}
}

func TestWhatWasTakenIsNotCountedAnyMoreThoughTakingFailed(t *testing.T) {
	t.Parallel()
	keys := plainKeys(5)
	x := filled(t, keys)
	counts := NewCollector(x)
	for _, key := range keys {
		verifyPlain(x, key, nil)
	}
	n, broken := 0, errors.New("broken")
	if err := counts.Each(time.Now, 2, nil, func(uses []Counted) error { n += len(uses); return broken }); !errors.Is(err, broken) || n != 2 {
		t.Errorf("%d uses, %v", n, err)
	}
	if rest := collected(t, counts, time.Now)[domain.OutcomeValid]; rest != 3 {
		t.Errorf("%d uses are left of 3", rest)
	}
}
