package publisher_test

import (
	"context"
	"crypto/rand"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"keyledger/domain"
	"keyledger/eventstore"
	"keyledger/internal/testkit"
	"keyledger/publisher"
)

// ledgerNode is one server's write side: a store with its appenders, a relay, and
// wakes from and to the others.
type ledgerNode struct {
	*eventstore.Store
	relay *publisher.Relay
}

func openNode(t *testing.T, database string, js jetstream.JetStream) ledgerNode {
	t.Helper()
	pool, err := eventstore.Connect(t.Context(), database, eventstore.ConnectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	store, err := eventstore.Open(t.Context(), eventstore.Options{Pool: pool, MasterKey: []byte("0123456789abcdef0123456789abcdef"), Logger: testkit.Logger(t)})
	if err != nil {
		t.Fatal(err)
	}
	wake := publisher.NewWake(js.Conn(), nil)
	store.OnCommit(wake.Announce)
	n := ledgerNode{store, newRelay(t, js, store, domain.Lifecycle, quick())}
	background(t, store.Run)
	background(t, wake.Run)
	background(t, func(ctx context.Context) error { return wake.Listen(ctx, store.Receive) })
	running(t, n.relay)
	return n
}

// createAndRevoke writes two events to the log.
func (n ledgerNode) createAndRevoke(ctx context.Context) (created, revoked domain.Receipt, secret domain.Secret, err error) {
	now := time.Now().UTC().Truncate(time.Microsecond)
	raw, err := domain.NewID(now, rand.Reader)
	if err != nil {
		return created, revoked, secret, err
	}
	if secret, err = domain.NewSecret(domain.DefaultKeyFormat, false, rand.Reader); err != nil {
		return created, revoked, secret, err
	}
	key := domain.KeyID(raw)
	_, created, err = n.ChangeKey(ctx, domain.Request{}, key, domain.CreateKey{
		Now: now, Key: key, Organization: "org_acme", Digest: secret.Digest(), Prefix: secret.VisiblePrefix(domain.DefaultKeyFormat),
		Name: "Ada's laptop", Scopes: domain.Scopes{domain.ScopeRead}, CreatedBy: "user_ada", Granter: domain.Scopes{domain.ScopeAll},
	})
	if err == nil {
		_, revoked, err = n.ChangeKey(ctx, domain.Request{}, key, domain.RevokeKey{Now: now, Organization: "org_acme", Reason: "Ada lost it"})
	}
	return created, revoked, secret, err
}

// Everything is real but the power failure: two nodes write, both relay, and NATS
// goes and comes under them.
func TestTwoNodesPublishOneLogWhileNATSRestarts(t *testing.T) {
	t.Parallel()
	database := testkit.Database(t).URL
	b := startBroker(t)
	nodes := []ledgerNode{openNode(t, database, b.connect()), openNode(t, database, b.connect())}
	var (
		mu      sync.Mutex
		secrets []string
		last    domain.Position
	)
	for range rounds(t, 2) {
		var writers sync.WaitGroup
		started := make(chan struct{}, 8)
		for w := range 8 {
			writers.Go(func() {
				for i := range 10 {
					_, revoked, secret, err := nodes[w%2].createAndRevoke(t.Context())
					if err != nil {
						t.Error(err)
						return
					}
					mu.Lock()
					secrets, last = append(secrets, secret.Reveal()), max(last, revoked.Position)
					mu.Unlock()
					if i == 3 {
						started <- struct{}{}
					}
				}
			})
		}
		<-started
		b.stop()
		b.start()
		writers.Wait()
		for _, n := range nodes {
			reaches(t, n.relay, last)
		}
	}

	js := b.connect()
	consumer, err := js.OrderedConsumer(patiently(t), publisher.LifecycleStream, jetstream.OrderedConsumerConfig{})
	if err != nil {
		t.Fatal(err)
	}
	messages, err := consumer.Messages()
	if err != nil {
		t.Fatal(err)
	}
	defer messages.Stop()
	wanted := last
	for want, err := range nodes[0].Read(t.Context(), domain.Lifecycle, 0) {
		if err != nil {
			t.Fatal(err)
		}
		got, err := messages.Next(jetstream.NextContext(patiently(t)))
		if err != nil {
			t.Fatal(err)
		}
		meta, err := got.Metadata()
		if err != nil {
			t.Fatal(err)
		}
		if domain.Position(meta.Sequence.Stream) != want.Position || got.Headers().Get(publisher.HeaderID) != want.ID.UUID() || string(got.Data()) != string(want.Data) {
			t.Fatalf("message %d is not event %d", meta.Sequence.Stream, want.Position)
		}
		wire := got.Subject() + string(got.Data())
		for name, values := range got.Headers() {
			wire += " " + name + " " + strings.Join(values, " ")
		}
		for _, private := range append(slices.Clone(secrets), "Ada", "user_ada", "lost it") {
			if strings.Contains(wire, private) {
				t.Fatalf("message %d gives something away: %s", want.Position, wire)
			}
		}
		wanted--
	}
	if state := stateOf(t, js, domain.Lifecycle); wanted != 0 || domain.Position(state.LastSeq) != last || domain.Position(state.Msgs) != last {
		t.Errorf("the log has %d events more than were compared, the stream %d of %d", wanted, state.Msgs, last)
	}
}

// The sequence of a stream that was made late is the position of what it begins with.
func TestAStreamMadeLateBeginsAtThePositionOfTheLog(t *testing.T) {
	t.Parallel()
	js := startBroker(t).connect()
	database := testkit.Database(t).URL
	n := openNode(t, database, js)
	old, _, _, err := n.createAndRevoke(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, revoked, _, err := n.createAndRevoke(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	reaches(t, n.relay, revoked.Position)

	// As if the first key had been revoked just before the limit.
	options := quick()
	options.MaxAge = time.Hour
	options.Clock = func() time.Time { return old.RecordedAt.Add(time.Hour + time.Nanosecond) }
	late := newRelay(t, js, n.Store, domain.Lifecycle, options)
	if err := late.Rebuild(patiently(t)); err != nil {
		t.Fatal(err)
	}
	running(t, late)
	reaches(t, late, revoked.Position)
	if first := stateOf(t, js, domain.Lifecycle).FirstSeq; domain.Position(first) != old.Position+1 {
		t.Errorf("the stream begins at %d, not behind %d", first, old.Position)
	}
}
