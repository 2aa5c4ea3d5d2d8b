package transparency_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"keyledger/domain"
	"keyledger/projections/internal/logtest"
)

// BenchmarkAppendBesideATree compares the latency of appends at half of what the
// log can take, with and without a tree that follows, in turns. The tree must
// cost them nothing.
func BenchmarkAppendBesideATree(b *testing.B) {
	l := logtest.NewDurable(b)
	const callers, phase, turns = 32, 2 * time.Second, 4
	done := appendFor(b, l, callers, 0, phase)
	rate := float64(len(done)) / phase.Seconds() / 2
	var latencies [2][]time.Duration
	for range b.N {
		for turn := range 2 * turns {
			ctx, stop := context.WithCancel(b.Context())
			var running sync.WaitGroup
			if turn%2 == 1 {
				for _, lane := range domain.Lanes() {
					tree := newTree(b, l, lane)
					logtest.Must(b, tree.Advance(ctx))
					running.Go(func() { _ = tree.Run(ctx) })
				}
			}
			latencies[turn%2] = append(latencies[turn%2], appendFor(b, l, callers, rate, phase)...)
			stop()
			running.Wait()
		}
	}
	var at [2][2]float64
	for i := range latencies {
		slices.Sort(latencies[i])
		at[i] = [2]float64{percentile(latencies[i], 50), percentile(latencies[i], 99)}
	}
	b.ReportMetric(rate, "appends/s")
	b.ReportMetric(at[0][0], "p50_ms")
	b.ReportMetric(at[1][0], "p50_ms_tree")
	b.ReportMetric(at[1][0]/at[0][0], "p50_ratio")
	b.ReportMetric(at[1][1]/at[0][1], "p99_ratio")
	b.ReportMetric(0, "ns/op")
}

func percentile(sorted []time.Duration, p int) float64 {
	return float64(sorted[len(sorted)*p/100].Microseconds()) / 1000
}

// appendFor makes keys for some time, at a rate, or as fast as it goes when that
// is 0, and gives how long each took.
func appendFor(b *testing.B, l *logtest.Log, callers int, rate float64, d time.Duration) []time.Duration {
	b.Helper()
	var mu sync.Mutex
	var all []time.Duration
	var group sync.WaitGroup
	end := time.Now().Add(d)
	for c := range callers {
		group.Go(func() {
			var mine []time.Duration
			var due <-chan time.Time
			if rate > 0 {
				ticker := time.NewTicker(time.Duration(float64(callers) / rate * float64(time.Second)))
				defer ticker.Stop()
				due = ticker.C
			}
			for i := 0; time.Now().Before(end); i++ {
				if due != nil {
					<-due
				}
				started := time.Now()
				if _, err := l.TryCreate("org_a", fmt.Sprint("key ", c, i), started); err != nil {
					b.Error(err)
					return
				}
				mine = append(mine, time.Since(started))
			}
			mu.Lock()
			defer mu.Unlock()
			all = append(all, mine...)
		})
	}
	group.Wait()
	return all
}
