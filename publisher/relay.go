package publisher

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"keyledger/domain"
	"keyledger/eventstore"
)

// Log is what a relay needs of the log.
type Log interface {
	Head(ctx context.Context, lane domain.Lane) (eventstore.Head, error)
	Read(ctx context.Context, lane domain.Lane, after domain.Position) iter.Seq2[eventstore.Recorded, error]
	Follow(ctx context.Context, lane domain.Lane, after domain.Position) iter.Seq2[[]eventstore.Recorded, error]
	FirstSince(ctx context.Context, lane domain.Lane, t time.Time) (domain.Position, error)
}

// Options of a relay. The zero value keeps every message for ever in one replica.
type Options struct {
	Logger     *slog.Logger          // nil: silent
	Registerer prometheus.Registerer // nil: no metrics
	Clock      func() time.Time      // nil: time.Now

	// MaxAge is how long the stream keeps a message; 0 is for ever. Older events
	// are read from the log.
	MaxAge time.Duration
	// MaxBytes bounds the stream, which then drops its oldest messages; 0 is no
	// bound. JetStream sets the space aside when the stream is made.
	MaxBytes int64
	// Replicas of the stream, 1 to 5. 0 makes one, and leaves the number alone
	// where the stream exists.
	Replicas int

	// Window is how many messages may be on their way without an acknowledgement;
	// 0 is 512.
	Window int
	// LookEvery is how often a healthy relay looks at its stream as a whole, and so
	// how long a stream stays away that was deleted while nothing happened; 0 is 15 s.
	LookEvery time.Duration
	// StandBack is how long a relay leaves the stream to another one that was
	// faster before it looks whether that one is still at work; 0 is 100 ms.
	StandBack time.Duration
	// RetryMost bounds the wait between attempts while NATS or the log is away,
	// and is how often a stopped relay looks whether the stream was rebuilt; 0 is 5 s.
	RetryMost time.Duration
}

const (
	// While a replicated stream elects a leader nobody answers. Short waits find the
	// new one early; a wait that was too short costs another look and no more.
	answerWithin      = 2 * time.Second  // a question about the stream
	acknowledgeWithin = 3 * time.Second  // a message; then it is taken for lost
	changeWithin      = 15 * time.Second // making, changing or deleting the stream
	// deletedWithin is how long a stream must be gone before it is made again.
	deletedWithin = time.Second
	firstRetry    = 50 * time.Millisecond
)

// Relay keeps one lane's stream equal to the log.
type Relay struct {
	js      jetstream.JetStream
	log     Log
	lane    domain.Lane
	stream  string
	options Options
	began   time.Time
	poked   chan struct{} // an alarm may be over: look now
	metrics metrics

	// Run's only:
	seen       bool // this process has seen the stream
	configured bool // and has brought it to its configuration

	mu        sync.Mutex
	state     state
	moved     chan struct{}           // closed when the stream's known end changes
	interrupt context.CancelFunc      // ends the wait for news from the log
	giveUp    context.CancelCauseFunc // ends the current attempt
}

// New makes a relay. It asks js for its connection and its API prefix only, and
// publishes through a JetStream context of its own.
func New(js jetstream.JetStream, log Log, lane domain.Lane, options Options) (*Relay, error) {
	if options.Logger == nil {
		options.Logger = slog.New(slog.DiscardHandler)
	}
	if options.Clock == nil {
		options.Clock = time.Now
	}
	if options.Window <= 0 {
		options.Window = 512
	}
	if options.LookEvery <= 0 {
		options.LookEvery = 15 * time.Second
	}
	if options.StandBack <= 0 {
		options.StandBack = 100 * time.Millisecond
	}
	if options.RetryMost <= 0 {
		options.RetryMost = 5 * time.Second
	}
	own, err := ownContext(js, options.Window)
	if err != nil {
		return nil, fmt.Errorf("relay of lane %s: %w", lane, err)
	}
	r := &Relay{
		js: own, log: log, lane: lane, stream: StreamName(lane), options: options, began: options.Clock(),
		poked: make(chan struct{}, 1), moved: make(chan struct{}),
	}
	r.state = state{kind: Starting, since: r.began}
	if err := r.register(options.Registerer); err != nil {
		return nil, fmt.Errorf("relay of lane %s: %w", lane, err)
	}
	return r, nil
}

// ownContext shares js's connection, and neither its window nor its pending
// messages. Every publication ends within acknowledgeWithin, answered or not.
func ownContext(js jetstream.JetStream, window int) (jetstream.JetStream, error) {
	opts := []jetstream.JetStreamOpt{
		jetstream.WithDefaultTimeout(answerWithin),
		jetstream.WithPublishAsyncTimeout(acknowledgeWithin),
		jetstream.WithPublishAsyncMaxPending(2 * window),
	}
	switch o := js.Options(); {
	case o.Domain != "":
		return jetstream.NewWithDomain(js.Conn(), o.Domain, opts...)
	case o.APIPrefix != "":
		return jetstream.NewWithAPIPrefix(js.Conn(), o.APIPrefix, opts...)
	}
	return jetstream.New(js.Conn(), opts...)
}

// Run relays until ctx ends. It never gives up: while NATS or the log is away it
// tries again with growing waits, and while the stream contradicts the log it
// publishes nothing and looks whether the stream was rebuilt. Only another epoch
// ends it early, with [eventstore.ErrEpochChanged]: what this process knows of
// the log is then of the past.
func (r *Relay) Run(ctx context.Context) error {
	watched := make(chan struct{})
	changes := r.js.Conn().StatusChanged(nats.RECONNECTING, nats.CONNECTED)
	go func() {
		defer close(watched)
		for status := range changes {
			r.connectionChanged(status)
		}
	}()
	defer func() {
		r.js.Conn().RemoveStatusListener(changes)
		<-watched
		r.js.CleanupPublisher()
	}()
	for failures := 0; ; failures++ {
		before := r.progress()
		attempt, giveUp := context.WithCancelCause(ctx)
		r.mu.Lock()
		r.giveUp = giveUp
		r.mu.Unlock()
		err := r.relay(attempt)
		if attempt.Err() != nil {
			err = context.Cause(attempt)
		}
		giveUp(nil)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, eventstore.ErrEpochChanged):
			return fmt.Errorf("relay to stream %s: %w", r.stream, err)
		}
		if r.progress() != before {
			failures = 0
		}
		wait := min(firstRetry<<min(failures, 10), r.options.RetryMost)
		var contradiction alarm
		if errors.As(err, &contradiction) {
			r.raise(contradiction)
			wait = r.options.RetryMost
		} else {
			r.outage(err)
		}
		r.measure(ctx)
		if !r.wait(ctx, wait) {
			return nil
		}
	}
}

// connectionChanged spares the relay two long waits. What was asked of a server
// that is gone is never answered; and a server that returns may bring another
// stream than it had, or none.
func (r *Relay) connectionChanged(status nats.Status) {
	if status == nats.CONNECTED {
		r.poke()
		return
	}
	r.mu.Lock()
	giveUp := r.giveUp
	r.mu.Unlock()
	if giveUp != nil {
		giveUp(nats.ErrDisconnected)
	}
}

// relay brings the stream to the log's head and keeps it there. It returns when
// something stands in its way; called again, it starts from what the stream
// says, never from what an earlier call remembers.
//
// Every message is published with the sequence that the stream must end in: its
// own position minus one. The server accepts it there or nowhere. So whatever
// this relay believes, and however old its belief is after a pause, it can only
// do the right thing or nothing. All order and uniqueness rest on that one
// header; the rest is about not wasting work, and about noticing a stream that
// is not this log's.
func (r *Relay) relay(ctx context.Context) error {
	var (
		at        domain.Position // where the stream ended when we last knew
		contested bool            // another relay put a message where we wanted to
		window    []inFlight      // published and not yet acknowledged, oldest first
	)
	for {
		// First the stream, then the log. Events are in the log before anybody can
		// publish them, so a head that is read later is never behind a sound stream.
		// In the other order, what a second relay publishes in between would look like
		// a stream that runs ahead.
		stream, err := r.ensure(ctx)
		if err != nil {
			return err
		}
		info := stream.CachedInfo()
		last := domain.Position(info.State.LastSeq)
		head, err := r.log.Head(ctx, r.lane)
		if err != nil {
			return fmt.Errorf("read the head of the log: %w", err)
		}
		// The stream must be a part of this log: publishing to any other would only
		// bury the contradiction.
		if ledger := info.Config.Metadata[ledgerMetadata]; ledger != "" && ledger != head.Ledger.UUID() {
			return alarmf("foreign", "it belongs to ledger %s and this is ledger %s", ledger, head.Ledger.UUID())
		}
		if last > head.Position {
			r.looked(info.State, head, nil)
			return alarmf("ahead", "it runs ahead: it ends at %d and the log at %d", last, head.Position)
		}

		// When another relay was faster, it most likely follows the log as we do:
		// racing it for every message would double the work and gain nothing. It is
		// left alone while the stream moves. When it stands still, either nothing is
		// left to do or the other one has stopped, and we go on. No lock and no lease:
		// if two go on at once, they waste a window of messages between them.
		if contested && last > at {
			at = last
			r.looked(info.State, head, nil)
			if err := r.standBack(ctx); err != nil {
				return err
			}
			continue
		}

		// It is enough to compare the last message with the log's event: whoever
		// published it had compared the one before, and so on down.
		newest, next, err := r.around(ctx, last, head, info.State.Msgs > 0)
		if err != nil {
			return err
		}
		r.looked(info.State, head, next)
		if newest != nil {
			difference, err := r.compare(ctx, stream, *newest)
			if err != nil {
				return err
			}
			if difference != "" {
				return alarmf("differs", "its last message, %d, is not the log's event: %s", last, difference)
			}
		}
		r.configure(ctx, stream, head.Ledger)
		if last == head.Position {
			r.recovered()
		}
		contested, at = false, last
		r.enter(Relaying)

		// Publish what follows. Within a batch many messages are on their way at once;
		// before the log is asked for more, all of them are acknowledged, so that no
		// refusal waits unheard behind a log in which nothing happens.
		var failure error
		following, stop := r.interruptible(ctx)
	publishing:
		for batch, err := range r.log.Follow(following, r.lane, last) {
			if err != nil {
				if following.Err() == nil {
					failure = fmt.Errorf("follow the log: %w", err)
				}
				break
			}
			r.arrived(batch)
			for i := range batch {
				event := &batch[i]
				if event.Position != last+1 {
					failure = alarmf("gap", "it ends at %d and the log goes on at %d", last, event.Position)
					break publishing
				}
				message, err := Message(*event)
				if err != nil {
					failure = alarmf("unpublishable", "%w", err)
					break publishing
				}
				message.Header[jetstream.ExpectedStreamHeader] = []string{r.stream}
				message.Header[jetstream.ExpectedLastSeqHeader] = []string{decimal(uint64(last))}
				if failure = r.settle(ctx, &window, r.options.Window-1, &at); failure != nil {
					break publishing
				}
				// No second attempt by the client: it would come after the messages that
				// follow this one.
				future, err := r.js.PublishMsgAsync(message, jetstream.WithRetryAttempts(0))
				if err != nil {
					failure = publishError(*event, err)
					break publishing
				}
				last = event.Position
				window = append(window, inFlight{event: event, future: future})
			}
			if failure = r.settle(ctx, &window, 0, &at); failure != nil {
				break
			}
		}
		expired := following.Err() != nil
		stop()

		// Whatever went wrong, hear what became of everything that is on its way
		// before looking again: a look in the middle of it would be out of date at
		// once.
		for len(window) > 0 && ctx.Err() == nil {
			_ = r.settle(ctx, &window, 0, &at)
		}
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case isRefusal(failure):
			// The stream does not end where we thought: another relay published, or the
			// server lost its newest messages. The next look tells.
			contested = true
			r.metrics.resyncs.Inc()
			if err := r.standBack(ctx); err != nil {
				return err
			}
		case failure != nil:
			r.metrics.resyncs.Inc()
			return failure
		case !expired:
			return errors.New("follow the log: it ended by itself")
		}
	}
}

// inFlight is a message without an acknowledgement.
type inFlight struct {
	event  *eventstore.Recorded
	future jetstream.PubAckFuture
}

// settle waits for the oldest messages of the window until at most keep of them
// are left, and moves at to the last acknowledged one. It stops at the first
// that failed, which it takes out.
func (r *Relay) settle(ctx context.Context, window *[]inFlight, keep int, at *domain.Position) error {
	for len(*window) > keep {
		oldest := (*window)[0]
		*window = (*window)[1:]
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-oldest.future.Err():
			return publishError(*oldest.event, err)
		case ack := <-oldest.future.Ok():
			if ack.Sequence != uint64(oldest.event.Position) || ack.Stream != r.stream {
				return alarmf("miscounted", "event %d was stored as message %d of %s", oldest.event.Position, ack.Sequence, ack.Stream)
			}
			*at = oldest.event.Position
			r.acknowledged(*at, *window)
		}
	}
	return nil
}

// around reads the events on both sides of the stream's end; nil for one that is
// not there. The one before is only asked for when there is a message to compare
// it with: what the stream has dropped, the log may have detached.
func (r *Relay) around(ctx context.Context, last domain.Position, head eventstore.Head, both bool) (newest, next *eventstore.Recorded, err error) {
	after := last
	if both {
		after--
	}
	if after >= head.Position {
		return nil, nil, nil
	}
	for event, err := range r.log.Read(ctx, r.lane, after) {
		if err != nil {
			return nil, nil, fmt.Errorf("read the log at %d: %w", last, err)
		}
		if event.Position == last {
			newest = &event
			continue
		}
		if event.Position == last+1 {
			next = &event
		}
		break
	}
	return newest, next, nil
}

// standBack leaves the stream to another relay for a moment.
func (r *Relay) standBack(ctx context.Context) error {
	r.enter(StandingBack)
	if !r.wait(ctx, r.options.StandBack) {
		return ctx.Err()
	}
	return nil
}

// wait lets about d pass, and less when there is news. It returns false when ctx
// has ended.
func (r *Relay) wait(ctx context.Context, d time.Duration) bool {
	// Relays that met an obstacle together should not meet the next one together.
	timer := time.NewTimer(d/2 + rand.N(d))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-r.poked:
	case <-timer.C:
	}
	return ctx.Err() == nil
}

// interruptible ends when it is time to look at the whole stream again.
func (r *Relay) interruptible(ctx context.Context) (context.Context, context.CancelFunc) {
	following, stop := context.WithTimeout(ctx, r.options.LookEvery)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.interrupt = stop
	return following, stop
}

// poke makes the relay look at its stream now.
func (r *Relay) poke() {
	r.mu.Lock()
	interrupt := r.interrupt
	r.mu.Unlock()
	if interrupt != nil {
		interrupt()
	}
	select {
	case r.poked <- struct{}{}:
	default:
	}
}

// publishError says what a failed publication means.
func publishError(event eventstore.Recorded, err error) error {
	if errors.Is(err, nats.ErrMaxPayload) || isCode(err, jetstream.JSErrCodeStreamMessageExceedsMaximum) {
		return alarmf("too large", "event %d has %d bytes, more than the server accepts: raise its max_payload", event.Position, len(event.Data))
	}
	return fmt.Errorf("publish event %d: %w", event.Position, err)
}

// isRefusal says whether the stream did not end where the message expected. The
// server checks this at different moments for one replica and for several, and
// has a code for each.
func isRefusal(err error) bool {
	return isCode(err, jetstream.JSErrCodeStreamWrongLastSequence) || isCode(err, jetstream.JSErrCodeStreamWrongLastSequenceConstant)
}

func isCode(err error, code jetstream.ErrorCode) bool {
	var api *jetstream.APIError
	return errors.As(err, &api) && api.ErrorCode == code
}
