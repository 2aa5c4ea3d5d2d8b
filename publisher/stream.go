package publisher

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"keyledger/domain"
	"keyledger/eventstore"
)

// How long the streams keep messages unless told otherwise. The lifecycle is
// small and is what a new subscriber wants from its beginning, so it is kept for ever; uses
// are a thousand times the volume and a week old at most.
const (
	LifecycleMaxAge time.Duration = 0
	UsageMaxAge                   = 7 * 24 * time.Hour
)

// ledgerMetadata is the stream's note of the ledger that it was made for. It tells two ledgers
// on one NATS apart even when the stream is empty.
const ledgerMetadata = "keyledger_ledger"

// configuration is what the relay asks of its stream. first is the sequence of
// its first message, and only matters when it is created.
func (r *Relay) configuration(ledger domain.ID, first domain.Position) jetstream.StreamConfig {
	maxBytes := r.options.MaxBytes
	if maxBytes == 0 {
		maxBytes = -1
	}
	return jetstream.StreamConfig{
		Name:        r.stream,
		Description: "Keyledger's " + string(r.lane) + " events: the sequence is the log's position",
		Subjects:    []string{StreamSubjects(r.lane)},
		FirstSeq:    uint64(first),
		Storage:     jetstream.FileStorage,
		Replicas:    max(r.options.Replicas, 1),
		Retention:   jetstream.LimitsPolicy,
		// Old messages go when a limit is reached. DiscardNew would stop the stream
		// instead, and with it every revocation that follows.
		Discard:           jetstream.DiscardOld,
		MaxAge:            r.options.MaxAge,
		MaxBytes:          maxBytes,
		MaxMsgs:           -1,
		MaxMsgsPerSubject: -1,
		MaxMsgSize:        -1,
		MaxConsumers:      -1,
		// A message taken out of the middle is a hole that no relay can fill, and a
		// purge would be mistaken for age. Rebuild deletes the stream as a whole.
		DenyDelete: true,
		DenyPurge:  true,
		// The expected sequence already makes every message unique, so the server
		// need not remember ids: this is the smallest window that it accepts.
		Duplicates: 100 * time.Millisecond,
		// Reads of single messages go to the leader: a replica may lag behind the
		// very message that a relay wants to compare.
		AllowDirect: false,
		Metadata:    map[string]string{ledgerMetadata: ledger.UUID()},
	}
}

// ensure returns the stream with fresh information about it, and creates it
// where there is none.
func (r *Relay) ensure(ctx context.Context) (jetstream.Stream, error) {
	stream, err := r.find(ctx)
	if errors.Is(err, jetstream.ErrStreamNotFound) && r.seen {
		// Somebody may be deleting it at this moment. The server forgets the name of a
		// stream before it removes the files: one that is created in between would
		// lose its files to the deletion. A rebuild creates the stream itself.
		if !r.wait(ctx, deletedWithin) {
			return nil, ctx.Err()
		}
		stream, err = r.find(ctx)
	}
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		head, first, err := r.beginning(ctx)
		if err != nil {
			return nil, err
		}
		stream, err = r.create(ctx, head.Ledger, first)
		if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
			// Another relay was faster, and its clock or settings differ a little. Its
			// stream is as good as ours.
			stream, err = r.find(ctx)
		}
		r.seen = err == nil
		return stream, err
	}
	r.seen = r.seen || err == nil
	return stream, err
}

func (r *Relay) find(ctx context.Context) (jetstream.Stream, error) {
	// A request would wait in the client's buffer for the connection to return,
	// and time out.
	if !r.js.Conn().IsConnected() {
		return nil, nats.ErrDisconnected
	}
	stream, err := r.js.Stream(ctx, r.stream)
	if err != nil {
		return nil, fmt.Errorf("look at stream %s: %w", r.stream, err)
	}
	return stream, nil
}

// beginning is where a new stream starts: at the oldest event that it would still
// hold had it been there all along.
func (r *Relay) beginning(ctx context.Context) (head eventstore.Head, first domain.Position, err error) {
	if head, err = r.log.Head(ctx, r.lane); err != nil {
		return head, 0, fmt.Errorf("read the head of the log: %w", err)
	}
	since := time.Unix(0, 0) // the oldest event that the log itself still has
	if r.options.MaxAge > 0 {
		since = r.options.Clock().Add(-r.options.MaxAge)
	}
	if first, err = r.log.FirstSince(ctx, r.lane, since); err != nil {
		return head, 0, fmt.Errorf("find the first event of the stream: %w", err)
	}
	return head, first, nil
}

func (r *Relay) create(ctx context.Context, ledger domain.ID, first domain.Position) (jetstream.Stream, error) {
	ctx, cancel := context.WithTimeout(ctx, changeWithin)
	defer cancel()
	stream, err := r.js.CreateStream(ctx, r.configuration(ledger, first))
	if err != nil {
		return nil, fmt.Errorf("create stream %s: %w", r.stream, err)
	}
	r.options.Logger.Info("stream created", "stream", r.stream, "first", first)
	return stream, nil
}

// configure brings an existing stream to the configuration that this process
// was started with. A stream that cannot be changed is relayed to as it is.
func (r *Relay) configure(ctx context.Context, stream jetstream.Stream, ledger domain.ID) {
	if r.configured {
		return
	}
	r.configured = true
	have := stream.CachedInfo().Config
	want := r.configuration(ledger, domain.Position(have.FirstSeq))
	if r.options.Replicas == 0 {
		want.Replicas = have.Replicas
	}
	same := have.MaxAge == want.MaxAge && have.MaxBytes == want.MaxBytes && have.Replicas == want.Replicas &&
		len(have.Subjects) == 1 && have.Subjects[0] == want.Subjects[0] && have.Discard == want.Discard &&
		have.MaxMsgs == want.MaxMsgs && have.MaxMsgsPerSubject == want.MaxMsgsPerSubject && have.MaxMsgSize == want.MaxMsgSize &&
		have.DenyDelete && have.DenyPurge && !have.AllowDirect && have.Metadata[ledgerMetadata] == want.Metadata[ledgerMetadata]
	if same {
		return
	}
	// What is not ours stays as an operator has set it: placement, compression,
	// republishing, limits for consumers.
	changed := have
	changed.Subjects, changed.Discard = want.Subjects, want.Discard
	changed.MaxAge, changed.MaxBytes, changed.Replicas = want.MaxAge, want.MaxBytes, want.Replicas
	changed.MaxMsgs, changed.MaxMsgsPerSubject, changed.MaxMsgSize = want.MaxMsgs, want.MaxMsgsPerSubject, want.MaxMsgSize
	changed.DenyDelete, changed.DenyPurge, changed.AllowDirect = true, true, false
	changed.Duplicates = want.Duplicates
	changed.Metadata = map[string]string{ledgerMetadata: want.Metadata[ledgerMetadata]}
	for key, value := range have.Metadata {
		if key != ledgerMetadata {
			changed.Metadata[key] = value
		}
	}
	ctx, cancel := context.WithTimeout(ctx, changeWithin)
	defer cancel()
	if _, err := r.js.UpdateStream(ctx, changed); err != nil {
		r.options.Logger.Warn("the stream keeps a configuration other than this server's", "stream", r.stream, "error", err)
		return
	}
	r.options.Logger.Info("stream reconfigured", "stream", r.stream, "max_age", want.MaxAge, "max_bytes", want.MaxBytes, "replicas", want.Replicas)
}

// Rebuild deletes the stream with all its consumers and creates it again from
// the log. Relays fill it: this one if it runs, and those of other nodes within
// a few seconds. It is the answer to an alarm, and loses nothing that the log has.
func (r *Relay) Rebuild(ctx context.Context) error {
	// The log is asked first: if it cannot be reached now, the old stream is better than none.
	head, first, err := r.beginning(ctx)
	if err != nil {
		return fmt.Errorf("rebuild stream %s: %w", r.stream, err)
	}
	changing, cancel := context.WithTimeout(ctx, changeWithin)
	defer cancel()
	if err := r.js.DeleteStream(changing, r.stream); err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
		return fmt.Errorf("rebuild stream %s: %w", r.stream, err)
	}
	if err := r.createAgain(changing, head.Ledger, first); err != nil {
		return fmt.Errorf("rebuild: %w", err)
	}
	r.poke()
	return nil
}

// noStore is what a server says that cannot make the files of a stream.
const noStore jetstream.ErrorCode = 10049

// createAgain creates a stream that was just deleted. Where it was the only one, the server
// removes the empty folder of its streams in the background, after it has said that the
// stream is deleted, and perhaps from under the next one: that is over in a moment.
func (r *Relay) createAgain(ctx context.Context, ledger domain.ID, first domain.Position) error {
	for {
		_, err := r.create(ctx, ledger, first)
		if err == nil || errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
			return nil // a relay of another node may have noticed already: as good
		}
		if refused, ok := errors.AsType[*jetstream.APIError](err); !ok || refused.ErrorCode != noStore {
			return err
		}
		select {
		case <-time.After(firstRetry):
		case <-ctx.Done():
			return err
		}
	}
}

// compare says in which respect the stream's message at a position is not the log's
// event; empty when it is, or when the message has just gone by age.
func (r *Relay) compare(ctx context.Context, stream jetstream.Stream, event eventstore.Recorded) (string, error) {
	message, err := stream.GetMsg(ctx, uint64(event.Position))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read message %d of stream %s: %w", event.Position, r.stream, err)
	}
	return differs(event, message.Header, message.Data), nil
}

// missing counts the messages that a stream lacks between its first and its
// last. The relay never leaves a hole: the server has lost them.
func missing(state jetstream.StreamState) uint64 {
	if state.Msgs == 0 || state.LastSeq < state.FirstSeq {
		return 0
	}
	return state.LastSeq - state.FirstSeq + 1 - min(state.Msgs, state.LastSeq-state.FirstSeq+1)
}
