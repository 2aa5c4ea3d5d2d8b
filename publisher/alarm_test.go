package publisher_test

import (
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"keyledger/domain"
	"keyledger/eventstore"
	"keyledger/publisher"
)

// watched is a relay whose log lines and metrics a test can see.
type watched struct {
	*publisher.Relay
	lines   *heard
	metrics *prometheus.Registry
}

func watch(t *testing.T, js jetstream.JetStream, log publisher.Log, lane domain.Lane) watched {
	t.Helper()
	w := watched{lines: &heard{}, metrics: prometheus.NewRegistry()}
	options := quick()
	options.Logger, options.Registerer = slog.New(w.lines), w.metrics
	w.Relay = newRelay(t, js, log, lane, options)
	running(t, w.Relay)
	return w
}

func (w watched) metric(t *testing.T, name string) float64 {
	t.Helper()
	families, err := w.metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() == name {
			m := family.GetMetric()[0]
			return m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}

// stops waits for the alarm and checks that everybody who should know does.
func (w watched) stops(t *testing.T, because string) {
	t.Helper()
	eventually(t, "the relay stops", func() bool { return w.Status().State == publisher.Stopped })
	s := w.Status()
	if !strings.Contains(s.Alarm, because) {
		t.Errorf("the alarm says %q, not %q", s.Alarm, because)
	}
	if got := w.metric(t, "keyledger_relay_alarm"); got != 1 {
		t.Errorf("keyledger_relay_alarm is %v", got)
	}
	if n := w.lines.count(slog.LevelError); n != 1 {
		t.Errorf("the alarm is logged %d times", n)
	}
}

// recovers waits until the alarm is over and the stream is at the log's head.
func (w watched) recovers(t *testing.T, log *memLog) {
	t.Helper()
	eventually(t, "the alarm ends", func() bool {
		s := w.Status()
		return s.State == publisher.Relaying && s.Alarm == "" && s.Last == log.head()
	})
	if got := w.metric(t, "keyledger_relay_alarm"); got != 0 {
		t.Errorf("keyledger_relay_alarm is %v", got)
	}
}

// filled gives a server whose stream holds a log to its head, with nobody relaying.
func filled(t *testing.T, log *memLog) jetstream.JetStream {
	t.Helper()
	js := startBroker(t).connect()
	relay := newRelay(t, js, log, log.lane, quick())
	stop := running(t, relay)
	reaches(t, relay, log.head())
	stop()
	return js
}

func TestAStreamThatRunsAheadStopsItsRelayUntilARebuild(t *testing.T) {
	t.Parallel()
	log := newMemLog(domain.Lifecycle)
	log.grow(100, time.Now())
	js := filled(t, log)
	log.restore(90)
	relay := watch(t, js, log, domain.Lifecycle)
	relay.stops(t, "runs ahead")
	log.grow(3, time.Now())
	if err := relay.Rebuild(patiently(t)); err != nil {
		t.Fatal(err)
	}
	relay.recovers(t, log)
	holdsTheLog(t, js, log, 1)
}

// The restored log has grown past the stream's end before any relay looked.
func TestAStreamOfAnotherHistoryStopsItsRelayUntilARebuild(t *testing.T) {
	t.Parallel()
	log := newMemLog(domain.Lifecycle)
	log.grow(100, time.Now())
	js := filled(t, log)
	log.restore(90)
	log.grow(30, time.Now())
	relay := watch(t, js, log, domain.Lifecycle)
	relay.stops(t, "epoch")
	if got := stateOf(t, js, domain.Lifecycle).LastSeq; got != 100 {
		t.Errorf("something was published on top of another history: the stream ends at %d", got)
	}
	if err := relay.Rebuild(patiently(t)); err != nil {
		t.Fatal(err)
	}
	relay.recovers(t, log)
	holdsTheLog(t, js, log, 1)
}

// Another process rebuilds: the command line, or another node.
func TestARebuildElsewhereEndsTheAlarm(t *testing.T) {
	t.Parallel()
	log := newMemLog(domain.Lifecycle)
	log.grow(20, time.Now())
	js := filled(t, log)
	log.restore(10)
	relay := watch(t, js, log, domain.Lifecycle)
	relay.stops(t, "runs ahead")
	if err := newRelay(t, js, log, domain.Lifecycle, quick()).Rebuild(patiently(t)); err != nil {
		t.Fatal(err)
	}
	relay.recovers(t, log)
	holdsTheLog(t, js, log, 1)
}

// A server that has no other stream removes the folder of them all in the background, and with it
// the ground under a stream that is made at that moment.
func TestAStreamIsMadeAgainAtOnceWhereItIsTheOnlyOne(t *testing.T) {
	t.Parallel()
	log := newMemLog(domain.Lifecycle)
	log.grow(1, time.Now())
	js := filled(t, log)
	relay := newRelay(t, js, log, domain.Lifecycle, quick())
	for range 100 {
		if err := relay.Rebuild(patiently(t)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestALastMessageThatIsNotTheLogsStopsTheRelay(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(log *memLog){
		"other content": func(log *memLog) { log.events[9].Data = []byte(`{"keyId":"another"}`) },
		"has the id":    func(log *memLog) { log.events[9].ID = id("another", 1, 10) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			log := newMemLog(domain.Lifecycle)
			log.grow(10, time.Now())
			js := filled(t, log)
			spoil(log)
			log.grow(1, time.Now())
			relay := watch(t, js, log, domain.Lifecycle)
			relay.stops(t, name)
			if err := relay.Rebuild(patiently(t)); err != nil {
				t.Fatal(err)
			}
			relay.recovers(t, log)
			holdsTheLog(t, js, log, 1)
		})
	}
}

func TestTwoLedgersOnOneNATSAreToldApart(t *testing.T) {
	t.Parallel()
	log := newMemLog(domain.Lifecycle)
	js := filled(t, log) // even when the first one is still empty
	other := newMemLog(domain.Lifecycle)
	other.ledger = id("ledger", 0, 2)
	other.grow(5, time.Now())
	relay := watch(t, js, other, domain.Lifecycle)
	relay.stops(t, "belongs to ledger")
}

// NATS was away for longer than the log keeps uses.
func TestAStreamThatTheLogCannotContinueIsReportedUntilARebuild(t *testing.T) {
	t.Parallel()
	log := newMemLog(domain.Usage)
	log.grow(10, time.Now())
	js := filled(t, log)
	log.grow(20, time.Now())
	log.detach(25)
	relay := watch(t, js, log, domain.Usage)
	eventually(t, "the relay says what is missing", func() bool {
		s := relay.Status()
		return s.State == publisher.Retrying && strings.Contains(s.Error, "is missing")
	})
	if err := relay.Rebuild(patiently(t)); err != nil {
		t.Fatal(err)
	}
	relay.recovers(t, log)
	holdsTheLog(t, js, log, 26)
}

func TestAnotherEpochEndsTheRelay(t *testing.T) {
	t.Parallel()
	js := startBroker(t).connect()
	log := newMemLog(domain.Lifecycle)
	log.grow(3, time.Now())
	relay := newRelay(t, js, log, domain.Lifecycle, quick())
	ended := make(chan error, 1)
	go func() { ended <- relay.Run(patiently(t)) }()
	reaches(t, relay, 3)
	log.fail(eventstore.ErrEpochChanged)
	if err := <-ended; !errors.Is(err, eventstore.ErrEpochChanged) {
		t.Errorf("the relay ended with %v", err)
	}
}

func TestAnEventTooLargeForNATSIsAnAlarmThatNamesIt(t *testing.T) {
	t.Parallel()
	js := startBroker(t).connect()
	log := newMemLog(domain.Usage)
	log.grow(4, time.Now())
	large := event(log.ledger, 1, domain.Usage, 5, time.Now())
	large.Data = make([]byte, 1<<20)
	log.put(large)
	relay := watch(t, js, log, domain.Usage)
	relay.stops(t, "event 5 has 1048576 bytes")
	if got := stateOf(t, js, domain.Usage).LastSeq; got != 4 {
		t.Errorf("the stream ends at %d, not before the large event", got)
	}
}

// During an upgrade the older of two nodes meets an event that it cannot name.
func TestAnOlderNodeLeavesAnUnknownEventToANewerOne(t *testing.T) {
	t.Parallel()
	js := startBroker(t).connect()
	log := newMemLog(domain.Lifecycle)
	log.grow(2, time.Now())
	unknown := event(log.ledger, 1, domain.Lifecycle, 3, time.Now())
	named, err := publisher.Message(unknown)
	if err != nil {
		t.Fatal(err)
	}
	unknown.Type = "KeyPainted"
	log.put(unknown)
	older := watch(t, js, log, domain.Lifecycle)
	older.stops(t, "KeyPainted")
	if _, err := js.PublishMsg(patiently(t), named, jetstream.WithExpectLastSequence(2)); err != nil {
		t.Fatal(err)
	}
	log.grow(2, time.Now())
	older.recovers(t, log)
}

// A hole cannot be filled, and stopping would only keep later revocations from
// subscribers: the relay goes on and says so.
func TestMessagesLostInTheMiddleRaiseAnAlarmAndStopNothing(t *testing.T) {
	t.Parallel()
	js := startBroker(t).connect()
	log := newMemLog(domain.Lifecycle)
	log.grow(10, time.Now())
	stream, err := js.CreateStream(patiently(t), jetstream.StreamConfig{Name: publisher.LifecycleStream, Subjects: []string{publisher.StreamSubjects(domain.Lifecycle)}})
	if err != nil {
		t.Fatal(err)
	}
	for position := range domain.Position(10) {
		message, err := publisher.Message(log.at(position + 1))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := js.PublishMsg(patiently(t), message); err != nil {
			t.Fatal(err)
		}
	}
	for _, lost := range []uint64{4, 5} {
		if err := stream.DeleteMsg(patiently(t), lost); err != nil {
			t.Fatal(err)
		}
	}
	relay := watch(t, js, log, domain.Lifecycle)
	log.grow(5, time.Now())
	reaches(t, relay.Relay, 15)
	s := relay.Status()
	if !strings.Contains(s.Alarm, "lost 2 of its messages") || relay.metric(t, "keyledger_relay_alarm") != 1 || relay.lines.count(slog.LevelError) != 1 {
		t.Errorf("the hole is not reported: %+v", s)
	}
	if err := relay.Rebuild(patiently(t)); err != nil {
		t.Fatal(err)
	}
	relay.recovers(t, log)
	holdsTheLog(t, js, log, 1)
}

func TestTheMetricsTellWhatWasPublishedAndWhatWaits(t *testing.T) {
	t.Parallel()
	b := startBroker(t)
	log := newMemLog(domain.Lifecycle)
	log.grow(70, time.Now())
	relay := watch(t, b.connect(), log, domain.Lifecycle)
	relay.recovers(t, log)
	if got := relay.metric(t, "keyledger_relay_published_total"); got != 70 {
		t.Errorf("keyledger_relay_published_total is %v", got)
	}
	if got := relay.metric(t, "keyledger_relay_lag_positions") + relay.metric(t, "keyledger_relay_lag_seconds"); got != 0 {
		t.Errorf("a stream at the head lags by %v", got)
	}
	b.stop()
	log.grow(5, time.Now().Add(-time.Hour))
	eventually(t, "the lag shows", func() bool {
		return relay.metric(t, "keyledger_relay_lag_positions") == 5 && relay.metric(t, "keyledger_relay_lag_seconds") >= 3600
	})
	b.start()
	relay.recovers(t, log)
}

func TestTheLagShowsWhenTheStreamWasNeverSeen(t *testing.T) {
	t.Parallel()
	b := startBroker(t)
	js := b.connect()
	b.stop()
	log := newMemLog(domain.Lifecycle)
	log.grow(5, time.Now().Add(-time.Hour))
	relay := watch(t, js, log, domain.Lifecycle)
	eventually(t, "the lag counts from the relay's start", func() bool {
		s := relay.Status()
		return s.State == publisher.Retrying && s.Head == 5 && s.LagSeconds > 0 && s.LagSeconds < 3600
	})
	b.start()
	relay.recovers(t, log)
}
