package projections

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"keyledger/domain"
	"keyledger/eventstore"
)

// lag knows how far a projection is behind what this process has heard of the log.
type lag struct {
	clock func() time.Time

	mu      sync.Mutex
	at      domain.Position
	head    domain.Position
	since   time.Time // when the oldest event that is not applied was recorded, or heard of; zero: none
	unknown time.Time // since when the log or the projection cannot be asked; zero: it can
}

func newLag(clock func() time.Time) *lag { return &lag{clock: clock} }

// saw says that the log has reached a position.
func (l *lag) saw(head domain.Position) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.head = max(l.head, head)
	if l.since.IsZero() && l.at < l.head {
		l.since = l.clock()
	}
}

// pending says which events are about to be applied.
func (l *lag) pending(batch []eventstore.Recorded) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.head = max(l.head, batch[len(batch)-1].Position)
	if l.at < batch[0].Position {
		l.since = batch[0].RecordedAt
	}
	l.unknown = time.Time{}
}

// reached says where the projection stands.
func (l *lag) reached(at domain.Position) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.at, l.unknown = at, time.Time{}
	if l.at >= l.head {
		l.since = time.Time{}
	}
}

// lostSight says that the log or the projection cannot be asked.
func (l *lag) lostSight() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.unknown.IsZero() {
		l.unknown = l.clock()
	}
}

func (l *lag) positions() float64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return float64(l.head - min(l.at, l.head))
}

// seconds is the age of the oldest event that is not applied, or how long nothing
// is known, whichever is more.
func (l *lag) seconds() float64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	var most time.Duration
	for _, start := range []time.Time{l.since, l.unknown} {
		if !start.IsZero() {
			most = max(most, l.clock().Sub(start))
		}
	}
	return most.Seconds()
}

func (l *lag) register(registerer prometheus.Registerer, projection string) error {
	if registerer == nil {
		return nil
	}
	labels := prometheus.Labels{"projection": projection}
	err := registerer.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "keyledger_projection_lag_positions", ConstLabels: labels,
		Help: "Positions of the log that the projection has not applied, as far as this process knows.",
	}, l.positions))
	if err != nil {
		return err
	}
	return registerer.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "keyledger_projection_lag_seconds", ConstLabels: labels,
		Help: "Age of the oldest event that the projection has not applied, or how long it could not be driven.",
	}, l.seconds))
}
