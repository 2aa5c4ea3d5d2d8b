package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"keyledger/domain"
	"keyledger/eventstore"
	"keyledger/internal/testkit"
	"keyledger/publisher"
)

func TestMain(m *testing.M) { testkit.Main(m) }

const patience = time.Minute

// ledger publishes what a relay would: a key is created at every odd position and
// revoked at the even one behind it.
type ledger struct {
	t     *testing.T
	url   string
	js    jetstream.JetStream
	epoch uint32
	at    uint64
}

func newLedger(t *testing.T) *ledger {
	t.Helper()
	server := testkit.NATS(t)
	js, err := jetstream.New(server.Conn)
	if err != nil {
		t.Fatal(err)
	}
	l := &ledger{t: t, url: server.URL, js: js, epoch: 1}
	l.makeStream()
	return l
}

func (l *ledger) makeStream() {
	l.t.Helper()
	_, err := l.js.CreateStream(l.t.Context(), jetstream.StreamConfig{Name: publisher.LifecycleStream, Subjects: []string{publisher.StreamSubjects(domain.Lifecycle)}})
	if err != nil {
		l.t.Fatal(err)
	}
}

func (l *ledger) publish(keys int) {
	l.t.Helper()
	for range 2 * keys {
		l.at++
		r := eventstore.Recorded{
			Ledger: domain.ID{1}, Epoch: l.epoch, Lane: domain.Lifecycle, Position: domain.Position(l.at), ID: domain.ID{byte(l.at)},
			Stream: eventstore.KeyStream(domain.KeyID{byte((l.at + 1) / 2)}), Version: 1, Organization: "org_abc123", Type: "KeyCreated", Schema: 1,
		}
		if l.at%2 == 0 {
			r.Type, r.Version = "KeyRevoked", 2
			key, _ := r.Stream.Key()
			r.Data = fmt.Appendf(nil, `{"keyId":%q,"organizationId":"org_abc123","at":"2026-01-15T10:00:00.123456Z"}`, key)
		}
		message, err := publisher.Message(r)
		if err != nil {
			l.t.Fatal(err)
		}
		if _, err := l.js.PublishMsg(l.t.Context(), message, jetstream.WithExpectLastSequence(l.at-1)); err != nil {
			l.t.Fatal(err)
		}
	}
}

// started runs a subscriber; end stops it and gives what it ended with.
func started(t *testing.T, url string) (lines func(n int) []string, end func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	out, in := io.Pipe()
	done := make(chan error, 1)
	go func() {
		s := subscriber{url: url, name: "test", out: in, progress: io.Discard}
		done <- s.run(ctx)
		_ = in.Close()
	}()
	scanner := bufio.NewScanner(out)
	lines = func(n int) (got []string) {
		for len(got) < n && scanner.Scan() {
			got = append(got, scanner.Text())
		}
		return got
	}
	end = func() error {
		cancel()
		_ = out.Close()
		return <-done
	}
	return lines, end
}

// positions checks that lines tell of these, in order.
func positions(t *testing.T, lines []string, want ...int) {
	t.Helper()
	if len(lines) != len(want) {
		t.Fatalf("%d lines, not %d: %q", len(lines), len(want), lines)
	}
	for i, line := range lines {
		if !strings.HasPrefix(line, "2026-01-15T10:00:00Z  key_") || !strings.HasSuffix(line, fmt.Sprintf(" of org_abc123 is revoked  (position %d)", want[i])) {
			t.Errorf("line %d is %q, not of position %d", i, line, want[i])
		}
	}
}

func TestEveryRevocationIsPrintedInOrderAndOnceOverRestarts(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	l.publish(3)
	lines, end := started(t, l.url)
	positions(t, lines(3), 2, 4, 6)
	l.publish(1)
	positions(t, lines(1), 8)
	// The line is there before it is acknowledged: wait until it is.
	acknowledged(t, l.js, 8)
	_ = end()

	l.publish(2)
	lines, end = started(t, l.url)
	positions(t, lines(2), 10, 12)
	_ = end()
}

func acknowledged(t *testing.T, js jetstream.JetStream, position uint64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	consumer, err := js.Consumer(ctx, publisher.LifecycleStream, "test")
	if err != nil {
		t.Fatal(err)
	}
	for {
		info, err := consumer.Info(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if info.AckFloor.Stream >= position {
			return
		}
	}
}

func TestARebuiltStreamRepeatsNothing(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	l.publish(2)
	lines, end := started(t, l.url)
	positions(t, lines(2), 2, 4)
	if err := l.js.DeleteStream(t.Context(), publisher.LifecycleStream); err != nil {
		t.Fatal(err)
	}
	l.makeStream()
	l.at = 0
	l.publish(3)
	positions(t, lines(1), 6)
	_ = end()
}

func TestAnotherEpochEndsTheSubscriber(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	l.publish(1)
	lines, end := started(t, l.url)
	positions(t, lines(1), 2)
	l.epoch = 2
	l.publish(1)
	if more := lines(1); len(more) != 0 {
		t.Errorf("it went on with %q", more)
	}
	if err := end(); !errors.Is(err, errHistory) {
		t.Errorf("it ended with %v", err)
	}
}

func TestTheServersOwnFileSaysWhereNATSIs(t *testing.T) {
	t.Setenv("NATS_URL", "")
	file := filepath.Join(t.TempDir(), "endpoints.json")
	if err := os.WriteFile(file, []byte(`{"http":"http://h","database":"d","database_admin":"a","nats":"nats://u:p@127.0.0.1:4222"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if url, err := natsURL(file); err != nil || url != "nats://u:p@127.0.0.1:4222" {
		t.Errorf("the file says %q, %v", url, err)
	}
	t.Setenv("NATS_URL", "nats://other")
	if url, err := natsURL(file); err != nil || url != "nats://other" {
		t.Errorf("NATS_URL does not go first: %q, %v", url, err)
	}
}
