package transparency

import (
	"fmt"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"keyledger/domain"
)

// metrics tell how far the newest checkpoint is behind the log.
type metrics struct {
	clock  func() time.Time
	forked prometheus.Gauge

	mu     sync.Mutex
	head   domain.Position
	size   domain.Position
	oldest time.Time // when the first event that is not covered was recorded, or seen first; zero: all are
}

func newMetrics(registerer prometheus.Registerer, lane domain.Lane, clock func() time.Time) (*metrics, error) {
	labels := prometheus.Labels{"lane": string(lane)}
	m := &metrics{clock: clock, forked: prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "keyledger_checkpoint_forked", ConstLabels: labels,
		Help: "1 when the log does not continue what was signed of it: nothing is signed any more.",
	})}
	if registerer == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{
		m.forked,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "keyledger_checkpoint_lag_seconds", ConstLabels: labels,
			Help: "Age of the oldest event that no checkpoint covers, as far as this process knows.",
		}, m.lagSeconds),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "keyledger_checkpoint_lag_positions", ConstLabels: labels,
			Help: "Events that no checkpoint covers, as far as this process knows.",
		}, m.lagPositions),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "keyledger_checkpoint_size", ConstLabels: labels,
			Help: "Size of the newest checkpoint that this process knows.",
		}, m.newest),
	} {
		if err := registerer.Register(c); err != nil {
			return nil, fmt.Errorf("register the metrics of the tree of %s: %w", lane, err)
		}
	}
	return m, nil
}

func (m *metrics) stand(head, size domain.Position) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.head, m.size = head, size
	switch {
	case size >= head:
		m.oldest = time.Time{}
	case m.oldest.IsZero():
		m.oldest = m.clock()
	}
}

// pending says when an event was recorded that is about to be covered; the first
// of a step is the oldest that is not.
func (m *metrics) pending(recorded time.Time, first bool) {
	if !first {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.oldest = recorded
}

func (m *metrics) signed(size domain.Position) {
	m.mu.Lock()
	head := m.head
	m.mu.Unlock()
	m.stand(max(head, size), size)
}

func (m *metrics) lagSeconds() float64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.oldest.IsZero() {
		return 0
	}
	return max(0, m.clock().Sub(m.oldest).Seconds())
}

func (m *metrics) lagPositions() float64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return float64(m.head - min(m.size, m.head))
}

func (m *metrics) newest() float64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return float64(m.size)
}
