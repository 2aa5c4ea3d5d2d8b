package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"keyledger/audit"
	"keyledger/domain"
	"keyledger/eventstore"
	"keyledger/publisher"
)

// messageWithin bounds the wait for one message of a stream that has it.
const messageWithin = 10 * time.Second

// verifyStreams holds what subscribers are told against the log. A stream that is behind, or
// whose old messages have aged out, is in order.
func (p *program) verifyStreams(ctx context.Context, a *audited, report *audit.Report) error {
	if a.NATS == nil {
		report.Skip("the streams: --nats-url (NATS_URL) is not set")
		return nil
	}
	conn, err := a.NATS.Connect(p.logger)
	if err != nil {
		return err
	}
	defer conn.Close()
	if !conn.IsConnected() {
		report.Skip("the streams: nats cannot be reached")
		return nil
	}
	js, err := jetstream.New(conn)
	if err != nil {
		return fmt.Errorf("use JetStream: %w", err)
	}
	for _, lane := range domain.Lanes() {
		if err := p.verifyStream(ctx, a, js, lane, report); err != nil {
			return fmt.Errorf("hold the stream of %s against the log: %w", lane, err)
		}
	}
	return nil
}

func (p *program) verifyStream(ctx context.Context, a *audited, js jetstream.JetStream, lane domain.Lane, report *audit.Report) error {
	stream, err := js.Stream(ctx, publisher.StreamName(lane))
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		report.Skip(fmt.Sprintf("the stream of %s: there is none", lane))
		return nil
	}
	if err != nil {
		return err
	}
	state := stream.CachedInfo().State
	if state.Msgs == 0 {
		return nil
	}
	first := state.FirstSeq
	if lane == domain.Usage {
		// Of what was detached, the database can say nothing.
		gone, err := audit.Detached(ctx, a.pool)
		if err != nil {
			return err
		}
		if first = max(first, uint64(gone)+1); first > state.LastSeq {
			return nil
		}
	}
	consumer, err := stream.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: first})
	if err != nil {
		return err
	}
	messages, err := consumer.Messages()
	if err != nil {
		return err
	}
	defer messages.Stop()
	fault := func(position uint64, text string) {
		report.Add(audit.Fault{Lane: lane, Position: domain.Position(position), Fault: text})
	}
	update, finish := p.progress("verify " + publisher.StreamName(lane))
	defer finish()
	next := first
	var message jetstream.Msg
	var sequence uint64 // of message; 0: it is to be read
	for e, err := range audit.NewLog(a.pool).Read(ctx, lane, domain.Position(first-1)) {
		if err != nil {
			return err
		}
		if uint64(e.Position) > state.LastSeq {
			return nil
		}
		if sequence == 0 {
			if message, sequence, err = nextMessage(ctx, messages); err != nil {
				return err
			}
		}
		next = uint64(e.Position) + 1
		switch {
		case sequence > uint64(e.Position):
			fault(uint64(e.Position), "the stream lacks the event, and has later ones")
			continue
		case !sameEvent(message, e):
			fault(uint64(e.Position), "the stream's message is not the log's event")
		}
		sequence = 0
		update(e.Position, domain.Position(state.LastSeq))
	}
	if next <= state.LastSeq {
		fault(next, fmt.Sprintf("the stream goes on to %d, behind the end of the log", state.LastSeq))
	}
	return nil
}

func nextMessage(ctx context.Context, messages jetstream.MessagesContext) (jetstream.Msg, uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, messageWithin)
	defer cancel()
	message, err := messages.Next(jetstream.NextContext(ctx))
	if err != nil {
		return nil, 0, err
	}
	about, err := message.Metadata()
	if err != nil {
		return nil, 0, err
	}
	return message, about.Sequence.Stream, nil
}

func sameEvent(message jetstream.Msg, e eventstore.Recorded) bool {
	h := message.Headers()
	return h.Get(publisher.HeaderID) == e.ID.UUID() && h.Get(publisher.HeaderPosition) == strconv.FormatUint(uint64(e.Position), 10) &&
		bytes.Equal(message.Data(), e.Data)
}
