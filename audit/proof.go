package audit

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/mod/sumdb/tlog"

	"keyledger/domain"
	"keyledger/eventstore"
	"keyledger/projections/transparency"
)

// proofFormat names the bundle's format, which never changes under it.
const proofFormat = "keyledger-proof/1"

// Proof is a self-contained bundle: an event, the way from its leaf to a root, and
// the checkpoint in which that root was signed. It is verified without the ledger.
type Proof struct {
	Format     string          `json:"format"`
	Lane       domain.Lane     `json:"lane"`
	Position   domain.Position `json:"position"`
	Envelope   []byte          `json:"envelope"`
	Proof      []tlog.Hash     `json:"proof"`
	Checkpoint string          `json:"checkpoint"`
}

// Prove makes the bundle of an event. CodeNotFound says that there is no such
// event, or that no checkpoint covers it yet, or none that the witnesses have cosigned.
func Prove(ctx context.Context, pool *pgxpool.Pool, log transparency.Log, lane domain.Lane, position domain.Position, witnesses ...transparency.WitnessKey) (Proof, error) {
	reader := transparency.NewReader(pool, log)
	p := Proof{Format: proofFormat, Lane: lane, Position: position}
	for e, err := range log.Read(ctx, lane, position-1) {
		if err != nil {
			return Proof{}, err
		}
		p.Envelope = e.Envelope()
		break
	}
	if p.Envelope == nil {
		return Proof{}, domain.Errorf(domain.CodeNotFound, "the lane %s ends before position %d", lane, position)
	}
	var signed []byte
	var err error
	if len(witnesses) > 0 {
		signed, err = reader.CheckpointCosigned(ctx, lane, position, witnesses)
	} else {
		signed, err = reader.Checkpoint(ctx, lane)
	}
	if err != nil {
		return Proof{}, err
	}
	checkpoint, err := transparency.Read(signed)
	if err != nil {
		return Proof{}, err
	}
	if checkpoint.Size < position {
		return Proof{}, domain.Errorf(domain.CodeNotFound, "no checkpoint covers %s %d yet: the newest has the size %d", lane, position, checkpoint.Size)
	}
	_, proof, err := reader.Inclusion(ctx, lane, position, checkpoint.Size)
	if err != nil {
		return Proof{}, err
	}
	for _, h := range proof {
		p.Proof = append(p.Proof, h)
	}
	p.Checkpoint = string(signed)
	if err := p.included(checkpoint); err != nil {
		return Proof{}, fmt.Errorf("the event in the database is not the one that was signed: %w", err)
	}
	return p, nil
}

// Proven is what a good bundle proves.
type Proven struct {
	Event      eventstore.Recorded
	Checkpoint transparency.Checkpoint
}

// CheckProof verifies a bundle against the keys of those who may have signed, and of those
// who must have cosigned.
func CheckProof(bundle []byte, keys transparency.Keys, witnesses ...transparency.WitnessKey) (Proven, error) {
	var p Proof
	if err := json.Unmarshal(bundle, &p); err != nil {
		return Proven{}, fmt.Errorf("the proof cannot be read: %w", err)
	}
	if p.Format != proofFormat {
		return Proven{}, fmt.Errorf("the proof is in the format %q, not %q", p.Format, proofFormat)
	}
	checkpoint, err := transparency.Open([]byte(p.Checkpoint), keys)
	if err != nil {
		return Proven{}, err
	}
	if missing := transparency.Missing([]byte(p.Checkpoint), witnesses); missing != "" {
		return Proven{}, fmt.Errorf("the witness %s has not cosigned the checkpoint of size %d", missing, checkpoint.Size)
	}
	event, err := eventstore.ParseEnvelope(p.Envelope)
	if err != nil {
		return Proven{}, err
	}
	switch {
	case event.Ledger != checkpoint.Ledger || event.Lane != checkpoint.Lane:
		return Proven{}, errors.New("the event does not belong to the log of the checkpoint")
	case event.Lane != p.Lane || event.Position != p.Position:
		return Proven{}, fmt.Errorf("the event is %s %d, and the proof says that it is %s %d", event.Lane, event.Position, p.Lane, p.Position)
	}
	if err := p.included(checkpoint); err != nil {
		return Proven{}, err
	}
	return Proven{event, checkpoint}, nil
}

func (p Proof) included(c transparency.Checkpoint) error {
	if p.Position < 1 || p.Position > c.Size {
		return fmt.Errorf("position %d is not in a tree of size %d", p.Position, c.Size)
	}
	if err := tlog.CheckRecord(p.Proof, int64(c.Size), c.Root, int64(p.Position-1), tlog.RecordHash(p.Envelope)); err != nil {
		return fmt.Errorf("the proof does not lead from the event to the checkpoint: %w", err)
	}
	return nil
}

// How far the clock that an event's id was drawn by, and the wait for its commit, put it from the time
// at which it was recorded.
const (
	drawnAfter  = time.Minute
	drawnBefore = 10 * time.Minute
)

// FindID gives the place of an event. Events have no index on their ids, which every append
// would pay for; but an id begins with the time at which it was drawn, and times never
// run backwards in a lane. So the search looks at some minutes of each. Only an id that is not there,
// or was drawn by a clock that was far off, is looked for everywhere.
func FindID(ctx context.Context, pool *pgxpool.Pool, id domain.ID) (domain.Lane, domain.Position, error) {
	drawn := time.UnixMilli(int64(binary.BigEndian.Uint64(append([]byte{0, 0}, id[:6]...))))
	for _, lane := range domain.Lanes() {
		var head domain.Position
		if err := pool.QueryRow(ctx, `SELECT position FROM log_head WHERE lane = $1`, string(lane)).Scan(&head); err != nil {
			return "", 0, eventstore.Wrap(err, "read the head of %s", lane)
		}
		from, err := eventstore.FirstSince(ctx, pool, lane, head, drawn.Add(-drawnAfter))
		if err != nil {
			return "", 0, err
		}
		to, err := eventstore.FirstSince(ctx, pool, lane, head, drawn.Add(drawnBefore))
		if err != nil {
			return "", 0, err
		}
		if position, err := findBetween(ctx, pool, lane, from, to, id); err != nil || position > 0 {
			return lane, position, err
		}
	}
	for _, lane := range domain.Lanes() {
		if position, err := findBetween(ctx, pool, lane, 0, 1<<62, id); err != nil || position > 0 {
			return lane, position, err
		}
	}
	return "", 0, domain.Errorf(domain.CodeNotFound, "no event has the id %s", id.UUID())
}

func findBetween(ctx context.Context, pool *pgxpool.Pool, lane domain.Lane, from, to domain.Position, id domain.ID) (position domain.Position, err error) {
	err = pool.QueryRow(ctx, `SELECT coalesce(max(position), 0) FROM events WHERE lane = $1 AND position >= $2 AND position < $3 AND id = $4`,
		string(lane), int64(from), int64(to), [16]byte(id)).Scan(&position)
	return position, eventstore.Wrap(err, "look for the event %s", id.UUID())
}
