package client

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// ErrGap says that events behind the subscription's position are no longer in the
// stream, and that there is no [Client] to read them from the log.
var ErrGap = errors.New("keyledger: the stream has lost events that were not handled yet; set SubscribeOptions.Client, which reads them from the log")

// Start says where a subscription begins that has no position yet.
type Start int

const (
	// FromTheBeginning handles everything that ever happened.
	FromTheBeginning Start = iota
	// FromTheStream begins with the oldest event that the stream still has.
	FromTheStream
	// FromNow begins with the next event.
	FromNow
)

// SubscribeOptions say what is subscribed to, and who keeps the position.
type SubscribeOptions struct {
	// NATS is a connection, or URL says where to make one.
	NATS *nats.Conn
	URL  string
	// InboxPrefix is for a connection to URL by a user who may listen to no inboxes but
	// its own, such as _INBOX_subscriber of deploy/nats. Empty: NATS's usual one.
	InboxPrefix string
	// Client, when set, reads from the log what the stream no longer has. It needs a key
	// of the service with the scope system:events.
	Client *Client

	Filter Filter
	Start  Start

	// Either the library keeps the position, in Store under Name, after the handler has
	// returned; then an event whose handling was interrupted by a crash is handled
	// again. Or the handler keeps Event.Cursor together with its effect, in one
	// transaction, and After is what it has kept; then every event takes effect once.
	// With neither, each call begins at Start.
	Name  string
	Store PositionStore
	After Cursor
	// SaveEvery lets positions gather before one is stored. 0: every one is.
	SaveEvery time.Duration

	// Logger hears of what is tried again. nil: none.
	Logger *slog.Logger
}

const (
	// lookEvery is how often a subscription looks how its stream stands.
	lookEvery      = 5 * time.Second
	idleHeartbeat  = 2 * time.Second // two that are missing are noticed before the next look
	pullExpiry     = 30 * time.Second
	consumerUnused = time.Minute // until the server forgets a consumer that nobody reads
	natsTimeout    = 10 * time.Second
	backfillPage   = 1000

	// What waits here for its handler; a message is at most what NATS takes, 8 MiB.
	mostPulled      = 500
	mostPulledBytes = 16 << 20
)

// Subscribe calls a handler with every event that passes the filter, one after the
// other, in the order of the log, each position once, until the context ends or the
// handler fails. Whatever happens to the connection or the stream meanwhile, it goes
// on behind the last event that was handled; an event that is no longer in the stream is
// read from the log.
//
// It returns the context's error, the handler's, [ErrAnotherHistory] when a restored
// or replaced ledger has made events undone that were handled (throw away what was
// derived from them, and start anew without a position), [ErrGap], or [ErrTwoSubscribers].
func Subscribe(ctx context.Context, o SubscribeOptions, handle func(ctx context.Context, e Event) error) (err error) {
	s, err := newSubscription(ctx, o, handle)
	if err != nil {
		return err
	}
	defer func() {
		saving, cancel := context.WithTimeout(context.WithoutCancel(ctx), natsTimeout)
		defer cancel()
		err = errors.Join(err, s.save(saving))
		if o.NATS == nil {
			s.nc.Close()
		}
	}()
	for failures := 0; ; failures++ {
		before := s.at
		err := s.follow(ctx)
		var final *finalError
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.As(err, &final):
			return final.err
		case s.nc.IsClosed():
			return fmt.Errorf("keyledger: %w", nats.ErrConnectionClosed)
		case s.at != before:
			failures = 0
		}
		s.logger.Warn("subscribing again", "name", s.o.Name, "position", uint64(s.at.Position), "error", err)
		if !pause(ctx, min(mostBackoff, firstBackoff<<min(failures, 10))) {
			<-ctx.Done()
			return ctx.Err()
		}
	}
}

// finalError ends a subscription: another attempt would not help.
type finalError struct{ err error }

func (e *finalError) Error() string { return e.err.Error() }
func (e *finalError) Unwrap() error { return e.err }

func final(err error) error { return &finalError{err} }

type subscription struct {
	o      SubscribeOptions
	handle func(context.Context, Event) error
	logger *slog.Logger
	nc     *nats.Conn
	js     jetstream.JetStream
	stream string

	at      Cursor   // of the last event that was handled or left out
	from    Position // where it begins while at is zero
	missing Position // events up to here are to be read from the log

	saved   Cursor
	savedAt time.Time
}

func newSubscription(ctx context.Context, o SubscribeOptions, handle func(context.Context, Event) error) (*subscription, error) {
	s := &subscription{o: o, handle: handle, logger: o.Logger, at: o.After, from: 1, stream: "KEYLEDGER_LIFECYCLE"}
	if s.logger == nil {
		s.logger = slog.New(slog.DiscardHandler)
	}
	if o.Filter.lane() == Uses {
		s.stream = "KEYLEDGER_USAGE"
	}
	switch err := o.Filter.check(); {
	case err != nil:
		return nil, err
	case handle == nil:
		return nil, invalid("", "a subscription needs a handler")
	case (o.NATS == nil) == (o.URL == ""):
		return nil, invalid("NATS", "a subscription needs a connection to NATS or a URL, and not both")
	case o.Store != nil && o.After != (Cursor{}):
		return nil, invalid("After", "either the library keeps the position, or the handler does")
	case o.Store != nil && (o.Name == "" || strings.ContainsFunc(o.Name, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_'
	})):
		return nil, invalid("Name", "the name must be letters, digits, underscores and hyphens")
	}
	if o.Store != nil {
		at, err := o.Store.Load(ctx, o.Name)
		if err != nil {
			return nil, err
		}
		s.at, s.saved, s.savedAt = at, at, time.Now()
	}
	s.nc = o.NATS
	if s.nc == nil {
		options := []nats.Option{
			nats.Name("keyledger subscription " + o.Name), nats.MaxReconnects(-1),
			nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { // such as what is not permitted
				s.logger.Warn("NATS says no", "name", o.Name, "error", err)
			}),
		}
		if o.InboxPrefix != "" {
			options = append(options, nats.CustomInboxPrefix(o.InboxPrefix))
		}
		var err error
		if s.nc, err = nats.Connect(o.URL, options...); err != nil {
			return nil, fmt.Errorf("keyledger: connect to NATS: %w", err)
		}
	}
	js, err := jetstream.New(s.nc, jetstream.WithDefaultTimeout(natsTimeout))
	if err != nil {
		if o.NATS == nil {
			s.nc.Close()
		}
		return nil, fmt.Errorf("keyledger: %w", err)
	}
	s.js = js
	return s, nil
}

// within bounds one question to NATS, whatever the caller's deadline is.
func within[T any](ctx context.Context, ask func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, natsTimeout)
	defer cancel()
	return ask(ctx)
}

func message(ctx context.Context, source jetstream.Stream, sequence uint64) (*jetstream.RawStreamMsg, error) {
	return within(ctx, func(ctx context.Context) (*jetstream.RawStreamMsg, error) { return source.GetMsg(ctx, sequence) })
}

// next is the position that comes next.
func (s *subscription) next() Position {
	if s.at.Position == 0 {
		return s.from
	}
	return s.at.Position + 1
}

// follow reads the stream from the next position on, until something is in the way.
func (s *subscription) follow(ctx context.Context) error {
	if err := s.save(ctx); err != nil { // what an earlier attempt could not
		return err
	}
	source, err := within(ctx, func(ctx context.Context) (jetstream.Stream, error) { return s.js.Stream(ctx, s.stream) })
	if err != nil {
		return fmt.Errorf("look at the stream: %w", err)
	}
	state := source.CachedInfo().State
	if err := s.recognise(ctx, source, state); err != nil {
		return err
	}
	if s.at.Position == 0 && s.from == 1 {
		switch s.o.Start {
		case FromTheStream:
			s.from = Position(max(1, state.FirstSeq))
		case FromNow:
			s.from = Position(state.LastSeq) + 1
		case FromTheBeginning:
		}
	}
	consumer, err := within(ctx, func(ctx context.Context) (jetstream.Consumer, error) {
		return source.CreateConsumer(ctx, jetstream.ConsumerConfig{
			FilterSubjects: s.o.Filter.subjects(), DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: uint64(s.next()),
			AckPolicy: jetstream.AckNonePolicy, MaxDeliver: 1, MemoryStorage: true, Replicas: 1, InactiveThreshold: consumerUnused,
		})
	})
	if err != nil {
		return fmt.Errorf("make a consumer: %w", err)
	}
	defer func() {
		// It would be forgotten by itself, later.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = source.DeleteConsumer(ctx, consumer.CachedInfo().Name)
	}()
	// Only now: what the stream drops from here on, the consumer has passed already, or
	// the look at the stream below tells.
	if err := s.fill(ctx, source); err != nil {
		return err
	}
	messages, err := consumer.Messages(jetstream.PullMaxMessagesWithBytesLimit(mostPulled, mostPulledBytes), jetstream.PullExpiry(pullExpiry), jetstream.PullHeartbeat(idleHeartbeat))
	if err != nil {
		return fmt.Errorf("read the stream: %w", err)
	}
	defer messages.Stop()
	defer context.AfterFunc(ctx, messages.Stop)()
	delivered, looked := uint64(0), time.Now()
	for {
		message, err := messages.Next(jetstream.NextMaxWait(lookEvery))
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err == nil:
			if err := s.take(ctx, source, message, &delivered); err != nil {
				return err
			}
		case !errors.Is(err, nats.ErrTimeout):
			return fmt.Errorf("read the stream: %w", err)
		}
		if time.Since(looked) >= lookEvery {
			if err := s.look(ctx, source, consumer, delivered); err != nil {
				return err
			}
			looked = time.Now()
		}
	}
}

// take handles a message. delivered counts those of this consumer: one that is
// missing was lost on the way to us.
func (s *subscription) take(ctx context.Context, source jetstream.Stream, message jetstream.Msg, delivered *uint64) error {
	meta, err := message.Metadata()
	if err != nil {
		return fmt.Errorf("read a message: %w", err)
	}
	if *delivered++; meta.Sequence.Consumer != *delivered {
		return errors.New("messages were lost on their way")
	}
	e, err := eventOf(meta.Sequence.Stream, message.Headers(), message.Data())
	switch {
	case err != nil:
		return final(err)
	case s.at.Position > 0 && (e.Ledger != s.at.Ledger || e.Epoch > s.at.Epoch || e.Epoch < s.at.Epoch && e.Position > s.at.Position):
		if err := s.compare(ctx, source, e.Cursor); err != nil {
			return err
		}
	}
	switch {
	case e.Position < s.next():
		return nil // the stream is made again, or it was read from the log meanwhile
	case e.Position > s.next() && s.o.Filter.all():
		s.missing = e.Position - 1 // the stream has lost some in the middle
		return fmt.Errorf("the stream goes on at %d", e.Position)
	}
	return s.handled(ctx, e)
}

// handled has an event handled, if it passes the filter, and moves on.
func (s *subscription) handled(ctx context.Context, e Event) error {
	if s.o.Filter.passes(&e) {
		if err := s.handle(ctx, e); err != nil {
			return final(fmt.Errorf("position %d: %w", e.Position, err))
		}
	}
	s.at = e.Cursor
	if s.o.SaveEvery > 0 && time.Since(s.savedAt) < s.o.SaveEvery {
		return nil
	}
	return s.save(ctx)
}

// save stores the position, unless it is.
func (s *subscription) save(ctx context.Context) error {
	if s.o.Store == nil || s.at == s.saved {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, natsTimeout) // the store may be NATS
	defer cancel()
	if err := s.o.Store.Save(ctx, s.o.Name, s.at); err != nil {
		if errors.Is(err, ErrTwoSubscribers) {
			return final(err)
		}
		return err
	}
	s.saved, s.savedAt = s.at, time.Now()
	return nil
}

// look notices, now and then, what no message tells: a stream that ends before our
// position in another history; events that were dropped before they reached us; and
// how far a filter has left everything out.
func (s *subscription) look(ctx context.Context, source jetstream.Stream, consumer jetstream.Consumer, delivered uint64) error {
	info, err := within(ctx, func(ctx context.Context) (*jetstream.StreamInfo, error) { return source.Info(ctx) })
	if err != nil {
		return fmt.Errorf("look at the stream: %w", err)
	}
	state := info.State
	if s.at.Position > Position(state.LastSeq) {
		return s.recognise(ctx, source, state)
	}
	if !s.o.Filter.all() && s.next() <= Position(state.LastSeq) {
		mine, err := within(ctx, consumer.Info)
		if err != nil {
			return fmt.Errorf("look at the consumer: %w", err)
		}
		if mine.NumPending == 0 && mine.Delivered.Consumer == delivered && state.FirstSeq <= uint64(s.next()) {
			// Whatever passed the filter up to the end of the stream, as it was before we asked
			// the consumer, has been handled.
			if err := s.passTo(ctx, source, state.LastSeq); err != nil {
				return err
			}
		}
	}
	if state.FirstSeq > uint64(s.next()) {
		return fmt.Errorf("the stream begins at %d now", state.FirstSeq)
	}
	return s.save(ctx)
}

// passTo moves over events that were left out.
func (s *subscription) passTo(ctx context.Context, source jetstream.Stream, sequence uint64) error {
	found, err := message(ctx, source, sequence)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil // another time
	}
	if err != nil {
		return fmt.Errorf("read the stream: %w", err)
	}
	e, err := eventOf(sequence, found.Header, found.Data)
	if err != nil {
		return final(err)
	}
	if s.at.Position > 0 && (e.Ledger != s.at.Ledger || e.Epoch != s.at.Epoch) {
		if err := s.compare(ctx, source, e.Cursor); err != nil {
			return err
		}
	}
	s.at = e.Cursor
	return nil
}

// recognise makes sure that the stream continues what was handled. What its newest
// message says of ledger and epoch is all that is known of it so far.
func (s *subscription) recognise(ctx context.Context, source jetstream.Stream, state jetstream.StreamState) error {
	if s.at.Position == 0 {
		return nil // nothing was handled, so nothing contradicts it
	}
	newest := s.at
	if state.Msgs > 0 {
		found, err := message(ctx, source, state.LastSeq)
		if err != nil {
			return fmt.Errorf("read the end of the stream: %w", err)
		}
		e, err := eventOf(state.LastSeq, found.Header, nil)
		if err != nil {
			return final(err)
		}
		newest = e.Cursor
	}
	return s.compare(ctx, source, newest)
}

// compare holds the event at our own position against what is there now. other is
// an event of the same stream.
func (s *subscription) compare(ctx context.Context, source jetstream.Stream, other Cursor) error {
	if other.Ledger != s.at.Ledger {
		return final(fmt.Errorf("keyledger: %w: this is another ledger", ErrAnotherHistory))
	}
	if other.Epoch > s.at.Epoch && other.Position <= s.at.Position {
		// The epoch began at our position or before it, so our event is of the one that was given up.
		return s.anotherHistory()
	}
	found, err := message(ctx, source, uint64(s.at.Position))
	switch {
	case err == nil:
		if found.Header.Get("ce-ledger") != s.at.Ledger || found.Header.Get("ce-id") != s.at.ID {
			return s.anotherHistory()
		}
		return nil
	case !errors.Is(err, jetstream.ErrMsgNotFound):
		return fmt.Errorf("read the stream at %d: %w", s.at.Position, err)
	}
	// It has aged out, or has not come back yet. The log knows.
	if s.o.Client != nil {
		there, err := s.logged(ctx, s.at.Position)
		if err != nil {
			return err
		}
		if there.Ledger != s.at.Ledger || there.ID != s.at.ID {
			return s.anotherHistory()
		}
		return nil
	}
	if other.Epoch != s.at.Epoch {
		return s.anotherHistory() // the proof is gone
	}
	return nil
}

func (s *subscription) anotherHistory() error {
	return final(fmt.Errorf("keyledger: %w: position %d is not the event that was handled", ErrAnotherHistory, s.at.Position))
}

// fill reads from the log what the stream does not have any more.
func (s *subscription) fill(ctx context.Context, source jetstream.Stream) error {
	info, err := within(ctx, func(ctx context.Context) (*jetstream.StreamInfo, error) { return source.Info(ctx) })
	if err != nil {
		return fmt.Errorf("look at the stream: %w", err)
	}
	if info.State.NumDeleted > 0 {
		if info, err = within(ctx, func(ctx context.Context) (*jetstream.StreamInfo, error) {
			return source.Info(ctx, jetstream.WithDeletedDetails(true))
		}); err != nil {
			return fmt.Errorf("look at the stream: %w", err)
		}
		if n := len(info.State.Deleted); n > 0 {
			s.missing = max(s.missing, Position(slices.Max(info.State.Deleted)))
		}
	}
	if first := info.State.FirstSeq; first > 0 {
		s.missing = max(s.missing, Position(first-1))
	}
	if s.next() > s.missing {
		return nil
	}
	if s.o.Client == nil {
		return final(fmt.Errorf("%w (the stream has %d to %d, and the next event is %d)", ErrGap, info.State.FirstSeq, info.State.LastSeq, s.next()))
	}
	s.logger.Info("reading from the log what the stream no longer has", "name", s.o.Name, "from", uint64(s.next()), "to", uint64(s.missing))
	filter := s.o.Filter
	filter.Organization = "" // one key reads everything, and we leave out what is not wanted
	for s.next() <= s.missing {
		page, err := s.o.Client.Events(ctx, EventOptions{After: s.next() - 1, Limit: backfillPage, Filter: filter})
		if err != nil {
			return s.unreadable(err)
		}
		through := min(page.Next, s.missing)
		if through < s.next() {
			return fmt.Errorf("the log ends at %d, and the stream has had %d", page.Head, s.missing)
		}
		for _, e := range page.Events {
			if e.Position > through {
				break
			}
			if s.at.Position > 0 && e.Ledger != s.at.Ledger {
				return s.anotherHistory()
			}
			if err := s.handled(ctx, e); err != nil {
				return err
			}
		}
		if s.at.Position < through { // a filter left the rest out
			if s.at, err = s.logged(ctx, through); err != nil {
				return err
			}
		}
	}
	return s.save(ctx)
}

// logged gives the event of a position as the log has it.
func (s *subscription) logged(ctx context.Context, position Position) (Cursor, error) {
	page, err := s.o.Client.Events(ctx, EventOptions{After: position - 1, Limit: 1, Filter: Filter{Lane: s.o.Filter.Lane}})
	if err != nil {
		return Cursor{}, s.unreadable(err)
	}
	if len(page.Events) == 0 || page.Events[0].Position != position {
		if page.Head < position {
			return Cursor{}, s.anotherHistory() // the log ends before what was handled
		}
		return Cursor{}, fmt.Errorf("the log did not show position %d", position)
	}
	return page.Events[0].Cursor, nil
}

// unreadable tells apart what another attempt may mend.
func (s *subscription) unreadable(err error) error {
	err = fmt.Errorf("read the log: %w", err)
	switch {
	case errors.Is(err, ErrStale): // it ends before our position
		return final(errors.Join(ErrAnotherHistory, err))
	case errors.Is(err, ErrForbidden), errors.Is(err, ErrUnauthenticated), errors.Is(err, ErrInvalid), errors.Is(err, ErrNotFound):
		return final(err)
	}
	return err
}
