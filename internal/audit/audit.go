package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"keyledger/domain"
	"keyledger/eventstore"
	"keyledger/publisher"
)

// Fault is one broken promise.
type Fault struct {
	Lane     domain.Lane
	Position domain.Position // 0: the lane as a whole
	Text     string
}

func (f Fault) String() string { return fmt.Sprintf("%s %d: %s", f.Lane, f.Position, f.Text) }

// Ledger is where to find what is audited.
type Ledger struct {
	DatabaseURL string
	NATSURL     string // empty: the streams are left out
}

// Report is what an audit found.
type Report struct {
	Events map[domain.Lane]domain.Position
	// Keys are the keys as the log tells them, without personal fields.
	Keys   map[domain.KeyID]domain.Key
	Faults []Fault
}

// Run reads everything and reports what is wrong. Its error says that it could
// not look.
//
// It finds: gaps and repetitions of positions, heads that differ from the last
// event, versions of a stream that do not follow each other, times that run
// backwards, events that cannot be read or folded, commands whose acting key was revoked before,
// and every difference between a stream's messages and the log. The projections'
// turn is keyledger replay, which compares them with a fresh fold.
func Run(ctx context.Context, l Ledger) (Report, error) {
	conn, err := pgx.Connect(ctx, l.DatabaseURL)
	if err != nil {
		return Report{}, fmt.Errorf("connect to the ledger: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	a := &audit{conn: conn, report: Report{Events: map[domain.Lane]domain.Position{}, Keys: map[domain.KeyID]domain.Key{}}}
	if l.NATSURL != "" {
		nc, err := nats.Connect(l.NATSURL)
		if err != nil {
			return Report{}, fmt.Errorf("connect to the streams: %w", err)
		}
		defer nc.Close()
		if a.js, err = jetstream.New(nc); err != nil {
			return Report{}, fmt.Errorf("connect to the streams: %w", err)
		}
	}
	for _, lane := range domain.Lanes() {
		events, err := a.log(ctx, lane)
		if err != nil {
			return Report{}, err
		}
		if a.js != nil {
			if err := a.stream(ctx, lane, events); err != nil {
				return Report{}, err
			}
		}
	}
	return a.report, nil
}

type audit struct {
	conn   *pgx.Conn
	js     jetstream.JetStream
	report Report
}

func (a *audit) fault(lane domain.Lane, position domain.Position, format string, args ...any) {
	a.report.Faults = append(a.report.Faults, Fault{lane, position, fmt.Sprintf(format, args...)})
}

// event is what the stream is compared with.
type event struct {
	id   domain.ID
	data []byte
}

// log reads one lane and folds it.
func (a *audit) log(ctx context.Context, lane domain.Lane) ([]event, error) {
	var head domain.Position
	if err := a.conn.QueryRow(ctx, `SELECT position FROM log_head WHERE lane = $1`, string(lane)).Scan(&head); err != nil {
		return nil, fmt.Errorf("read the head of %s: %w", lane, err)
	}
	rows, err := a.conn.Query(ctx, `SELECT position, id, stream, version, type, schema, recorded_at, data, metadata FROM events
		WHERE lane = $1 AND position <= $2 ORDER BY position`, string(lane), head)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", lane, err)
	}
	defer rows.Close()
	var events []event
	var last time.Time
	versions := map[string]uint64{}
	for rows.Next() {
		r := eventstore.Recorded{Lane: lane}
		if err := rows.Scan(&r.Position, (*[16]byte)(&r.ID), (*string)(&r.Stream), &r.Version, &r.Type, &r.Schema, &r.RecordedAt, &r.Data, &r.Metadata); err != nil {
			return nil, fmt.Errorf("read %s: %w", lane, err)
		}
		if want := domain.Position(len(events) + 1); r.Position != want {
			a.fault(lane, want, "is missing: %d stands in its place", r.Position)
			return events, nil // whatever follows would be a fault of this one
		}
		if want := versions[string(r.Stream)] + 1; r.Version != want {
			a.fault(lane, r.Position, "version %d of %s stands where %d should", r.Version, r.Stream, want)
		}
		versions[string(r.Stream)] = r.Version
		if r.RecordedAt.Before(last) {
			a.fault(lane, r.Position, "was recorded before the event that it follows")
		}
		last = r.RecordedAt
		a.fold(r)
		events = append(events, event{r.ID, r.Data})
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read %s: %w", lane, err)
	}
	if domain.Position(len(events)) != head {
		a.fault(lane, head, "is the head, and the last event is %d", len(events))
	}
	a.report.Events[lane] = head
	return events, nil
}

func (a *audit) fold(r eventstore.Recorded) {
	e, err := eventstore.DecodeData(r)
	if err != nil {
		a.fault(r.Lane, r.Position, "%v", err)
		return
	}
	if actor := actingKey(r.Metadata); !actor.IsZero() && r.Lane == domain.Lifecycle && a.report.Keys[actor].Revoked {
		a.fault(r.Lane, r.Position, "was authorised by %s after its revocation", actor)
	}
	id, ok := r.Stream.Key()
	if !ok {
		return
	}
	key, err := domain.EvolveKey(a.report.Keys[id], e)
	if err != nil {
		a.fault(r.Lane, r.Position, "%v", err)
		return
	}
	if key.ID != id {
		a.fault(r.Lane, r.Position, "%s tells of %s in the stream of %s", r.Type, key.ID, id)
	}
	a.report.Keys[id] = key
}

// actingKey finds the key in an event's metadata.
func actingKey(metadata []byte) domain.KeyID {
	_, rest, ok := bytes.Cut(metadata, []byte(`"keyId":"`))
	if !ok {
		return domain.KeyID{}
	}
	text, _, _ := bytes.Cut(rest, []byte(`"`))
	id, err := domain.ParseKeyID(string(text))
	if err != nil {
		return domain.KeyID{}
	}
	return id
}

// stream compares every message of a lane's stream with the log.
func (a *audit) stream(ctx context.Context, lane domain.Lane, events []event) error {
	stream, err := a.js.Stream(ctx, publisher.StreamName(lane))
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		if len(events) > 0 {
			a.fault(lane, 0, "there is no stream")
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("open the stream of %s: %w", lane, err)
	}
	info, err := stream.Info(ctx)
	if err != nil {
		return fmt.Errorf("read the stream of %s: %w", lane, err)
	}
	if info.State.LastSeq != uint64(len(events)) {
		a.fault(lane, domain.Position(info.State.LastSeq), "is the stream's last message, and the log's last event is %d", len(events))
	}
	if want := info.State.LastSeq - info.State.FirstSeq + 1; info.State.Msgs != want && info.State.Msgs > 0 {
		a.fault(lane, 0, "the stream holds %d messages of %d", info.State.Msgs, want)
	}
	if info.State.Msgs == 0 {
		return nil
	}
	consumer, err := stream.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{})
	if err != nil {
		return fmt.Errorf("read the stream of %s: %w", lane, err)
	}
	messages, err := consumer.Messages()
	if err != nil {
		return fmt.Errorf("read the stream of %s: %w", lane, err)
	}
	defer messages.Stop()
	next := info.State.FirstSeq
	for next <= info.State.LastSeq {
		m, err := messages.Next(jetstream.NextContext(ctx))
		if err != nil {
			return fmt.Errorf("read the stream of %s at %d: %w", lane, next, err)
		}
		meta, err := m.Metadata()
		if err != nil {
			return fmt.Errorf("read the stream of %s at %d: %w", lane, next, err)
		}
		position := domain.Position(meta.Sequence.Stream)
		if meta.Sequence.Stream != next {
			a.fault(lane, domain.Position(next), "is missing in the stream: %d follows", position)
		}
		next = meta.Sequence.Stream + 1
		if stated := m.Headers().Get(publisher.HeaderPosition); stated != strconv.FormatUint(uint64(position), 10) {
			a.fault(lane, position, "the message says that it is position %s", stated)
		}
		if position > domain.Position(len(events)) {
			continue // said above
		}
		e := events[position-1]
		if m.Headers().Get(publisher.HeaderID) != e.id.UUID() || !bytes.Equal(m.Data(), e.data) {
			a.fault(lane, position, "the message is not the log's event")
		}
	}
	return nil
}
