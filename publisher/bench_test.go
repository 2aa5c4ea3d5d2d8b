package publisher_test

import (
	"testing"
	"time"

	"keyledger/domain"
	"keyledger/publisher"
)

// BenchmarkRelay publishes events from memory to a real server over a socket:
// the messages a second that one relay reaches.
func BenchmarkRelay(b *testing.B) {
	js := startBroker(b).connect()
	log := newMemLog(domain.Lifecycle)
	log.grow(b.N, time.Now())
	relay := newRelay(b, js, log, domain.Lifecycle, publisher.Options{})
	b.ReportAllocs()
	b.ResetTimer()
	running(b, relay)
	if err := relay.WaitFor(b.Context(), domain.Position(b.N)); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "messages/s")
}

// BenchmarkRelayOneByOne is the time from an event in the log to its
// acknowledgement by the stream when nothing else happens.
func BenchmarkRelayOneByOne(b *testing.B) {
	js := startBroker(b).connect()
	log := newMemLog(domain.Lifecycle)
	relay := newRelay(b, js, log, domain.Lifecycle, publisher.Options{})
	running(b, relay)
	for b.Loop() {
		log.grow(1, time.Now())
		if err := relay.WaitFor(b.Context(), log.head()); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkMessage(b *testing.B) {
	r := event(id("ledger", 0, 1), 1, domain.Lifecycle, 42, time.Now())
	b.ReportAllocs()
	for b.Loop() {
		if _, err := publisher.Message(r); err != nil {
			b.Fatal(err)
		}
	}
}
