package publisher_test

import (
	"context"
	"fmt"
	"iter"
	"log/slog"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"keyledger/domain"
	"keyledger/eventstore"
	"keyledger/publisher"
)

// rounds is how often a fault is repeated: a few times in every run of the
// tests, as often as KEYLEDGER_SOAK says in a soak.
func rounds(t testing.TB, few int) int {
	t.Helper()
	text := os.Getenv("KEYLEDGER_SOAK")
	if text == "" {
		return few
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("KEYLEDGER_SOAK must be a number of rounds: %v", err)
	}
	return n
}

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

func TestRelaysThatRaceWhileNATSRestartsNeitherRepeatNorReorder(t *testing.T) {
	t.Parallel()
	b := startBroker(t)
	log := newMemLog(domain.Lifecycle)
	var relays []*publisher.Relay
	for range 3 {
		relay := newRelay(t, b.connect(), log, domain.Lifecycle, quick())
		running(t, relay)
		relays = append(relays, relay)
	}
	reader := b.connect()
	for range rounds(t, 5) {
		before := log.head()
		grown := make(chan struct{})
		go func() {
			defer close(grown)
			for range 40 {
				log.grow(1+rand.N(50), time.Now())
			}
		}()
		// Somewhere on the way, with messages in flight.
		reaches(t, relays[0], before+1+domain.Position(rand.N(500)))
		b.stop()
		b.start()
		<-grown
		reaches(t, relays[rand.N(len(relays))], log.head())
	}
	holdsTheLog(t, reader, log, 1)
}

func TestAStreamThatLagsIsCaughtUpByAnotherRelay(t *testing.T) {
	t.Parallel()
	b := startBroker(t)
	log := newMemLog(domain.Lifecycle)
	log.grow(100, time.Now())
	first := newRelay(t, b.connect(), log, domain.Lifecycle, quick())
	stop := running(t, first)
	reaches(t, first, 100)
	stop()
	log.grow(5000, time.Now())
	second := newRelay(t, b.connect(), log, domain.Lifecycle, quick())
	running(t, second)
	reaches(t, second, 5100)
	holdsTheLog(t, b.connect(), log, 1)
}

// pausedLog gives its first batch only when told, as if the process had been stopped between
// reading the log and publishing.
type pausedLog struct {
	*memLog
	holding, resume chan struct{}
	once            sync.Once
}

func (l *pausedLog) Follow(ctx context.Context, lane domain.Lane, after domain.Position) iter.Seq2[[]eventstore.Recorded, error] {
	return func(yield func([]eventstore.Recorded, error) bool) {
		for batch, err := range l.memLog.Follow(ctx, lane, after) {
			l.once.Do(func() {
				close(l.holding)
				<-l.resume
			})
			if !yield(batch, err) {
				return
			}
		}
	}
}

func TestARelayThatWasPausedForLongPublishesNothingTwice(t *testing.T) {
	t.Parallel()
	b := startBroker(t)
	log := newMemLog(domain.Lifecycle)
	log.grow(600, time.Now())
	held := &pausedLog{memLog: log, holding: make(chan struct{}), resume: make(chan struct{})}
	paused := newRelay(t, b.connect(), held, domain.Lifecycle, quick())
	running(t, paused)
	<-held.holding

	awake := newRelay(t, b.connect(), log, domain.Lifecycle, quick())
	stop := running(t, awake)
	reaches(t, awake, 600)
	log.grow(100, time.Now())
	reaches(t, awake, 700)
	stop()

	close(held.resume)
	log.grow(50, time.Now())
	reaches(t, paused, 750)
	holdsTheLog(t, b.connect(), log, 1)
}

// lateLog lets something happen between reading the head and returning it.
type lateLog struct {
	*memLog
	meanwhile func()
	once      sync.Once
}

func (l *lateLog) Head(ctx context.Context, lane domain.Lane) (eventstore.Head, error) {
	head, err := l.memLog.Head(ctx, lane)
	l.once.Do(l.meanwhile)
	return head, err
}

func TestWhatAnotherRelayPublishesDuringALookIsNoStreamThatRunsAhead(t *testing.T) {
	t.Parallel()
	log := newMemLog(domain.Lifecycle)
	log.grow(10, time.Now())
	js := filled(t, log)
	other := newRelay(t, js, log, domain.Lifecycle, quick())
	running(t, other)
	late := &lateLog{memLog: log, meanwhile: func() {
		log.grow(10, time.Now())
		reaches(t, other, 20)
	}}
	relay := watch(t, js, late, domain.Lifecycle)
	reaches(t, relay.Relay, 20)
	if n := relay.lines.count(slog.LevelError); n != 0 {
		t.Errorf("a false alarm was raised")
	}
}

func TestARelayThatLostARaceTakesOverWhenTheOtherStops(t *testing.T) {
	t.Parallel()
	b := startBroker(t)
	log := newMemLog(domain.Lifecycle)
	one := newRelay(t, b.connect(), log, domain.Lifecycle, quick())
	other := newRelay(t, b.connect(), log, domain.Lifecycle, quick())
	running(t, one)
	stop := running(t, other)
	for range 20 {
		log.grow(10, time.Now())
		reaches(t, other, log.head())
	}
	stop()
	log.grow(10, time.Now())
	reaches(t, one, log.head())
	holdsTheLog(t, b.connect(), log, 1)
}

func TestAWipedStreamIsMadeAgain(t *testing.T) {
	t.Parallel()
	b := startBroker(t)
	log := newMemLog(domain.Lifecycle)
	relay := newRelay(t, b.connect(), log, domain.Lifecycle, quick())
	running(t, relay)
	for range rounds(t, 3) {
		log.grow(300, time.Now())
		reaches(t, relay, log.head())
		b.stop()
		if err := os.RemoveAll(b.dir + "/jetstream"); err != nil {
			t.Fatal(err)
		}
		log.grow(10, time.Now())
		b.start()
		reaches(t, relay, log.head())
	}
	holdsTheLog(t, b.connect(), log, 1)
}

func TestAStreamThatWasDeletedWhileNothingHappenedIsMadeAgain(t *testing.T) {
	t.Parallel()
	js := startBroker(t).connect()
	log := newMemLog(domain.Lifecycle)
	log.grow(30, time.Now())
	options := quick()
	options.LookEvery = 20 * time.Millisecond
	relay := newRelay(t, js, log, domain.Lifecycle, options)
	running(t, relay)
	reaches(t, relay, 30)
	if err := js.DeleteStream(patiently(t), publisher.LifecycleStream); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the stream is back", func() bool {
		stream, err := js.Stream(patiently(t), publisher.LifecycleStream)
		return err == nil && stream.CachedInfo().State.LastSeq == 30
	})
	holdsTheLog(t, js, log, 1)
}

// A server that loses power before it synced comes back with the older end of its stream.
func TestMessagesThatTheServerLostAtTheEndArePublishedAgain(t *testing.T) {
	t.Parallel()
	b := startBroker(t)
	log := newMemLog(domain.Lifecycle)
	log.grow(50, time.Now())
	relay := newRelay(t, b.connect(), log, domain.Lifecycle, quick())
	running(t, relay)
	reaches(t, relay, 50)
	b.stop()
	if err := os.CopyFS(b.dir+".older", os.DirFS(b.dir)); err != nil {
		t.Fatal(err)
	}
	b.start()
	log.grow(50, time.Now())
	reaches(t, relay, 100)
	b.stop()
	if err := os.RemoveAll(b.dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(b.dir+".older", b.dir); err != nil {
		t.Fatal(err)
	}
	b.start()
	log.grow(1, time.Now())
	reader := b.connect()
	eventually(t, "the end is back", func() bool { return stateOf(t, reader, domain.Lifecycle).LastSeq == 101 })
	holdsTheLog(t, reader, log, 1)
}

func TestANewStreamBeginsWhereItsAgeLimitWouldHaveLeftIt(t *testing.T) {
	t.Parallel()
	js := startBroker(t).connect()
	log := newMemLog(domain.Usage)
	now := time.Now()
	log.grow(40, now.Add(-8*24*time.Hour))
	log.grow(60, now.Add(-6*24*time.Hour))
	options := quick()
	options.MaxAge, options.Clock = publisher.UsageMaxAge, func() time.Time { return now }
	relay := newRelay(t, js, log, domain.Usage, options)
	running(t, relay)
	reaches(t, relay, 100)
	holdsTheLog(t, js, log, 41)
}

func TestAStreamWhoseMessagesAllAgedOutGoesOnCounting(t *testing.T) {
	t.Parallel()
	js := startBroker(t).connect()
	log := newMemLog(domain.Usage)
	log.grow(10, time.Now())
	options := quick()
	options.MaxAge = 200 * time.Millisecond
	stop := running(t, newRelay(t, js, log, domain.Usage, options))
	eventually(t, "the stream is empty", func() bool {
		stream, err := js.Stream(patiently(t), publisher.UsageStream)
		return err == nil && stream.CachedInfo().State.LastSeq == 10 && stream.CachedInfo().State.Msgs == 0
	})
	stop()

	log.grow(5, time.Now())
	options.MaxAge = 0
	again := newRelay(t, js, log, domain.Usage, options)
	running(t, again)
	reaches(t, again, 15)
	holdsTheLog(t, js, log, 11)
	if alarm := again.Status().Alarm; alarm != "" {
		t.Errorf("age is taken for a fault: %s", alarm)
	}
}

func TestTheRelayGoesOnByItselfWhenNATSReturnsAndSaysSoOnce(t *testing.T) {
	t.Parallel()
	b := startBroker(t)
	log := newMemLog(domain.Lifecycle)
	lines := &heard{}
	options := quick()
	options.Logger = slog.New(lines)
	relay := newRelay(t, b.connect(), log, domain.Lifecycle, options)
	running(t, relay)
	log.grow(10, time.Now())
	reaches(t, relay, 10)
	b.stop()
	log.grow(10, time.Now().Add(-time.Minute))
	eventually(t, "the lag is known while NATS is away", func() bool {
		s := relay.Status()
		return s.State == publisher.Retrying && s.Head == 20 && s.Last == 10 && s.LagSeconds > 59 && s.Error != ""
	})
	b.start()
	reaches(t, relay, 20)
	eventually(t, "the relay says that it is well", func() bool {
		s := relay.Status()
		return s.State == publisher.Relaying && s.Error == "" && s.LagSeconds == 0
	})
	if n := lines.count(slog.LevelWarn); n != 1 {
		t.Errorf("one outage is logged %d times", n)
	}
	holdsTheLog(t, b.connect(), log, 1)
}

func TestTheRelayGoesOnByItselfWhenTheLogReturns(t *testing.T) {
	t.Parallel()
	js := startBroker(t).connect()
	log := newMemLog(domain.Lifecycle)
	relay := newRelay(t, js, log, domain.Lifecycle, quick())
	running(t, relay)
	log.grow(10, time.Now())
	reaches(t, relay, 10)
	log.fail(errLogAway)
	eventually(t, "the relay notices", func() bool { return relay.Status().State == publisher.Retrying })
	log.grow(10, time.Now())
	log.fail(nil)
	reaches(t, relay, 20)
	holdsTheLog(t, js, log, 1)
}

func TestTheStreamFollowsTheConfigurationAndKeepsWhatAnOperatorChose(t *testing.T) {
	t.Parallel()
	js := startBroker(t).connect()
	log := newMemLog(domain.Usage)
	log.grow(10, time.Now())
	first := newRelay(t, js, log, domain.Usage, quick())
	stop := running(t, first)
	reaches(t, first, 10)
	stop()
	stream, err := js.Stream(patiently(t), publisher.UsageStream)
	if err != nil {
		t.Fatal(err)
	}
	chosen := stream.CachedInfo().Config
	chosen.Compression = jetstream.S2Compression
	chosen.Metadata["team"] = "billing"
	if _, err := js.UpdateStream(patiently(t), chosen); err != nil {
		t.Fatal(err)
	}

	options := quick()
	options.MaxAge, options.MaxBytes = time.Hour, 64<<20
	second := newRelay(t, js, log, domain.Usage, options)
	running(t, second)
	log.grow(1, time.Now())
	reaches(t, second, 11)
	if stream, err = js.Stream(patiently(t), publisher.UsageStream); err != nil {
		t.Fatal(err)
	}
	got := stream.CachedInfo().Config
	if got.MaxAge != time.Hour || got.MaxBytes != 64<<20 || got.Compression != jetstream.S2Compression || got.Metadata["team"] != "billing" {
		t.Errorf("the stream is configured as %+v", got)
	}
	if got.Discard != jetstream.DiscardOld || !got.DenyDelete || !got.DenyPurge || got.Retention != jetstream.LimitsPolicy || got.AllowDirect {
		t.Errorf("the stream could block, lose or confuse messages: %+v", got)
	}
}

func TestAFullStreamDropsItsOldestMessagesAndNeverBlocks(t *testing.T) {
	t.Parallel()
	js := startBroker(t).connect()
	log := newMemLog(domain.Usage)
	for range 60 {
		r := event(log.ledger, 1, domain.Usage, log.head()+1, time.Now())
		r.Data = fmt.Appendf(nil, `{"filler":%q}`, make([]byte, 8<<10))
		log.put(r)
	}
	options := quick()
	options.MaxBytes = 256 << 10
	relay := newRelay(t, js, log, domain.Usage, options)
	running(t, relay)
	reaches(t, relay, 60)
	state := stateOf(t, js, domain.Usage)
	if state.FirstSeq == 1 || state.Bytes > 256<<10 {
		t.Errorf("the stream kept %d bytes from %d on", state.Bytes, state.FirstSeq)
	}
	holdsTheLog(t, js, log, domain.Position(state.FirstSeq))
}
