package publisher_test

import (
	"context"
	"testing"

	"github.com/nats-io/nats.go"

	"keyledger/domain"
	"keyledger/publisher"
)

type waked struct {
	lane     domain.Lane
	position domain.Position
	letter   string
}

// listening hears wakes until the test ends; it returns when the subscription stands.
func listening(t *testing.T, w *publisher.Wake, nc *nats.Conn) <-chan waked {
	t.Helper()
	heard := make(chan waked, 1000)
	background(t, func(ctx context.Context) error {
		return w.Listen(ctx, func(lane domain.Lane, position domain.Position, letter []byte) {
			heard <- waked{lane, position, string(letter)}
		})
	})
	eventually(t, "the subscription stands", func() bool { return nc.NumSubscriptions() > 0 && nc.Flush() == nil })
	return heard
}

func background(t *testing.T, run func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestOtherNodesHearHowFarALaneHasCome(t *testing.T) {
	t.Parallel()
	b := startBroker(t)
	here, there := b.connect().Conn(), b.connect().Conn()
	heard := listening(t, publisher.NewWake(there, nil), there)
	wake := publisher.NewWake(here, nil)
	background(t, wake.Run)
	wake.Announce(domain.Lifecycle, 7, []byte("a letter 8 \x00"))
	if got := <-heard; got != (waked{domain.Lifecycle, 7, "a letter 8 \x00"}) {
		t.Errorf("heard %v", got)
	}
	// Whatever is left out on the way, the highest arrives.
	for position := range domain.Position(1000) {
		wake.Announce(domain.Usage, position+1, nil)
	}
	last := domain.Position(0)
	for last < 1000 {
		got := <-heard
		if got.lane != domain.Usage || got.position <= last {
			t.Fatalf("heard %v after %d", got, last)
		}
		last = got.position
	}
}

func TestAnnouncingNeverBlocks(t *testing.T) {
	t.Parallel()
	b := startBroker(t)
	nc := b.connect().Conn()
	wake := publisher.NewWake(nc, nil) // nobody runs it
	for position := range domain.Position(100_000) {
		wake.Announce(domain.Lifecycle, position+1, nil)
	}
	background(t, wake.Run)
	b.stop()
	wake.Announce(domain.Lifecycle, 100_001, nil)
	b.start()
	heard := listening(t, wake, nc)
	eventually(t, "a wake arrives after NATS returned", func() bool {
		wake.Announce(domain.Lifecycle, 100_002, nil)
		select {
		case got := <-heard:
			return got.position >= 100_002
		default:
			return false
		}
	})
}

func TestAWakeThatCannotBeReadIsPassedOver(t *testing.T) {
	t.Parallel()
	nc := startBroker(t).connect().Conn()
	heard := listening(t, publisher.NewWake(nc, nil), nc)
	for subject, payload := range map[string]string{
		"keyledger.wake.lifecycle": "-1", "keyledger.wake.usage": "", "keyledger.wake.other": "5", "keyledger.wake.x": "18446744073709551616",
	} {
		if err := nc.Publish(subject, []byte(payload)); err != nil {
			t.Fatal(err)
		}
	}
	if err := nc.Publish(publisher.WakeSubject(domain.Usage), []byte("12")); err != nil {
		t.Fatal(err)
	}
	if got := <-heard; got != (waked{domain.Usage, 12, ""}) {
		t.Errorf("heard %v", got)
	}
}
