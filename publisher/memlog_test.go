package publisher_test

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"sync"
	"time"

	"keyledger/domain"
	"keyledger/eventstore"
)

// memLog is a log in memory that can be made to fail and to forget, as a
// restored backup does.
type memLog struct {
	lane domain.Lane

	mu     sync.Mutex
	ledger domain.ID
	epoch  uint32
	events []eventstore.Recorded
	oldest int // events before this index have been detached
	broken error
	moved  chan struct{}
}

var errLogAway = errors.New("the log is away")

func newMemLog(lane domain.Lane) *memLog {
	return &memLog{lane: lane, ledger: id("ledger", 0, 1), epoch: 1, moved: make(chan struct{})}
}

// id is a different id for every (name, epoch, position), the same at every call.
func id(name string, epoch uint32, n uint64) domain.ID {
	sum := sha256.Sum256(binary.BigEndian.AppendUint64([]byte(fmt.Sprint(name, epoch)), n))
	sum[6], sum[8] = 0x70|sum[6]&0x0f, 0x80|sum[8]&0x3f
	return domain.ID(sum[:16])
}

// event makes what a log would hold at a position.
func event(ledger domain.ID, epoch uint32, lane domain.Lane, position domain.Position, at time.Time) eventstore.Recorded {
	n := uint64(position)
	r := eventstore.Recorded{
		Ledger: ledger, Epoch: epoch, Lane: lane, Position: position, ID: id("event", epoch, n),
		Organization: "org_abc123", Schema: 1, RecordedAt: at, Metadata: []byte(`{"actor":{"kind":"console"}}`), Sealed: []byte("sealed"),
	}
	key := domain.KeyID(id("key", epoch, (n+1)/2))
	switch {
	case lane == domain.Usage:
		r.Type, r.Stream, r.Version = "KeyUsed", eventstore.UsageStream(id("boot", epoch, 1)), n
		r.Data = fmt.Appendf(nil, `{"organizationId":"org_abc123","flush":%d}`, n)
	case n%2 == 1:
		r.Type, r.Stream, r.Version = "KeyCreated", eventstore.KeyStream(key), 1
		r.Data = fmt.Appendf(nil, `{"keyId":%q,"organizationId":"org_abc123","n":%d}`, key, n)
	default:
		r.Type, r.Stream, r.Version = "KeyRevoked", eventstore.KeyStream(key), 2
		r.Data = fmt.Appendf(nil, `{"keyId":%q,"organizationId":"org_abc123"}`, key)
	}
	return r
}

// grow appends n events recorded at a moment.
func (l *memLog) grow(n int, at time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for range n {
		l.events = append(l.events, event(l.ledger, l.epoch, l.lane, domain.Position(len(l.events)+1), at))
	}
	l.changed()
}

// put appends one event as it is.
func (l *memLog) put(r eventstore.Recorded) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, r)
	l.changed()
}

// restore forgets everything behind a position and begins a new epoch.
func (l *memLog) restore(position domain.Position) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = l.events[:position:position]
	l.epoch++
	l.changed()
}

// detach takes away everything up to a position, as old partitions go.
func (l *memLog) detach(position domain.Position) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.oldest = int(position)
}

// fail makes the log fail; nil repairs it.
func (l *memLog) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.broken = err
	l.changed()
}

func (l *memLog) changed() {
	close(l.moved)
	l.moved = make(chan struct{})
}

func (l *memLog) head() domain.Position {
	l.mu.Lock()
	defer l.mu.Unlock()
	return domain.Position(len(l.events))
}

func (l *memLog) at(position domain.Position) eventstore.Recorded {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.events[position-1]
}

func (l *memLog) after(position domain.Position, most int) (batch []eventstore.Recorded, moved <-chan struct{}, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	from := int(position)
	switch {
	case l.broken != nil:
		return nil, l.moved, l.broken
	case from < l.oldest:
		return nil, l.moved, fmt.Errorf("position %d is missing", from+1)
	case from < len(l.events):
		batch = l.events[from:min(len(l.events), from+most)]
	}
	return batch, l.moved, nil
}

func (l *memLog) Head(context.Context, domain.Lane) (eventstore.Head, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return eventstore.Head{Ledger: l.ledger, Epoch: l.epoch, Position: domain.Position(len(l.events))}, l.broken
}

func (l *memLog) Read(_ context.Context, _ domain.Lane, after domain.Position) iter.Seq2[eventstore.Recorded, error] {
	return func(yield func(eventstore.Recorded, error) bool) {
		batch, _, err := l.after(after, 1<<30)
		if err != nil {
			yield(eventstore.Recorded{}, err)
			return
		}
		for _, r := range batch {
			if !yield(r, nil) {
				return
			}
		}
	}
}

func (l *memLog) Follow(ctx context.Context, _ domain.Lane, after domain.Position) iter.Seq2[[]eventstore.Recorded, error] {
	return func(yield func([]eventstore.Recorded, error) bool) {
		for {
			batch, moved, err := l.after(after, 1000)
			if err == nil {
				err = ctx.Err()
			}
			if err != nil {
				yield(nil, err)
				return
			}
			if len(batch) > 0 {
				if !yield(batch, nil) {
					return
				}
				after = batch[len(batch)-1].Position
				continue
			}
			select {
			case <-ctx.Done():
			case <-moved:
			}
		}
	}
}

func (l *memLog) FirstSince(_ context.Context, _ domain.Lane, t time.Time) (domain.Position, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := l.oldest; i < len(l.events); i++ {
		if !l.events[i].RecordedAt.Before(t) {
			return domain.Position(i + 1), l.broken
		}
	}
	return domain.Position(len(l.events) + 1), l.broken
}
