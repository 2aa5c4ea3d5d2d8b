package publisher_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"keyledger/domain"
	"keyledger/internal/natsserver"
	"keyledger/internal/testkit"
	"keyledger/publisher"
)

func TestMain(m *testing.M) {
	if options := os.Getenv(serverVariable); options != "" {
		serveNATS(options)
	}
	testkit.Main(m)
}

// patience is how long a test waits for what must happen.
const patience = 60 * time.Second

func patiently(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// broker is a real NATS server that can be stopped and started again.
type broker struct {
	t      testing.TB
	dir    string
	port   int
	server *natsserver.Server
}

func startBroker(t testing.TB) *broker {
	t.Helper()
	b := &broker{t: t, dir: filepath.Join(t.TempDir(), "nats"), port: testkit.Port(t)}
	b.start()
	t.Cleanup(b.stop)
	return b
}

func (b *broker) start() {
	b.t.Helper()
	server, err := natsserver.Start(b.t.Context(), natsserver.Options{StoreDir: b.dir, User: "keyledger", Password: "secret", Port: b.port})
	if err != nil {
		b.t.Fatal(err)
	}
	b.server = server
}

func (b *broker) stop() {
	if err := b.server.Shutdown(); err != nil {
		b.t.Error(err)
	}
}

// connect gives a connection of its own, over a socket, that comes back by itself.
func (b *broker) connect() jetstream.JetStream {
	b.t.Helper()
	nc, err := nats.Connect(b.server.ClientURL(), nats.MaxReconnects(-1), nats.ReconnectWait(10*time.Millisecond), nats.ReconnectJitter(0, 0),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	if err != nil {
		b.t.Fatal(err)
	}
	closed := make(chan struct{})
	nc.SetClosedHandler(func(*nats.Conn) { close(closed) })
	b.t.Cleanup(func() {
		nc.Close()
		<-closed
	})
	js, err := jetstream.New(nc)
	if err != nil {
		b.t.Fatal(err)
	}
	return js
}

// quick are options with which faults are over soon.
func quick() publisher.Options {
	return publisher.Options{StandBack: 10 * time.Millisecond, RetryMost: 100 * time.Millisecond}
}

func newRelay(t testing.TB, js jetstream.JetStream, log publisher.Log, lane domain.Lane, options publisher.Options) *publisher.Relay {
	t.Helper()
	r, err := publisher.New(js, log, lane, options)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// running runs a relay until the test ends or the result is called.
func running(t testing.TB, r *publisher.Relay) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("the relay ended with %v", err)
			}
		})
	}
	t.Cleanup(stop)
	return stop
}

// reaches waits until a relay knows the stream at a position.
func reaches(t testing.TB, r *publisher.Relay, position domain.Position) {
	t.Helper()
	if err := r.WaitFor(patiently(t), position); err != nil {
		t.Fatalf("%v; it says %+v", err, r.Status())
	}
}

// eventually waits for a condition that nothing signals.
func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	ctx := patiently(t)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-ctx.Done():
			t.Fatalf("%s: not within %v", what, patience)
		case <-tick.C:
		}
	}
}

func stateOf(t testing.TB, js jetstream.JetStream, lane domain.Lane) jetstream.StreamState {
	t.Helper()
	stream, err := js.Stream(patiently(t), publisher.StreamName(lane))
	if err != nil {
		t.Fatal(err)
	}
	return stream.CachedInfo().State
}

// holdsTheLog reads the whole stream as a subscriber does and compares every
// message with the log, from a position to the log's head.
func holdsTheLog(t testing.TB, js jetstream.JetStream, log *memLog, from domain.Position) {
	t.Helper()
	ctx := patiently(t)
	state := stateOf(t, js, log.lane)
	if domain.Position(state.FirstSeq) != from || domain.Position(state.LastSeq) != log.head() || state.Msgs != state.LastSeq-state.FirstSeq+1 {
		t.Fatalf("the stream holds %d messages from %d to %d, the log should be there from %d to %d", state.Msgs, state.FirstSeq, state.LastSeq, from, log.head())
	}
	consumer, err := js.OrderedConsumer(ctx, publisher.StreamName(log.lane), jetstream.OrderedConsumerConfig{})
	if err != nil {
		t.Fatal(err)
	}
	messages, err := consumer.Messages()
	if err != nil {
		t.Fatal(err)
	}
	defer messages.Stop()
	for position := from; position <= log.head(); position++ {
		got, err := messages.Next(jetstream.NextContext(ctx))
		if err != nil {
			t.Fatal(err)
		}
		meta, err := got.Metadata()
		if err != nil {
			t.Fatal(err)
		}
		want, err := publisher.Message(log.at(position))
		if err != nil {
			t.Fatal(err)
		}
		if domain.Position(meta.Sequence.Stream) != position || got.Subject() != want.Subject || string(got.Data()) != string(want.Data) ||
			got.Headers().Get(publisher.HeaderID) != want.Header.Get(publisher.HeaderID) ||
			got.Headers().Get(publisher.HeaderEpoch) != want.Header.Get(publisher.HeaderEpoch) {
			t.Fatalf("message %d is not the log's event %d: %s %s %s", meta.Sequence.Stream, position, got.Subject(), got.Headers(), got.Data())
		}
	}
}

// heard keeps what a relay logs.
type heard struct {
	mu      sync.Mutex
	records []slog.Record
}

func (h *heard) Enabled(context.Context, slog.Level) bool { return true }
func (h *heard) WithAttrs([]slog.Attr) slog.Handler       { return h }
func (h *heard) WithGroup(string) slog.Handler            { return h }
func (h *heard) Handle(_ context.Context, r slog.Record) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.records = append(h.records, r)
	return nil
}

func (h *heard) count(level slog.Level) (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, r := range h.records {
		if r.Level == level {
			n++
		}
	}
	return n
}
