package index

import (
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/throttled/throttled/v2"
	"pgregory.net/rapid"
)

const owner = 7

func freshTally() *tally {
	t := &tally{}
	t.uses.Store(owner << countBits)
	return t
}

// slidingLog is the exact limiter: it remembers every use.
type slidingLog struct{ accepted []time.Duration }

// within counts the uses in the time that ends at a moment.
func (l *slidingLog) within(window, now time.Duration) int {
	n := 0
	for i := len(l.accepted) - 1; i >= 0 && l.accepted[i] > now-window; i-- {
		n++
	}
	return n
}

func takeAt(t *tally, limit uint32, at time.Duration) bool {
	_, result := t.take(owner, limit, limit, bucketOf(at))
	return result == taken
}

func TestNoWindowOf60SecondsPassesMoreThanTheLimit(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.OneOf(rapid.Uint32Range(1, 70), rapid.Uint32Range(71, 700)).Draw(t, "limit")
		tally, log := freshTally(), slidingLog{}
		now := time.Hour
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			// Pauses between none and beyond all memory, and often right at the edges of buckets.
			now += rapid.OneOf(
				rapid.Just(time.Duration(0)),
				rapid.Map(rapid.Int64Range(1, 20_000), func(ms int64) time.Duration { return time.Duration(ms) * time.Millisecond }),
				rapid.Map(rapid.Int64Range(1, 12), func(n int64) time.Duration { return time.Duration(n)*bucketWidth - 1 }),
				rapid.Map(rapid.Int64Range(60, 200), func(s int64) time.Duration { return time.Duration(s) * time.Second }),
			).Draw(t, "pause")
			inWindow, remembered := log.within(time.Minute, now), log.within(11*bucketWidth, now)
			for range rapid.IntRange(1, 2*int(limit)).Draw(t, "attempts") {
				if takeAt(tally, limit, now) {
					inWindow, remembered = inWindow+1, remembered+1
					if inWindow > int(limit) {
						t.Fatalf("use %d of %d in a window that ends at %v", inWindow, limit, now)
					}
					log.accepted = append(log.accepted, now)
				} else if remembered+int(unit(limit))-1 < int(limit) {
					t.Fatalf("refused at %v after %d of %d in 66 seconds", now, remembered, limit)
				}
			}
			s := tally.peek(owner, limit, bucketOf(now))
			left, newest := s.left, s.newest
			if exact := int(limit) - log.within(time.Minute, now); int(left) > exact {
				t.Fatalf("%d are said to be left where %d are", left, exact)
			}
			if left < limit && newest == 0 {
				t.Fatalf("%d of %d are left, and no use is known", left, limit)
			}
			if (left == 0) != (s.next > 0) {
				t.Fatalf("%d are left, and the next one is at %d", left, s.next)
			}
			if s.next > 0 && rapid.Bool().Draw(t, "wait") {
				// Whoever waits as long as it is told is let in, and nobody is told to wait longer than it takes.
				before, after := time.Duration(s.next*bucketWidth)-1, time.Duration(s.next*bucketWidth)
				if before >= now && takeAt(tally, limit, before) {
					t.Fatalf("%v before the moment that was told there is room", after-before)
				}
				if after < now || !takeAt(tally, limit, after) {
					t.Fatalf("at %v, the moment that was told at %v, there is no room", after, now)
				}
				log.accepted, now = append(log.accepted, after), after
			}
		}
	})
}

func TestAnEvenClientBelow89PercentIsNeverRefused(t *testing.T) {
	t.Parallel()
	for _, limit := range []uint32{10, 60, 63, 64, 100, 1000, 12345} {
		tally := freshTally()
		step := time.Duration(float64(time.Minute) / (0.89 * float64(limit)))
		at := time.Hour
		for range 20 * limit {
			at += step
			if !takeAt(tally, limit, at) {
				t.Fatalf("limit %d: refused after %v", limit, at-time.Hour)
			}
		}
	}
}

func TestABurstOfTheWholeLimitIsAcceptedAfterAQuietMinute(t *testing.T) {
	t.Parallel()
	for _, limit := range []uint32{1, 63, 64, 1000} {
		tally := freshTally()
		for minute := range 5 {
			at := time.Hour + time.Duration(minute)*67*time.Second
			for i := range limit {
				if !takeAt(tally, limit, at) {
					t.Fatalf("limit %d: use %d of the burst is refused", limit, i+1)
				}
			}
			if takeAt(tally, limit, at) {
				t.Fatalf("limit %d: a use beyond the burst is accepted", limit)
			}
		}
	}
}

// A GCRA whose burst is the limit passes nearly twice the limit in a window. This is
// what makes the words of this package worth their bits.
func TestAGCRAWouldPassNearlyTwiceTheLimit(t *testing.T) {
	t.Parallel()
	const limit = 100
	store := &gcraStore{now: time.Unix(1_700_000_000, 0)}
	gcra, err := throttled.NewGCRARateLimiterCtx(store, throttled.RateQuota{MaxRate: throttled.PerMin(limit), MaxBurst: limit - 1})
	if err != nil {
		t.Fatal(err)
	}
	tally := freshTally()
	theirs, ours := 0, 0
	for ms := range 60_000 {
		store.now = store.now.Add(time.Millisecond)
		if limited, _, err := gcra.RateLimitCtx(t.Context(), "key", 1); err != nil {
			t.Fatal(err)
		} else if !limited {
			theirs++
		}
		if takeAt(tally, limit, time.Hour+time.Duration(ms)*time.Millisecond) {
			ours++
		}
	}
	if theirs < limit*19/10 || ours != limit {
		t.Errorf("in 60 seconds a GCRA passes %d of %d, and this limiter %d", theirs, limit, ours)
	}
}

// gcraStore is one value and a clock.
type gcraStore struct {
	now   time.Time
	value int64
	set   bool
}

func (s *gcraStore) GetWithTime(context.Context, string) (int64, time.Time, error) {
	if !s.set {
		return -1, s.now, nil
	}
	return s.value, s.now, nil
}

func (s *gcraStore) SetIfNotExistsWithTTL(_ context.Context, _ string, value int64, _ time.Duration) (bool, error) {
	if s.set {
		return false, nil
	}
	s.value, s.set = value, true
	return true, nil
}

func (s *gcraStore) CompareAndSwapWithTTL(_ context.Context, _ string, old, value int64, _ time.Duration) (bool, error) {
	if s.value != old {
		return false, nil
	}
	s.value = value
	return true, nil
}

func TestTheLimitHoldsAmongGoroutines(t *testing.T) {
	t.Parallel()
	const goroutines, limit = 8, 500
	tally, log := freshTally(), slidingLog{}
	random := rand.New(rand.NewPCG(3, 4))
	at := time.Hour
	for range 300 {
		at += time.Duration(random.IntN(9000)) * time.Millisecond
		accepted := make([]int, goroutines)
		var group sync.WaitGroup
		for g := range goroutines {
			group.Go(func() {
				for range 40 {
					if takeAt(tally, limit, at) {
						accepted[g]++
					}
				}
			})
		}
		group.Wait()
		for _, n := range accepted {
			for range n {
				log.accepted = append(log.accepted, at)
			}
		}
		if n := log.within(time.Minute, at); n > limit {
			t.Fatalf("%d of %d in a window that ends at %v", n, limit, at)
		}
	}
}

// Whoever finds a move unfinished finishes it: here every move is left after its
// first step, as by a goroutine that sleeps for ever.
func TestAMoveThatWasLeftIsFinishedByTheNext(t *testing.T) {
	t.Parallel()
	left, whole := freshTally(), freshTally()
	random := rand.New(rand.NewPCG(5, 6))
	at, limit := time.Hour, uint32(100)
	for range 2000 {
		at += time.Duration(random.IntN(15_000)) * time.Millisecond
		now := bucketOf(at)
		if recent := left.recent.Load(); now > recent>>bucketShift&bucketMask {
			ahead := min(now-recent>>bucketShift&bucketMask, 15)
			turn := (recent>>turnShift + 1) & turnMask
			left.recent.Store(turn<<turnShift | ahead<<aheadShift | now<<bucketShift | recent&recentMask)
		}
		for range 1 + random.IntN(20) {
			if a, b := takeAt(left, limit, at), takeAt(whole, limit, at); a != b {
				t.Fatalf("at %v the one says %v and the other %v", at, a, b)
			}
		}
	}
}
