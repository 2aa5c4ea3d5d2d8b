package verification

import (
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"keyledger/domain"
)

// accountMetrics publishes an accountant. The uses of known keys are counted here when
// they are recorded, so that a verification does not count them a second time.
type accountMetrics struct {
	accountant   *Accountant
	uses         [domain.Outcomes]atomic.Uint64
	flushes      atomic.Uint64
	failures     atomic.Uint64
	recordedUpTo atomic.Int64 // Unix microseconds
	duration     prometheus.Histogram
}

var (
	usesMetric     = prometheus.NewDesc("keyledger_uses_recorded_total", "Uses of known keys that are recorded in the log, by outcome.", []string{"outcome"}, nil)
	flushesMetric  = prometheus.NewDesc("keyledger_usage_flushes_total", "Flushes of uses that were committed.", nil, nil)
	failuresMetric = prometheus.NewDesc("keyledger_usage_flush_failures_total", "Flushes of uses that failed, and were kept to be repeated.", nil, nil)
	windowMetric   = prometheus.NewDesc("keyledger_usage_window_seconds", "Time between two flushes of uses, as it is now.", nil, nil)
	lagMetric      = prometheus.NewDesc("keyledger_usage_lag_seconds", "Age of the oldest use that may not be recorded yet.", nil, nil)
)

func newAccountMetrics(a *Accountant) *accountMetrics {
	m := &accountMetrics{accountant: a, duration: prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "keyledger_usage_flush_seconds", Help: "Duration of appending one flush of uses.",
		Buckets: []float64{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5},
	})}
	m.recordedUpTo.Store(a.o.Clock().UnixMicro())
	return m
}

func (m *accountMetrics) recorded(events []domain.KeyUsed, took time.Duration) {
	m.flushes.Add(1)
	m.duration.Observe(took.Seconds())
	for _, e := range events {
		for _, u := range e.Uses {
			m.uses[u.Outcome].Add(u.Count)
		}
	}
}

func (m *accountMetrics) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{usesMetric, flushesMetric, failuresMetric, windowMetric, lagMetric} {
		to <- d
	}
	m.duration.Describe(to)
}

func (m *accountMetrics) Collect(to chan<- prometheus.Metric) {
	for outcome := range m.uses {
		if domain.Outcome(outcome) != domain.OutcomeNotFound {
			to <- prometheus.MustNewConstMetric(usesMetric, prometheus.CounterValue, float64(m.uses[outcome].Load()), domain.Outcome(outcome).String())
		}
	}
	to <- prometheus.MustNewConstMetric(flushesMetric, prometheus.CounterValue, float64(m.flushes.Load()))
	to <- prometheus.MustNewConstMetric(failuresMetric, prometheus.CounterValue, float64(m.failures.Load()))
	to <- prometheus.MustNewConstMetric(windowMetric, prometheus.GaugeValue, m.accountant.Window().Seconds())
	lag := m.accountant.o.Clock().Sub(time.UnixMicro(m.recordedUpTo.Load()))
	to <- prometheus.MustNewConstMetric(lagMetric, prometheus.GaugeValue, max(lag, 0).Seconds())
	m.duration.Collect(to)
}
