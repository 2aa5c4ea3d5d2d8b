package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	natsd "github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = time.Minute

// ledger publishes what Keyledger would: a key is created at every odd position
// and revoked at the even one behind it.
type ledger struct {
	t     *testing.T
	url   string
	js    jetstream.JetStream
	epoch int
	at    uint64
}

func newLedger(t *testing.T) *ledger {
	t.Helper()
	server, err := natsd.NewServer(&natsd.Options{Host: "127.0.0.1", Port: natsd.RANDOM_PORT, JetStream: true, StoreDir: t.TempDir(), NoSigs: true})
	if err != nil {
		t.Fatal(err)
	}
	server.Start()
	t.Cleanup(func() {
		server.Shutdown()
		server.WaitForShutdown()
	})
	if !server.ReadyForConnections(patience) {
		t.Fatal("nats is not ready")
	}
	nc, err := nats.Connect(server.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	l := &ledger{t: t, url: server.ClientURL(), js: js, epoch: 1}
	l.makeStream()
	return l
}

func (l *ledger) makeStream() {
	l.t.Helper()
	// In memory: a stream on disk cannot always be made again at the moment at which its name is free.
	_, err := l.js.CreateStream(l.t.Context(), jetstream.StreamConfig{
		Name: "KEYLEDGER_LIFECYCLE", Subjects: []string{"keyledger.lifecycle.>"}, Storage: jetstream.MemoryStorage,
	})
	if err != nil {
		l.t.Fatal(err)
	}
}

func (l *ledger) publish(keys int) {
	l.t.Helper()
	for range 2 * keys {
		l.at++
		key, what := fmt.Sprintf("key_%026d", (l.at+1)/2), "created"
		if l.at%2 == 0 {
			what = "revoked"
		}
		message := &nats.Msg{
			Subject: "keyledger.lifecycle.org_abc123." + key + "." + what,
			Header:  nats.Header{"ce-ledger": {"019bc09a-3e00-7aaa-8bbb-010203040506"}, "ce-epoch": {strconv.Itoa(l.epoch)}, "ce-id": {fmt.Sprint(l.epoch, "-", l.at)}},
			Data:    fmt.Appendf(nil, `{"keyId":%q,"organizationId":"org_abc123","at":"2026-01-15T10:00:00.123456Z"}`, key),
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
	consumer, err := js.Consumer(ctx, stream, "test")
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
	if err := l.js.DeleteStream(t.Context(), stream); err != nil {
		t.Fatal(err)
	}
	l.makeStream()
	l.at = 0
	l.publish(3)
	positions(t, lines(1), 6)
	_ = end()
}

// A backup was restored that held everything: the epoch is raised, and nothing else.
func TestAnotherEpochOfTheSameHistoryChangesNothing(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	l.publish(1)
	lines, end := started(t, l.url)
	positions(t, lines(1), 2)
	l.epoch = 2
	l.publish(1)
	positions(t, lines(1), 4)
	_ = end()
}

func TestAnotherHistoryEndsTheSubscriber(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	l.publish(2)
	lines, end := started(t, l.url)
	positions(t, lines(2), 2, 4)
	if err := l.js.DeleteStream(t.Context(), stream); err != nil {
		t.Fatal(err)
	}
	l.at = 0
	l.makeStream()
	l.publish(1)
	l.epoch = 2
	l.publish(2)
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
