// Command subscriber reacts to revocations: it prints a line for every key that
// is revoked, in order, and goes on where it stopped when it is started again.
//
//	go run ./examples/subscriber                     # the server of ./.keyledger
//	NATS_URL=nats://... go run ./examples/subscriber # any other
//
// It needs nothing of Keyledger but the names in docs/events.md.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	stream      = "KEYLEDGER_LIFECYCLE"
	revocations = "keyledger.lifecycle.*.*.revoked" // of all organizations and keys
)

func main() {
	endpoints := flag.String("endpoints", ".keyledger/endpoints.json", "where a running server says how to reach it; NATS_URL goes first")
	name := flag.String("name", "revocations-example", "the durable consumer: the server remembers under this name how far we have come")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	url, err := natsURL(*endpoints)
	if err == nil {
		s := subscriber{url: url, name: *name, out: os.Stdout, progress: os.Stderr}
		err = s.run(ctx)
	}
	if err != nil && ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, "subscriber:", err)
		os.Exit(1)
	}
}

func natsURL(endpoints string) (string, error) {
	if url := os.Getenv("NATS_URL"); url != "" {
		return url, nil
	}
	text, err := os.ReadFile(endpoints)
	if err != nil {
		return "", fmt.Errorf("set NATS_URL, or start a server first: %w", err)
	}
	var e struct{ NATS string }
	if err := json.Unmarshal(text, &e); err != nil {
		return "", fmt.Errorf("read %s: %w", endpoints, err)
	}
	return e.NATS, nil
}

// revocation is what a message says. The data is
// {"keyId":"key_...","organizationId":"...","at":"..."}; all else is in headers.
type revocation struct {
	KeyID          string    `json:"keyId"`
	OrganizationID string    `json:"organizationId"`
	At             time.Time `json:"at"`
}

type subscriber struct {
	url, name     string
	out, progress io.Writer

	// How far we have come, and the event that we found there: a position means
	// nothing without its history.
	//
	// This program's effect is a printed line, so it keeps them in memory and leaves
	// the rest to the durable consumer: a crash between the line and the
	// acknowledgement prints that line again (at least once). Whoever writes to a
	// database keeps the four values there and writes them in the same transaction as
	// the effect; what they have at the start goes in here. Then handle makes every
	// event take effect exactly once, however often it is delivered.
	position          uint64
	ledger, epoch, id string
}

// errHistory ends the program: going on would mix two histories.
var errHistory = errors.New("the ledger was restored or replaced, and the same positions may stand for other events now: " +
	"rebuild what was derived from it and start with a new --name")

func (s *subscriber) run(ctx context.Context) error {
	nc, err := nats.Connect(s.url, nats.Name("keyledger example subscriber"), nats.MaxReconnects(-1))
	if err != nil {
		return fmt.Errorf("connect to NATS: %w", err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	for {
		// It ends when ctx does, when the history has changed, or when the consumer is
		// gone: "keyledger stream rebuild" deletes the stream with its consumers, and
		// brings back the same events under the same positions.
		err := s.follow(ctx, js)
		if ctx.Err() != nil || errors.Is(err, errHistory) {
			return err
		}
		fmt.Fprintln(s.progress, "subscribing again:", err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second):
		}
	}
}

func (s *subscriber) follow(ctx context.Context, js jetstream.JetStream) error {
	source, err := js.Stream(ctx, stream)
	if err != nil {
		return err
	}
	if err := s.checkHistory(ctx, source, s.ledger, s.epoch); err != nil {
		return err
	}
	// A consumer that exists goes on where it was. One that is gone is made again
	// and begins behind the last event that we handled: the sequence of the stream
	// is the position in the log, today and after every rebuild.
	consumer, err := source.Consumer(ctx, s.name)
	if errors.Is(err, jetstream.ErrConsumerNotFound) {
		consumer, err = source.CreateConsumer(ctx, jetstream.ConsumerConfig{
			Durable:       s.name,
			FilterSubject: revocations,
			DeliverPolicy: jetstream.DeliverByStartSequencePolicy,
			OptStartSeq:   s.position + 1,
			AckPolicy:     jetstream.AckExplicitPolicy,
			// One at a time keeps the order even when a message has to be delivered
			// again. Who needs more speed raises it, and passes over what comes late.
			MaxAckPending: 1,
		})
	}
	if err != nil {
		return err
	}
	// JetStream does not say so when messages that we have not seen are gone by age.
	seen := cmp.Or(s.position, consumer.CachedInfo().AckFloor.Stream)
	if first := source.CachedInfo().State.FirstSeq; seen > 0 && first > seen+1 {
		fmt.Fprintf(s.progress, "the stream begins at %d and we had come to %d: read what lies between from the log, as docs/events.md says\n", first, seen)
	}
	messages, err := consumer.Messages()
	if err != nil {
		return err
	}
	defer messages.Stop()
	for {
		message, err := messages.Next(jetstream.NextContext(ctx))
		if err != nil {
			return err
		}
		if err := s.handle(ctx, source, message); err != nil {
			return err
		}
		// Only now: what is not acknowledged is delivered again, to us or to the
		// next process under this name. Should this get lost, handle will know.
		if err := message.Ack(); err != nil {
			return err
		}
	}
}

// handle has its effect once for every position.
func (s *subscriber) handle(ctx context.Context, source jetstream.Stream, message jetstream.Msg) error {
	meta, err := message.Metadata()
	if err != nil {
		return err
	}
	position, header := meta.Sequence.Stream, message.Headers()
	ledger, epoch := header.Get("ce-ledger"), header.Get("ce-epoch")
	if ledger != s.ledger || epoch != s.epoch {
		if err := s.checkHistory(ctx, source, ledger, epoch); err != nil {
			return err
		}
	}
	if position <= s.position {
		return nil // delivered again
	}
	var r revocation
	if err := json.Unmarshal(message.Data(), &r); err != nil {
		return fmt.Errorf("position %d: %w", position, err)
	}
	if _, err := fmt.Fprintf(s.out, "%s  %s of %s is revoked  (position %d)\n", r.At.Format(time.RFC3339), r.KeyID, r.OrganizationID, position); err != nil {
		return err
	}
	s.position, s.ledger, s.epoch, s.id = position, ledger, epoch, header.Get("ce-id")
	return nil
}

// checkHistory makes sure that the last event that we handled is part of what the
// stream holds now. After a backup was restored it may never have happened, and
// our position may belong to another event.
func (s *subscriber) checkHistory(ctx context.Context, source jetstream.Stream, ledger, epoch string) error {
	switch {
	case s.position == 0:
		return nil // nothing handled, nothing to contradict
	case ledger != s.ledger:
		return errHistory
	}
	ours, err := source.GetMsg(ctx, s.position)
	switch {
	case errors.Is(err, jetstream.ErrMsgNotFound):
		if epoch != s.epoch {
			return errHistory // the proof is gone by age
		}
		return nil
	case err != nil:
		return err
	case ours.Header.Get("ce-id") != s.id:
		return errHistory
	}
	return nil
}
