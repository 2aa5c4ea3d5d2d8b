package eventstore

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"keyledger/domain"
)

type metrics struct {
	batchSize     *prometheus.HistogramVec
	appendSeconds *prometheus.HistogramVec
	appendRetries *prometheus.CounterVec
	conflicts     prometheus.Counter
	head          *prometheus.GaugeVec
}

func newMetrics(registerer prometheus.Registerer) *metrics {
	m := &metrics{
		batchSize: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "keyledger_append_batch_commands", Help: "Commands in one append batch.", Buckets: prometheus.ExponentialBuckets(1, 2, 11),
		}, []string{"lane"}),
		appendSeconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "keyledger_append_seconds", Help: "Seconds that one append batch took, commit included.", Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14),
		}, []string{"lane"}),
		appendRetries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "keyledger_append_retries_total", Help: "Append batches sent again because the database did not answer.",
		}, []string{"lane"}),
		conflicts: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "keyledger_append_conflicts_total", Help: "Commands decided anew because their stream had moved.",
		}),
		head: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "keyledger_log_position", Help: "The highest known position of the log.",
		}, []string{"lane"}),
	}
	if registerer != nil {
		registerer.MustRegister(m.batchSize, m.appendSeconds, m.appendRetries, m.conflicts, m.head)
	}
	return m
}

func (m *metrics) appended(lane domain.Lane, commands int, took time.Duration) {
	m.batchSize.WithLabelValues(string(lane)).Observe(float64(commands))
	m.appendSeconds.WithLabelValues(string(lane)).Observe(took.Seconds())
}
