package webhooks

import (
	"context"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"

	"keyledger/domain"
	"keyledger/eventstore"
	"keyledger/projections/organizations"
)

const (
	// How many endpoints have their turn at once. Those that fail have places of their
	// own: they take long, and are not to be waited for.
	mostHealthy = 256
	mostFailing = 64
	// gathering is how long news may gather before the database is asked whom they concern.
	gathering = 50 * time.Millisecond
	// everything is how often all endpoints are looked at, whatever was announced.
	everything = 30 * time.Second
	// farBehind is how much news is looked through event by event.
	farBehind  = 20_000
	waitBroken = time.Second
)

// driver is what this node knows of its own turns.
type driver struct {
	poked chan struct{}

	mu      sync.Mutex
	having  map[domain.WebhookID]struct{}
	healthy int
	failing int
	turns   sync.WaitGroup
}

func newDriver() *driver {
	return &driver{poked: make(chan struct{}, 1), having: map[domain.WebhookID]struct{}{}}
}

// poke has the database asked at once.
func (d *driver) poke() {
	select {
	case d.poked <- struct{}{}:
	default:
	}
}

func (d *driver) places(failing bool) (taken *int, most int) {
	if failing {
		return &d.failing, mostFailing
	}
	return &d.healthy, mostHealthy
}

// free is how many more may have their turn.
func (d *driver) free(failing bool) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	taken, most := d.places(failing)
	return most - *taken
}

// begin takes a place, unless there is none or this endpoint has its turn here already.
func (d *driver) begin(id domain.WebhookID, failing bool) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	taken, most := d.places(failing)
	if _, has := d.having[id]; has || *taken >= most {
		return false
	}
	d.having[id] = struct{}{}
	*taken++
	return true
}

// end gives a place back, and says whether it was the last one.
func (d *driver) end(id domain.WebhookID, failing bool) (full bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	taken, most := d.places(failing)
	delete(d.having, id)
	full = *taken == most
	*taken--
	return full
}

// Run delivers until ctx ends; attempts that are under way then are broken off, and made again by others.
func (w *Webhooks) Run(ctx context.Context) error {
	news, stop := w.options.Feed.Watch(domain.Lifecycle, "")
	defer stop()
	defer w.sender.client.CloseIdleConnections()
	defer w.driver.turns.Wait()
	sweep := time.NewTicker(w.options.Sweep)
	defer sweep.Stop()
	var seen domain.Position
	var looked time.Time // at everything; zero: not since something went wrong
	for {
		now := w.options.Clock()
		all := now.Sub(looked) > everything
		head, err := w.announce(ctx, seen, all)
		if err == nil {
			err = w.startTurns(ctx)
		}
		switch {
		case err == nil && all:
			seen, looked = head, now
		case err == nil:
			seen = head
		case ctx.Err() == nil:
			w.logger.Warn("webhooks wait and try again", "error", err)
			looked = time.Time{}
			select {
			case <-ctx.Done():
			case <-time.After(waitBroken):
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-news:
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(gathering):
			}
		case <-sweep.C:
		case <-w.driver.poked:
		}
	}
}

// What is asked of an endpoint w. Its organization's events are found by the parts of the lane in
// which they stand, and what that projection does not know yet is looked through.
const (
	// more: something stands behind its position, which is near the lane's end.
	more = `EXISTS (SELECT FROM events e WHERE e.lane = 'lifecycle' AND e.position > w.position AND e.organization = w.organization)`
	// behind: the same, wherever it stands. $1 is the length of a part.
	behind = `(EXISTS (SELECT FROM organization_parts p WHERE p.organization = w.organization AND p.part > w.position / $1)
		OR EXISTS (SELECT FROM events e WHERE e.lane = 'lifecycle' AND e.position > w.position AND e.position <= (w.position / $1 + 1) * $1 AND e.organization = w.organization)
		OR w.organization IN (SELECT e.organization FROM events e
			WHERE e.lane = 'lifecycle' AND e.position > (SELECT c.position FROM projection_checkpoints c WHERE c.name = 'organizations')) AND w.position < $2)`
	// concerned: its organization has events behind $1, up to $2.
	concerned = `w.position < $2 AND w.organization IN (SELECT e.organization FROM events e WHERE e.lane = 'lifecycle' AND e.position > $1 AND e.position <= $2)`
)

// mark makes endpoints due that rest and to which a condition applies.
func (w *Webhooks) mark(ctx context.Context, condition string, args ...any) (int64, error) {
	tag, err := w.pool.Exec(ctx, `UPDATE webhooks w SET due_at = now() WHERE w.due_at IS NULL AND w.disabled_at IS NULL `+condition,
		append([]any{pgx.QueryExecModeSimpleProtocol}, args...)...)
	return tag.RowsAffected(), eventstore.Wrap(err, "look for webhooks that are due")
}

// announce makes due whom the news since a position concern, and says how far it
// has looked. The webhooks of an organization that was erased are settings of somebody who
// wanted to be forgotten: they go.
func (w *Webhooks) announce(ctx context.Context, seen domain.Position, all bool) (domain.Position, error) {
	head, err := w.options.Feed.Head(ctx, domain.Lifecycle)
	if err != nil {
		return seen, err
	}
	condition, first := behind, int64(organizations.PartSize)
	if !all && head <= seen+farBehind {
		if head == seen {
			return head, nil
		}
		condition, first = concerned, int64(seen)
	}
	_, err = w.pool.Exec(ctx, `DELETE FROM webhooks w USING erased_organizations e WHERE e.organization = w.organization AND w.created_after < e.position`)
	if err != nil {
		return seen, eventstore.Wrap(err, "look for webhooks of those who were erased")
	}
	_, err = w.mark(ctx, `AND `+condition, first, int64(head))
	return head, err
}

// startTurns gives their turn to those who are due, the longest first.
func (w *Webhooks) startTurns(ctx context.Context) error {
	for _, failing := range []bool{false, true} {
		free := w.driver.free(failing)
		if free == 0 {
			continue // who ends its turn is told below
		}
		// Those who have their turn here are not due, unless their claim has run out.
		rows, err := w.pool.Query(ctx, `SELECT id FROM webhooks
			WHERE due_at <= now() AND disabled_at IS NULL AND (failing_since IS NOT NULL) = $1 ORDER BY due_at LIMIT $2`, failing, free)
		if err != nil {
			return eventstore.Wrap(err, "look for webhooks that are due")
		}
		due, err := pgx.CollectRows(rows, pgx.RowTo[[16]byte])
		if err != nil {
			return eventstore.Wrap(err, "look for webhooks that are due")
		}
		for _, id := range due {
			w.startTurn(ctx, domain.WebhookID(id), failing)
		}
	}
	return nil
}

func (w *Webhooks) startTurn(ctx context.Context, id domain.WebhookID, failing bool) {
	if !w.driver.begin(id, failing) {
		return
	}
	w.driver.turns.Go(func() {
		again, err := w.turn(ctx, id)
		full := w.driver.end(id, failing)
		if err != nil && ctx.Err() == nil {
			// Its claim runs out by itself.
			w.logger.Warn("a webhook's turn was broken off", "webhook", id.String(), "error", err)
		}
		if again || full {
			w.driver.poke()
		}
	})
}

type metrics struct {
	attempts *prometheus.CounterVec
	givenUp  prometheus.Counter
}

func newMetrics(registerer prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		attempts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "keyledger_webhook_attempts_total", Help: "Attempts to deliver an event, by how they ended.",
		}, []string{"result"}),
		givenUp: prometheus.NewCounter(prometheus.CounterOpts{Name: "keyledger_webhook_dead_letters_total", Help: "Events that were given up for an endpoint."}),
	}
	for _, result := range []string{"taken", "refused", "unreached"} {
		m.attempts.WithLabelValues(result) // 0 is shown, too
	}
	if registerer == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.attempts, m.givenUp} {
		if err := registerer.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *metrics) count(r result) {
	switch {
	case r.taken():
		m.attempts.WithLabelValues("taken").Inc()
	case r.status > 0:
		m.attempts.WithLabelValues("refused").Inc()
	default:
		m.attempts.WithLabelValues("unreached").Inc()
	}
}
