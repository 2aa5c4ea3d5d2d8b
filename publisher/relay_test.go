package publisher_test

import (
	"testing"
	"time"

	"keyledger/domain"
)

func TestTheStreamHoldsTheLogUnderItsPositions(t *testing.T) {
	t.Parallel()
	for _, lane := range domain.Lanes() {
		t.Run(string(lane), func(t *testing.T) {
			t.Parallel()
			js := startBroker(t).connect()
			log := newMemLog(lane)
			log.grow(2500, time.Now())
			relay := newRelay(t, js, log, lane, quick())
			running(t, relay)
			reaches(t, relay, 2500)
			log.grow(10, time.Now())
			reaches(t, relay, 2510)
			holdsTheLog(t, js, log, 1)
		})
	}
}
