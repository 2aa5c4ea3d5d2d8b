package eventstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"keyledger/domain"
)

const (
	mostQueued        = 8192    // commands that may wait; beyond it callers wait outside
	mostBatchCommands = 1024    // commands in one batch
	mostBatchBytes    = 4 << 20 // bytes of events in one batch
	appendTimeout     = 10 * time.Second
	// appendPatience is how long an outage may last before callers are told of it.
	// A database that restarts is back sooner.
	appendPatience     = 2 * time.Second
	firstAppendBackoff = 10 * time.Millisecond
	mostAppendBackoff  = 250 * time.Millisecond
)

// append is one decided command on its way into the log.
type appendRequest struct {
	ctx         context.Context
	id          domain.CommandID // null in the database unless chosen
	chosen      bool
	fingerprint []byte
	stream      Stream
	expected    uint64
	guard       Stream // empty for none
	guarded     uint64
	events      []Event // with everything but lane, epoch, position and time
	answer      chan appendAnswer
}

// reply answers the caller. The first answer counts: a command that was given up in an
// outage may be met once more when the appender ends, and must not hold it up.
func (r *appendRequest) reply(answer appendAnswer) {
	select {
	case r.answer <- answer:
	default:
	}
}

type appendAnswer struct {
	outcome outcome
	receipt domain.Receipt
	known   *knownCommand // for outcomeKnown
	head    domain.Position
	err     error
}

// outcome is what append_events says of one command.
type outcome int16

const (
	outcomeAppended outcome = iota
	outcomeKnown
	outcomeReused
	outcomeConflict
	outcomeGuardMoved
	outcomeErased
)

// knownCommand is the row of an earlier command with the same chosen id.
type knownCommand struct {
	Stream     Stream          `json:"stream"`
	Version    uint64          `json:"version"`
	Position   domain.Position `json:"position"`
	Changed    bool            `json:"changed"`
	RecordedAt time.Time       `json:"recorded_at"`
}

// appender writes one lane, one batch at a time, over one connection.
type appender struct {
	lane    domain.Lane
	store   *Store
	logger  *slog.Logger
	queue   chan *appendRequest
	stopped chan struct{}    // closed when run has returned: nobody answers any more
	waiting []*appendRequest // put off by the last batch

	keeps bool          // a connection between batches
	conn  *pgxpool.Conn // that one, or nil
	used  time.Time     // when it was last

	awaySince  time.Time     // when the database was last heard of, if it does not answer; else zero
	lastCommit time.Duration // how long the last batch took
	expected   int           // how many commands the next one may hope for
}

func newAppender(lane domain.Lane, store *Store) *appender {
	return &appender{
		lane: lane, store: store, logger: store.options.Logger.With("lane", string(lane)),
		queue: make(chan *appendRequest, mostQueued), stopped: make(chan struct{}),
		keeps: store.pool.Config().MaxConns >= leastForOwn,
	}
}

// append queues a command and waits for its answer. When ctx ends first, the
// outcome is not known: the caller says so and never guesses.
func (a *appender) append(ctx context.Context, r *appendRequest) (appendAnswer, error) {
	r.ctx, r.answer = ctx, make(chan appendAnswer, 1)
	select {
	case a.queue <- r:
	case <-ctx.Done():
		return appendAnswer{}, Wrap(ctx.Err(), "append to %s", r.stream)
	case <-a.stopped:
		return appendAnswer{}, domain.Unavailable(errors.New("the log is shutting down"))
	}
	select {
	case answer := <-r.answer:
		return answer, answer.err
	case <-ctx.Done():
		return appendAnswer{}, Wrap(ctx.Err(), "append to %s: the outcome is not known", r.stream)
	case <-a.stopped:
		select {
		case answer := <-r.answer:
			return answer, answer.err
		default:
			return appendAnswer{}, domain.Unavailable(errors.New("the log is shutting down"))
		}
	}
}

// run is group commit without a timer: while one batch commits, the next one
// queues up. When ctx ends it writes what is queued and returns.
func (a *appender) run(ctx context.Context) error {
	defer close(a.stopped)
	defer a.giveBack()
	for {
		if len(a.waiting) == 0 {
			select {
			case r := <-a.queue:
				a.waiting = append(a.waiting, r)
			case <-ctx.Done():
				if len(a.queue) == 0 {
					return nil
				}
			}
		}
		batch := a.collect()
		if len(batch) == 0 {
			continue
		}
		if err := a.commit(ctx, batch); err != nil {
			for _, r := range append(batch, a.waiting...) {
				r.reply(appendAnswer{err: domain.Unavailable(err)})
			}
			return err
		}
	}
}

// collect takes what waits, in order, but for commands that must see the outcome
// of another one in the same batch: those on a stream that the batch writes, with an
// id that it has, or guarded by a stream that it writes. They stay for the next.
// Callers that have given up are left out.
func (a *appender) collect() []*appendRequest {
	var batch, later []*appendRequest
	var bytes int
	written := map[Stream]bool{}
	guards := map[Stream]bool{}
	ids := map[domain.CommandID]bool{}
	consider := func(r *appendRequest) {
		switch {
		case r.ctx.Err() != nil:
			r.reply(appendAnswer{err: Wrap(r.ctx.Err(), "append to %s", r.stream)})
			return
		case len(batch) == mostBatchCommands, bytes >= mostBatchBytes,
			written[r.stream], guards[r.stream], r.guard != "" && written[r.guard], r.chosen && ids[r.id]:
			later = append(later, r)
		default:
			batch = append(batch, r)
			for i := range r.events {
				bytes += len(r.events[i].Data) + len(r.events[i].Metadata) + len(r.events[i].Sealed)
			}
			ids[r.id] = r.chosen
		}
		// Also a command that was put off takes its place in the order: nothing behind it on the
		// same stream may overtake it.
		written[r.stream] = true
		if r.guard != "" {
			guards[r.guard] = true
		}
	}
	for _, r := range a.waiting {
		consider(r)
	}
	started := time.Now()
	for len(batch) < mostBatchCommands && bytes < mostBatchBytes && len(later) < mostBatchCommands {
		select {
		case r := <-a.queue:
			consider(r)
			continue
		default:
		}
		// Whoever was just answered is likely to come back at once. Leaving without them
		// would make two half batches of each, with a commit for either; so they are given way, for
		// at most a quarter of what a commit takes.
		if len(batch) >= a.expected || time.Since(started) > a.lastCommit/4 {
			break
		}
		runtime.Gosched()
	}
	a.waiting = later
	return batch
}

// commit writes one batch and answers everybody in it. Its error ends the appender; everything
// else is answered or tried again.
//
// The order is the order for these reasons. The batch is sent as one call that
// commits by itself, so that this process can be paused anywhere and holds no
// lock. When the answer does not come, the very same batch is sent again, with
// the same event ids: append_events recognises by id at its version what it had
// committed, and whatever a lost call might still do afterwards meets a moved
// version. So nothing is guessed and nothing is doubled. The tail learns of the
// events only after the commit, and before any caller is answered, so that a
// caller finds its own write.
func (a *appender) commit(ctx context.Context, batch []*appendRequest) error {
	// What is queued is written even while the process shuts down.
	ctx = context.WithoutCancel(ctx)
	for backoff := firstAppendBackoff; ; backoff = min(2*backoff, mostAppendBackoff) {
		started := time.Now()
		result, err := a.call(ctx, batch)
		if err == nil {
			a.awaySince = time.Time{}
			a.lastCommit = time.Since(started)
			a.expected = len(a.queue) + len(a.waiting) + len(batch)
			a.store.metrics.appended(a.lane, len(batch), time.Since(started))
			appended := a.answers(batch, result)
			if len(appended) > 0 {
				a.store.tails[a.lane].appended(appended)
				for i := range appended {
					if erased, ok := appended[i].Event.(domain.OrganizationErased); ok {
						a.store.forget(erased.Organization)
					}
				}
				if a.store.onCommit != nil {
					a.store.onCommit(a.lane, appended[len(appended)-1].Position, a.store.letter(appended))
				}
			}
			a.deliver(ctx, batch, result)
			return nil
		}
		if isEpochChanged(err) {
			return fmt.Errorf("%w: %w", ErrEpochChanged, err)
		}
		if !isUnavailable(err) {
			// One bad command fails alone.
			if len(batch) == 1 {
				batch[0].reply(appendAnswer{err: Wrap(err, "append to %s", batch[0].stream)})
				return nil
			}
			a.logger.Error("a batch was refused; its commands are appended one by one", "commands", len(batch), "error", err)
			for i := range batch {
				if err := a.commit(ctx, batch[i:i+1]); err != nil {
					return err
				}
			}
			return nil
		}
		a.store.metrics.appendRetries.WithLabelValues(string(a.lane)).Inc()
		a.logger.Warn("the log cannot be reached; the batch is sent again", "commands", len(batch), "error", err, "again_in", backoff)
		a.store.pool.Reset() // the pool's other connections are most likely lost as well
		if a.awaySince.IsZero() {
			a.awaySince = started
		}
		wanted := batch[:0:0]
		for _, r := range batch {
			// Nobody waits out a long outage here, nor after they have gone themselves: they
			// are told that the outcome is not known.
			if r.ctx.Err() != nil || time.Since(a.awaySince) > appendPatience {
				r.reply(appendAnswer{err: Wrap(err, "append to %s: the outcome is not known", r.stream)})
				continue
			}
			wanted = append(wanted, r)
		}
		if batch = wanted; len(batch) == 0 {
			return nil
		}
		<-time.After(backoff)
	}
}

// batchResult is what append_events returned, and the answers made of it.
type batchResult struct {
	head     domain.Position
	at       time.Time
	outcomes []int16
	known    map[int]*knownCommand // by ordinal, from 1
	answers  []appendAnswer
}

// answers gives every appended event its place and every command its answer.
func (a *appender) answers(batch []*appendRequest, result *batchResult) []Event {
	position := result.head
	var all []Event
	result.answers = make([]appendAnswer, len(batch))
	for i, r := range batch {
		answer := &result.answers[i]
		answer.outcome = outcome(result.outcomes[i])
		if answer.outcome == outcomeAppended {
			for j := range r.events {
				position++
				e := &r.events[j]
				e.Ledger, e.Epoch, e.Lane, e.Position, e.RecordedAt = a.store.ledger, a.store.epoch, a.lane, position, result.at
			}
			all = append(all, r.events...)
			answer.receipt = domain.Receipt{
				Epoch: a.store.epoch, Position: position, Version: r.expected + uint64(len(r.events)), RecordedAt: result.at, Changed: len(r.events) > 0,
			}
		}
		answer.known = result.known[i+1]
	}
	for i := range result.answers {
		result.answers[i].head = position
	}
	return all
}

// deliver answers everybody in a batch that was committed.
func (a *appender) deliver(ctx context.Context, batch []*appendRequest, result *batchResult) {
	for i, r := range batch {
		answer := result.answers[i]
		if answer.outcome == outcomeKnown {
			if err := a.recall(ctx, r, &answer); err != nil {
				answer.err = err
			}
		}
		r.reply(answer)
	}
}

// recall finds where a command that is known stands. It may be this very one,
// sent twice after a doubtful commit: then it was appended, and not replayed.
func (a *appender) recall(ctx context.Context, r *appendRequest, answer *appendAnswer) error {
	ctx, cancel := context.WithTimeout(ctx, appendTimeout)
	defer cancel()
	if len(r.events) > 0 {
		var mine []Recorded
		for e, err := range a.store.readStream(ctx, a.lane, r.stream, r.expected, len(r.events)) {
			if err != nil {
				return err
			}
			mine = append(mine, e)
		}
		if len(mine) == len(r.events) && mine[0].ID == r.events[0].ID {
			last := mine[len(mine)-1]
			answer.outcome, answer.known = outcomeAppended, nil
			answer.receipt = domain.Receipt{Epoch: last.Epoch, Position: last.Position, Version: last.Version, RecordedAt: last.RecordedAt, Changed: true}
			return nil
		}
	}
	if answer.known == nil {
		return fmt.Errorf("append to %s: the log knows the command and not where it stands", r.stream)
	}
	answer.receipt = domain.Receipt{
		Epoch: a.store.epoch, Position: answer.known.Position, Version: answer.known.Version, RecordedAt: answer.known.RecordedAt,
		Changed: answer.known.Changed, Replayed: true,
	}
	return nil
}

const appendSQL = `CALL append_batch(
	$1, $2, $3,
	$4, $5, $6, $7, $8, $9, $10, $11,
	$12, $13, $14, $15, $16, $17, $18, $19, $20)`

// call is the one round trip.
func (a *appender) call(ctx context.Context, batch []*appendRequest) (*batchResult, error) {
	ctx, cancel := context.WithTimeout(ctx, appendTimeout)
	defer cancel()
	c := newColumns(batch)
	var result batchResult
	conn, err := a.connection(ctx)
	if err != nil {
		return nil, err
	}
	row := conn.QueryRow(ctx, appendSQL,
		string(a.lane), [16]byte(a.store.ledger), a.store.epoch,
		c.ids, c.fingerprints, c.streams, c.expected, c.first, c.counts, c.guards, c.guarded,
		c.command, c.eventIDs, c.versions, c.organizations, c.types, c.schemas, c.data, c.metadata, c.sealed)
	if err := row.Scan(&result.head, &result.at, &result.outcomes, &result.known); err != nil {
		a.giveBack()
		return nil, err
	}
	if a.used = time.Now(); !a.keeps {
		a.giveBack()
	}
	result.at = result.at.UTC()
	if len(result.outcomes) != len(batch) {
		return nil, fmt.Errorf("append_events answered %d of %d commands", len(result.outcomes), len(batch))
	}
	return &result, nil
}

const (
	// leastForOwn is how many connections there must be for appenders to keep one each.
	leastForOwn = 6
	// freshFor is how long a connection that was used is taken for one that works.
	freshFor = time.Second
)

// connection gives the appender's connection. Where there are enough it keeps it: a commit that everybody waits for then waits for nobody
// who reads, nor for a connection that is made or has to learn the statement.
func (a *appender) connection(ctx context.Context) (*pgxpool.Conn, error) {
	if a.conn != nil && time.Since(a.used) > freshFor && a.conn.Ping(ctx) != nil {
		a.giveBack()
	}
	if a.conn == nil {
		conn, err := a.store.pool.Acquire(ctx)
		if err != nil {
			return nil, err
		}
		a.conn = conn
	}
	return a.conn, nil
}

// giveBack leaves the connection to the pool, which ends it unless it is sound.
func (a *appender) giveBack() {
	if a.conn != nil {
		a.conn.Release()
		a.conn = nil
	}
}

// columns is a batch as arrays, the form in which one call can carry it.
type columns struct {
	ids          []*[16]byte
	fingerprints [][]byte
	streams      []string
	expected     []int64
	first        []*[16]byte
	counts       []int32
	guards       []*string
	guarded      []int64

	command       []int32
	eventIDs      [][16]byte
	versions      []int64
	organizations []string
	types         []string
	schemas       []int16
	data          [][]byte
	metadata      [][]byte
	sealed        [][]byte
}

func newColumns(batch []*appendRequest) columns {
	n := len(batch)
	c := columns{
		fingerprints: make([][]byte, n), streams: make([]string, n), expected: make([]int64, n),
		first: make([]*[16]byte, n), counts: make([]int32, n), guards: make([]*string, n), guarded: make([]int64, n),
		command: make([]int32, 0, n), eventIDs: make([][16]byte, 0, n), versions: make([]int64, 0, n), organizations: make([]string, 0, n),
		types: make([]string, 0, n), schemas: make([]int16, 0, n), data: make([][]byte, 0, n), metadata: make([][]byte, 0, n), sealed: make([][]byte, 0, n),
	}
	for i, r := range batch {
		if r.chosen {
			if c.ids == nil {
				c.ids = make([]*[16]byte, n)
			}
			c.ids[i] = (*[16]byte)(&r.id)
		}
		c.fingerprints[i], c.streams[i], c.expected[i], c.counts[i] = r.fingerprint, string(r.stream), int64(r.expected), int32(len(r.events))
		if len(r.events) > 0 {
			c.first[i] = (*[16]byte)(&r.events[0].ID)
		}
		if r.guard != "" {
			c.guards[i], c.guarded[i] = (*string)(&r.guard), int64(r.guarded)
		}
		for j := range r.events {
			e := &r.events[j]
			c.command = append(c.command, int32(i+1))
			c.eventIDs = append(c.eventIDs, e.ID)
			c.versions = append(c.versions, int64(e.Version))
			c.organizations = append(c.organizations, string(e.Organization))
			c.types = append(c.types, e.Type)
			c.schemas = append(c.schemas, int16(e.Schema))
			c.data = append(c.data, e.Data)
			c.metadata = append(c.metadata, e.Metadata)
			c.sealed = append(c.sealed, e.Sealed)
		}
	}
	return c
}
