package fence

import (
	"github.com/prometheus/client_golang/prometheus"

	"keyledger/domain"
)

// metrics are the fence's, as one collector.
type metrics struct {
	fence      *Fence
	waited     prometheus.Histogram
	expired    prometheus.Counter
	reaped     prometheus.Counter
	failed     prometheus.Counter
	unrecorded prometheus.Counter
	verifiers  *prometheus.Desc
}

func newMetrics(f *Fence) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "keyledger", Name: name, Help: help})
	}
	return &metrics{
		fence: f,
		waited: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: "keyledger", Name: "fence_seconds", Help: "From a revocation's commit until nobody accepts the key.",
			Buckets: []float64{.001, .002, .005, .01, .02, .05, .1, .25, .5, 1, 1.1, 2, 5, 10, 60},
		}),
		expired:    counter("fence_expired_total", "Verifiers that did not confirm a revocation and whose lease was waited for."),
		reaped:     counter("verifiers_reaped_total", "Verifiers that this node no longer waits for."),
		failed:     counter("lease_failures_total", "Renewals of this node's lease that failed."),
		unrecorded: counter("fence_unrecorded_total", "Fences whose end is not on record in the log."),
		verifiers:  prometheus.NewDesc("keyledger_verifiers", "Verifiers that revocations wait for, as this node last saw them.", []string{"kind"}, nil),
	}
}

func (m *metrics) ended(fenced domain.Fenced) {
	m.waited.Observe(fenced.Waited.Seconds())
	m.expired.Add(float64(len(fenced.Expired)))
}

// Describe is part of prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(m, ch) }

// Collect is part of prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	for _, c := range []prometheus.Metric{m.waited, m.expired, m.reaped, m.failed, m.unrecorded} {
		ch <- c
	}
	counts := map[Kind]int{Node: 0, Embedded: 0, Observers: 0}
	m.fence.mu.Lock()
	for _, v := range m.fence.members {
		counts[v.kind]++
	}
	m.fence.mu.Unlock()
	for kind, n := range counts {
		ch <- prometheus.MustNewConstMetric(m.verifiers, prometheus.GaugeValue, float64(n), string(kind))
	}
}
