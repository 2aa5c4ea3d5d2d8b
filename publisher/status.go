package publisher

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"keyledger/domain"
	"keyledger/eventstore"
)

// What a relay is doing.
const (
	Starting     = "starting"      // it has not seen its stream yet
	Relaying     = "relaying"      // it publishes what the log brings
	StandingBack = "standing back" // another relay publishes
	Retrying     = "retrying"      // NATS or the log cannot be reached
	Stopped      = "stopped"       // the stream contradicts the log: see the alarm
)

// Status is what a relay says about itself.
type Status struct {
	Lane   domain.Lane     `json:"lane"`
	Stream string          `json:"stream"`
	State  string          `json:"state"`
	Since  time.Time       `json:"since"`        // in this state
	Head   domain.Position `json:"head"`         // of the log, as far as this relay knows
	Last   domain.Position `json:"lastSequence"` // of the stream, as far as this relay knows
	// LagSeconds is the age of the oldest event that is not in the stream.
	LagSeconds float64 `json:"lagSeconds"`
	// Alarm says what is wrong with the stream and what to do; empty when nothing is.
	Alarm string `json:"alarm,omitempty"`
	// Error is what the relay last failed at; empty when it recovered.
	Error string `json:"error,omitempty"`
}

// alarm is a contradiction between stream and log, or a message that can never be
// published. The relay stops until it is gone.
type alarm struct {
	kind string // the same contradiction is logged once, however its numbers grow
	text string
}

func (a alarm) Error() string { return a.text }

func alarmf(kind, format string, args ...any) alarm {
	return alarm{kind: kind, text: fmt.Errorf(format, args...).Error()}
}

// state is what Status and the metrics are made of.
type state struct {
	kind     string
	since    time.Time
	known    bool // the stream has been seen
	last     domain.Position
	head     domain.Position
	waiting  time.Time // when the oldest event that is not in the stream was recorded; zero: none
	missing  uint64    // messages that the server has lost between others
	alarm    alarm
	err      error
	errSince time.Time
	progress uint64 // counts what proves that the way to the stream is free
}

// Status tells how the relay stands. It asks nobody.
func (r *Relay) Status() Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := Status{
		Lane: r.lane, Stream: r.stream, State: r.state.kind, Since: r.state.since, Head: r.state.head, Last: r.state.last,
		LagSeconds: r.lagSeconds(), Alarm: r.alarmText(),
	}
	if r.state.err != nil {
		s.Error = r.state.err.Error()
	}
	return s
}

// WaitFor returns when the stream is known to reach a position.
func (r *Relay) WaitFor(ctx context.Context, position domain.Position) error {
	for {
		r.mu.Lock()
		there, moved := r.state.known && r.state.last >= position, r.moved
		r.mu.Unlock()
		if there {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for message %d of stream %s: %w", position, r.stream, ctx.Err())
		case <-moved:
		}
	}
}

func (r *Relay) alarmText() string {
	switch {
	case r.state.alarm != alarm{}:
		return "stream " + r.stream + ": " + r.state.alarm.text + advice(r.state.alarm.kind)
	case r.state.missing > 0:
		return fmt.Sprintf("stream %s: the server has lost %d of its messages; subscribers read them from the log, and a rebuild restores them", r.stream, r.state.missing)
	}
	return ""
}

// advice is what to do about an alarm.
func advice(kind string) string {
	switch kind {
	case "too large":
		return ""
	case "unpublishable":
		return "; servers of a newer version publish it"
	case "foreign":
		return "; every ledger needs a NATS account of its own. If that ledger is no more: keyledger stream rebuild"
	}
	return "; nothing is published until: keyledger stream rebuild"
}

func (r *Relay) lagSeconds() float64 {
	if r.state.waiting.IsZero() {
		return 0
	}
	return max(0, r.options.Clock().Sub(r.state.waiting).Seconds())
}

// enter changes what the relay is doing.
func (r *Relay) enter(kind string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	// Until something proves that the way is free again, a new attempt is only an attempt.
	if r.state.err != nil || r.state.alarm != (alarm{}) {
		return
	}
	r.set(kind)
}

func (r *Relay) set(kind string) {
	if r.state.kind != kind {
		r.state.kind, r.state.since = kind, r.options.Clock()
	}
}

// looked notes what a look at the stream and at the log has shown.
func (r *Relay) looked(stream jetstream.StreamState, head eventstore.Head, next *eventstore.Recorded) {
	lost := missing(stream)
	r.mu.Lock()
	grew := lost > r.state.missing
	r.state.missing, r.state.known, r.state.head = lost, true, head.Position
	r.state.waiting = time.Time{}
	if next != nil {
		r.state.waiting = next.RecordedAt
	}
	r.reach(domain.Position(stream.LastSeq))
	r.mu.Unlock()
	if grew {
		r.options.Logger.Error("the stream has lost messages between others: subscribers must read them from the log; keyledger stream rebuild restores them",
			"stream", r.stream, "missing", lost, "first", stream.FirstSeq, "last", stream.LastSeq)
	}
}

// arrived notes that the log has more.
func (r *Relay) arrived(batch []eventstore.Recorded) {
	if len(batch) == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.state.head = max(r.state.head, batch[len(batch)-1].Position)
	if r.state.waiting.IsZero() {
		r.state.waiting = batch[0].RecordedAt
	}
}

// acknowledged notes that the stream has a message, and which still are on their way.
func (r *Relay) acknowledged(position domain.Position, pending []inFlight) {
	r.metrics.published.Inc()
	r.mu.Lock()
	switch {
	case len(pending) > 0:
		r.state.waiting = pending[0].event.RecordedAt
	case position >= r.state.head:
		r.state.waiting = time.Time{}
	}
	r.reach(position)
	r.mu.Unlock()
	r.recovered()
}

func (r *Relay) reach(position domain.Position) {
	r.state.last = position
	close(r.moved)
	r.moved = make(chan struct{})
}

// recovered notes that the way to the stream is free.
func (r *Relay) recovered() {
	r.mu.Lock()
	err, since, alarmed := r.state.err, r.state.errSince, r.state.alarm
	r.state.err, r.state.alarm = nil, alarm{}
	r.state.progress++
	if err != nil || alarmed != (alarm{}) {
		r.set(Relaying)
	}
	r.mu.Unlock()
	if err != nil {
		r.options.Logger.Info("the stream can be reached again", "stream", r.stream, "after", r.options.Clock().Sub(since).Round(time.Millisecond))
	}
	if alarmed != (alarm{}) {
		r.options.Logger.Info("the stream agrees with the log again", "stream", r.stream)
	}
}

// outage notes that a relay had to give up for now. It is logged once, however
// long it lasts.
func (r *Relay) outage(err error) {
	r.mu.Lock()
	first := r.state.err == nil
	r.state.err = err
	if first {
		r.state.errSince = r.options.Clock()
	}
	if r.state.alarm == (alarm{}) {
		r.set(Retrying)
	}
	r.mu.Unlock()
	if first {
		r.options.Logger.Warn("events wait in the log until the stream can be reached", "stream", r.stream, "error", err)
	}
}

// raise notes a contradiction. It is logged once, however long it lasts.
func (r *Relay) raise(a alarm) {
	r.mu.Lock()
	first := r.state.alarm.kind != a.kind
	r.state.alarm = a
	r.state.err = nil
	r.set(Stopped)
	text := r.alarmText()
	r.mu.Unlock()
	if first {
		r.options.Logger.Error(text, "stream", r.stream, "alarm", a.kind)
	}
}

func (r *Relay) progress() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state.progress
}

// measure keeps the lag true while nothing can be published. The log may be away
// as well: then the lag stays as it is and its age goes on growing.
func (r *Relay) measure(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, r.options.RetryMost)
	defer cancel()
	head, err := r.log.Head(ctx, r.lane)
	if err != nil {
		return
	}
	r.mu.Lock()
	last, settled, known := r.state.last, r.state.waiting.IsZero(), r.state.known
	r.mu.Unlock()
	var waiting time.Time
	switch {
	case !settled || head.Position <= last:
	case !known:
		// What the stream has is anybody's guess. It has been one since we began.
		waiting = r.began
	default:
		if _, next, err := r.around(ctx, last, head, false); err == nil && next != nil {
			waiting = next.RecordedAt
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.state.head = head.Position
	if settled {
		r.state.waiting = waiting
	}
}

type metrics struct {
	published prometheus.Counter
	resyncs   prometheus.Counter
}

// register makes the metrics. What can be read from the state is read when
// somebody looks.
func (r *Relay) register(registerer prometheus.Registerer) error {
	lane := prometheus.Labels{"lane": string(r.lane)}
	name := func(n, help string) prometheus.Opts {
		return prometheus.Opts{Namespace: "keyledger", Subsystem: "relay", Name: n, Help: help, ConstLabels: lane}
	}
	r.metrics = metrics{
		published: prometheus.NewCounter(prometheus.CounterOpts(name("published_total", "Messages that this relay has published and the stream has acknowledged."))),
		resyncs:   prometheus.NewCounter(prometheus.CounterOpts(name("resyncs_total", "How often a publication failed or was refused, and the relay began anew from what the stream says."))),
	}
	if registerer == nil {
		return nil
	}
	gauge := func(n, help string, value func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts(name(n, help)), func() float64 {
			r.mu.Lock()
			defer r.mu.Unlock()
			return value()
		})
	}
	for _, c := range []prometheus.Collector{
		r.metrics.published,
		r.metrics.resyncs,
		gauge("lag_positions", "Events of the log that are not in the stream, as far as this relay knows.", func() float64 {
			if !r.state.known {
				return 0
			}
			return max(0, float64(r.state.head)-float64(r.state.last))
		}),
		gauge("lag_seconds", "Age of the oldest event that is not in the stream.", r.lagSeconds),
		gauge("last_sequence", "Last sequence of the stream, as far as this relay knows.", func() float64 { return float64(r.state.last) }),
		gauge("alarm", "1 while the stream contradicts the log or has lost messages, and needs a rebuild.", func() float64 {
			if r.alarmText() != "" {
				return 1
			}
			return 0
		}),
	} {
		if err := registerer.Register(c); err != nil {
			return fmt.Errorf("register metrics: %w", err)
		}
	}
	return nil
}

func decimal(n uint64) string { return strconv.FormatUint(n, 10) }
