package eventstore

import (
	"context"
	"crypto/rand"
	"fmt"
	"sync"

	"keyledger/domain"
)

// mostAttempts bounds how often one command is decided anew because its stream
// moved. Streams are single keys and organizations: more than a few is a fault.
const mostAttempts = 32

// ChangeKey decides a command on a key and appends what follows from it.
//
// A replayed command (Receipt.Replayed) gives the key as the first answer showed it. Errors
// are those of domain.DecideKey, domain.ErrGuardMoved when the authority of the
// command has changed meanwhile, CodeIdempotencyReused, and CodeUnavailable
// when the ledger cannot be asked: the outcome is then not known.
func (s *Store) ChangeKey(ctx context.Context, request domain.Request, id domain.KeyID, command domain.KeyCommand) (domain.Key, domain.Receipt, error) {
	_, fresh := command.(domain.CreateKey)
	return execute(ctx, s, request, KeyStream(id), fresh, decider[domain.Key]{
		decide: func(key domain.Key) ([]domain.Event, error) { return domain.DecideKey(key, command) },
		fold:   func() evolve[domain.Key] { return domain.EvolveKey },
	})
}

// ChangeOrganization decides a command on an organization and appends what follows from it.
func (s *Store) ChangeOrganization(ctx context.Context, request domain.Request, id domain.OrganizationID, command domain.OrganizationCommand) (domain.Organization, domain.Receipt, error) {
	return execute(ctx, s, request, OrganizationStream(id), false, decider[domain.Organization]{
		known: func() (domain.Organization, uint64) { return s.members.get(id) },
		decide: func(o domain.Organization) ([]domain.Event, error) {
			return domain.DecideOrganization(o, command)
		},
		fold: organizationFold,
		keep: func(o domain.Organization, version uint64) { s.members.put(id, o, version) },
	})
}

// Key folds a key's stream as it stands now. The zero Key says that there is none.
func (s *Store) Key(ctx context.Context, id domain.KeyID) (domain.Key, uint64, error) {
	return load(ctx, s, KeyStream(id), domain.Key{}, 0, 0, domain.EvolveKey)
}

// Organization folds an organization's stream as it stands now, from where it was
// last folded.
func (s *Store) Organization(ctx context.Context, id domain.OrganizationID) (domain.Organization, uint64, error) {
	state, version := s.members.get(id)
	state, version, err := load(ctx, s, OrganizationStream(id), state, version, 0, domain.OrganizationFold())
	if err != nil {
		return domain.Organization{}, 0, err
	}
	s.members.put(id, state, version)
	return state, version, nil
}

// UsageFlush is what one run of a node accounted in one window.
type UsageFlush struct {
	Boot     domain.ID
	Flush    uint64
	Expected uint64 // version of the stream usage/<boot> before this flush
	Events   []domain.KeyUsed
}

// AppendUsage appends a flush. The same flush may be sent again: it counts once.
func (s *Store) AppendUsage(ctx context.Context, flush UsageFlush) (domain.Receipt, error) {
	stream := UsageStream(flush.Boot)
	events := make([]domain.Event, len(flush.Events))
	for i, e := range flush.Events {
		events[i] = e
	}
	request := domain.Request{Metadata: domain.Metadata{Actor: domain.Actor{Kind: domain.ActorService}}}
	prepared, err := s.prepare(ctx, request, stream, flush.Expected, events)
	if err != nil {
		return domain.Receipt{}, err
	}
	answer, err := s.appenders[domain.Usage].append(ctx, &appendRequest{stream: stream, expected: flush.Expected, events: prepared})
	if err != nil {
		return domain.Receipt{}, err
	}
	if answer.outcome == outcomeAppended {
		return answer.receipt, nil
	}
	// The stream has one writer: that it has moved on means that this flush was
	// appended by an earlier call whose answer was lost.
	_, version, err := s.streamEnd(ctx, domain.Usage, stream)
	if err != nil {
		return domain.Receipt{}, err
	}
	if version != flush.Expected+uint64(len(events)) {
		return domain.Receipt{}, fmt.Errorf("append flush %d of %s: its stream is at version %d, not %d", flush.Flush, stream, version, flush.Expected)
	}
	return domain.Receipt{Epoch: s.epoch, Version: version, Changed: true, Replayed: true}, nil
}

// decider is how a command on a state S is decided and what events make of it.
type decider[S any] struct {
	decide func(S) ([]domain.Event, error)
	fold   func() evolve[S]   // for one run of events
	known  func() (S, uint64) // where a fold may begin, and at which version; nil: at nothing
	keep   func(S, uint64)    // takes what the stream has come to; nil: nobody does
}

// evolve folds one event.
type evolve[S any] = func(S, domain.Event) (S, error)

func organizationFold() evolve[domain.Organization] { return domain.OrganizationFold() }

// execute is the write side's one loop: load, decide, append, and again when the
// stream has moved meanwhile.
//
// fresh says that the stream is most likely new, so that nothing is loaded
// before the first attempt.
func execute[S any](ctx context.Context, s *Store, request domain.Request, stream Stream, fresh bool, d decider[S]) (S, domain.Receipt, error) {
	var zero S
	for attempt := range mostAttempts {
		var state S
		var version uint64
		var err error
		if !fresh || attempt > 0 {
			if d.known != nil {
				state, version = d.known()
			}
			if state, version, err = load(ctx, s, stream, state, version, 0, d.fold()); err != nil {
				return zero, domain.Receipt{}, err
			}
			if d.keep != nil {
				d.keep(state, version)
			}
		}
		events, refusal := d.decide(state)
		if refusal != nil || len(events) == 0 {
			// What is so already, or not possible any more, may be so because of this
			// very command. A chosen id is asked about before anything else is said.
			if request.Replayable {
				replayed, receipt, err := replay(ctx, s, request, d.fold())
				if err != nil || receipt.Replayed {
					return replayed, receipt, err
				}
			}
			if refusal != nil {
				return zero, domain.Receipt{}, refusal
			}
			if !request.Replayable && request.Guard.IsZero() {
				head, err := s.Head(ctx, domain.Lifecycle)
				return state, domain.Receipt{Epoch: s.epoch, Position: head.Position, Version: version}, err
			}
		}
		prepared, err := s.prepare(ctx, request, stream, version, events)
		if err != nil {
			return zero, domain.Receipt{}, err
		}
		guard, guarded := guardStream(request.Guard)
		answer, err := s.appenders[domain.Lifecycle].append(ctx, &appendRequest{
			id: request.ID, chosen: request.Replayable, fingerprint: request.Fingerprint[:], stream: stream, expected: version,
			guard: guard, guarded: guarded, events: prepared,
		})
		if err != nil {
			return zero, domain.Receipt{}, err
		}
		switch answer.outcome {
		case outcomeAppended:
			fold := d.fold()
			for _, e := range events {
				if state, err = fold(state, e); err != nil {
					return zero, domain.Receipt{}, err
				}
			}
			if len(events) == 0 {
				answer.receipt.Version = version
			}
			return state, answer.receipt, nil
		case outcomeKnown:
			state, _, err := load(ctx, s, answer.known.Stream, zero, 0, answer.known.Version, d.fold())
			return state, answer.receipt, err
		case outcomeReused:
			return zero, domain.Receipt{}, idempotencyReused()
		case outcomeGuardMoved:
			return zero, domain.Receipt{}, domain.GuardMoved{At: answer.head}
		case outcomeErased:
			s.forget(events[0].Subject())
			return zero, domain.Receipt{}, domain.OrganizationIsErased()
		case outcomeConflict:
			s.metrics.conflicts.Inc()
		default:
			return zero, domain.Receipt{}, fmt.Errorf("append to %s: unknown outcome %d", stream, answer.outcome)
		}
	}
	return zero, domain.Receipt{}, domain.Unavailable(fmt.Errorf("append to %s: it moved %d times", stream, mostAttempts))
}

// replay gives the first answer to a command whose id a client chose. Its receipt
// is not Replayed when there was none.
func replay[S any](ctx context.Context, s *Store, request domain.Request, evolve evolve[S]) (S, domain.Receipt, error) {
	var zero S
	var known knownCommand
	var fingerprint []byte
	err := s.pool.QueryRow(ctx, `SELECT stream, version, position, changed, recorded_at, fingerprint FROM commands
		WHERE id = $1 AND recorded_at > now() - $2::interval`, [16]byte(request.ID), commandLifetime).
		Scan((*string)(&known.Stream), &known.Version, &known.Position, &known.Changed, &known.RecordedAt, &fingerprint)
	switch {
	case noRows(err):
		return zero, domain.Receipt{}, nil
	case err != nil:
		return zero, domain.Receipt{}, Wrap(err, "look up a command")
	case [32]byte(fingerprint) != request.Fingerprint:
		return zero, domain.Receipt{}, idempotencyReused()
	}
	state, _, err := load(ctx, s, known.Stream, zero, 0, known.Version, evolve)
	return state, domain.Receipt{
		Epoch: s.epoch, Position: known.Position, Version: known.Version, RecordedAt: known.RecordedAt.UTC(), Changed: known.Changed, Replayed: true,
	}, err
}

func idempotencyReused() error {
	return domain.Errorf(domain.CodeIdempotencyReused, "the idempotency key was used for another request")
}

func guardStream(g domain.Guard) (Stream, uint64) {
	switch {
	case g.IsZero():
		return "", 0
	case !g.Key.IsZero():
		return KeyStream(g.Key), g.Version
	}
	return OrganizationStream(g.Organization), g.Version
}

// load folds a stream behind a version, through another one (0: its end).
func load[S any](ctx context.Context, s *Store, stream Stream, state S, after, through uint64, evolve evolve[S]) (S, uint64, error) {
	var zero S
	version := after
	for r, err := range s.ReadStream(ctx, stream, after) {
		if err != nil {
			return zero, 0, err
		}
		if through != 0 && r.Version > through {
			break
		}
		if r.Version != version+1 {
			return zero, 0, fmt.Errorf("load %s: version %d follows %d", stream, r.Version, version)
		}
		e, err := s.Decode(ctx, r)
		if err != nil {
			return zero, 0, err
		}
		if state, err = evolve(state, e.Event); err != nil {
			return zero, 0, fmt.Errorf("load %s: %w", stream, err)
		}
		version = r.Version
	}
	return state, version, nil
}

// prepare turns decided events into what the log will hold, but for their places.
func (s *Store) prepare(ctx context.Context, request domain.Request, stream Stream, version uint64, events []domain.Event) ([]Event, error) {
	prepared := make([]Event, len(events))
	for i, event := range events {
		id, err := domain.NewID(s.options.Clock(), rand.Reader)
		if err != nil {
			return nil, err
		}
		r := Recorded{
			ID: id, Stream: stream, Version: version + uint64(i) + 1, Organization: event.Subject(), Type: event.EventName(), Schema: schema(event),
		}
		var private personal
		if r.Data, private, err = encode(event); err != nil {
			return nil, err
		}
		if r.Metadata, err = encodeMetadata(request.Metadata); err != nil {
			return nil, err
		}
		plain, err := encodeSealed(private, request.Metadata)
		if err != nil {
			return nil, err
		}
		if plain != nil {
			if r.Sealed, err = s.keyring.seal(ctx, r.Organization, r.ID, stream, plain); err != nil {
				return nil, err
			}
		}
		prepared[i] = Event{Recorded: r, Event: event, EventMetadata: request.Metadata}
	}
	return prepared, nil
}

// streamEnd gives the position and version of a stream's last event.
func (s *Store) streamEnd(ctx context.Context, lane domain.Lane, stream Stream) (position domain.Position, version uint64, err error) {
	err = s.pool.QueryRow(ctx, `SELECT position, version FROM events WHERE lane = $1 AND stream = $2 ORDER BY version DESC LIMIT 1`,
		string(lane), string(stream)).Scan(&position, &version)
	if err != nil && !noRows(err) {
		return 0, 0, Wrap(err, "read the end of %s", stream)
	}
	return position, version, nil
}

// mostCachedOrganizations bounds the folds kept in memory; beyond it the cache starts anew.
const mostCachedOrganizations = 4096

// memberCache keeps the last fold of organizations. It is never trusted without
// reading what came behind its version, so it needs no invalidation.
type memberCache struct {
	mu      sync.Mutex
	entries map[domain.OrganizationID]foldedOrganization
	erased  map[domain.OrganizationID]bool // as far as this process has met it
}

type foldedOrganization struct {
	state   domain.Organization
	version uint64
}

func newMemberCache() *memberCache {
	return &memberCache{entries: map[domain.OrganizationID]foldedOrganization{}, erased: map[domain.OrganizationID]bool{}}
}

func (c *memberCache) get(id domain.OrganizationID) (domain.Organization, uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f := c.entries[id]
	return f.state, f.version
}

func (c *memberCache) put(id domain.OrganizationID, state domain.Organization, version uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if version == 0 || c.entries[id].version >= version || c.erased[id] && !state.Erased {
		return
	}
	if len(c.entries) >= mostCachedOrganizations {
		clear(c.entries)
	}
	c.entries[id] = foldedOrganization{state, version}
}
