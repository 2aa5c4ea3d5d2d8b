package usage

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"keyledger/domain"
	"keyledger/eventstore"
	"keyledger/projections"
)

// Name is the projection's name.
const Name = "usage"

const (
	keysTable  = "usage_keys"
	hoursTable = "usage_hours"
)

// Projection folds the usage lane into the tables.
type Projection struct {
	db     projections.DB
	suffix string
}

// New makes the projection. Whoever drives it is a projections.Follower.
func New(db projections.DB) *Projection { return &Projection{db: db} }

// Beside gives the same fold onto tables beside the live ones, for a rebuild.
func (p *Projection) Beside(db projections.DB, suffix string) projections.Projection {
	return &Projection{db: db, suffix: p.suffix + suffix}
}

// Tables are the tables that the projection owns, with their primary keys.
func (p *Projection) Tables() []projections.Table {
	return []projections.Table{
		{Name: keysTable + p.suffix, Key: []string{"key_id"}},
		{Name: hoursTable + p.suffix, Key: []string{"key_id", "hour", "outcome"}},
	}
}

func (p *Projection) Name() string      { return Name + p.suffix }
func (p *Projection) Lane() domain.Lane { return domain.Usage }

func (p *Projection) Checkpoint(ctx context.Context) (projections.Checkpoint, error) {
	return projections.ReadCheckpoint(ctx, p.db, p.Name())
}

// counted is what a batch adds to a row of the second table, and the newest use of it.
type counted struct {
	key     domain.KeyID
	hour    int64 // its beginning, in Unix seconds
	outcome domain.Outcome
	count   uint64
	last    time.Time
}

// batches are used again: a batch may have some hundred thousand uses.
var batches = sync.Pool{New: func() any { return new([]counted) }}

// Apply adds up what events say, and adds each sum to its row once.
func (p *Projection) Apply(ctx context.Context, from, to projections.Checkpoint, events []eventstore.Event) (bool, error) {
	batch := batches.Get().(*[]counted) //nolint:forcetypeassert // ours
	defer batches.Put(batch)
	uses := (*batch)[:0]
	change := projections.NewChange(from.Position)
	for _, e := range events {
		change.Through(e.Position - 1)
		used, ok := e.Event.(domain.KeyUsed)
		if !ok {
			return false, projections.Broken(e.Recorded, fmt.Errorf("%s does not belong to the lane", e.Type))
		}
		for i := range used.Uses {
			use := &used.Uses[i]
			uses = append(uses, counted{use.Key, use.Last.UTC().Truncate(time.Hour).Unix(), use.Outcome, use.Count, use.Last})
			change.Sum.Plus(uses[len(uses)-1].hash(), use.Count)
		}
	}
	*batch = uses
	return p.write(ctx, from, to, sum(uses), change)
}

// sum sorts uses by the keys of both tables, so that neighbours are found on the same page, and adds up
// those of the same row.
func sum(uses []counted) []counted {
	slices.SortFunc(uses, func(a, b counted) int {
		if c := bytes.Compare(a.key[:], b.key[:]); c != 0 {
			return c
		}
		if c := cmp.Compare(a.hour, b.hour); c != 0 {
			return c
		}
		return cmp.Compare(a.outcome, b.outcome)
	})
	rows := uses[:0]
	for _, use := range uses {
		if n := len(rows); n > 0 && rows[n-1].key == use.key && rows[n-1].hour == use.hour && rows[n-1].outcome == use.outcome {
			rows[n-1].count += use.count
			rows[n-1].last = later(rows[n-1].last, use.last)
			continue
		}
		rows = append(rows, use)
	}
	return rows
}

// hash is what one use of a row counts in the projection's state. The fold adds to rows without
// reading them, so the state is the sum of the rows' hashes, each as often as the
// row counts. It covers usage_hours; usage_keys are sums of that, and its times are
// compared as rows.
func (c *counted) hash() [sha256.Size]byte {
	var buffer [64]byte
	b := append(buffer[:0], "keyledger usage 1"...)
	b = append(b, c.key[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(c.hour))
	return sha256.Sum256(append(b, byte(c.outcome)))
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// write moves the checkpoint and adds the sums, which are in the order of both tables' keys. Rows are found by their
// primary keys alone.
func (p *Projection) write(ctx context.Context, from, to projections.Checkpoint, rows []counted, change projections.Change) (bool, error) {
	if len(rows) == 0 {
		return projections.Move(ctx, p.db, p, from, to, change, "")
	}
	var k struct{ ids, accepted, refused, lastUsed, lastRefused column }
	var h struct{ ids, starts, outcomes, counts column }
	k.ids, h.ids = make(column, 0, 33*len(rows)+1), make(column, 0, 33*len(rows)+1) // 32 digits and what separates them
	for len(rows) > 0 {
		key := rows[0].key
		var accepted, refused uint64
		var lastUsed, lastRefused time.Time
		for len(rows) > 0 && rows[0].key == key {
			row := &rows[0]
			if row.outcome.Accepted() {
				accepted += row.count
				lastUsed = later(lastUsed, row.last)
			} else {
				refused += row.count
				lastRefused = later(lastRefused, row.last)
			}
			h.ids.id(key)
			h.starts.number(row.hour / 3600)
			h.outcomes.number(int64(row.outcome))
			h.counts.number(int64(row.count))
			rows = rows[1:]
		}
		k.ids.id(key)
		k.accepted.number(int64(accepted))
		k.refused.number(int64(refused))
		k.lastUsed.moment(lastUsed)
		k.lastRefused.moment(lastRefused)
	}
	return projections.Move(ctx, p.db, p, from, to, change, `, counted AS (
INSERT INTO `+keysTable+p.suffix+` AS k (key_id, accepted, refused, last_used_at, last_refused_at)
SELECT n.key_id, n.accepted, n.refused, timestamptz 'epoch' + n.last_used_at * interval '1 microsecond', timestamptz 'epoch' + n.last_refused_at * interval '1 microsecond'
  FROM unnest($8::uuid[], $9::bigint[], $10::bigint[], $11::bigint[], $12::bigint[])
       AS n (key_id, accepted, refused, last_used_at, last_refused_at)
 WHERE EXISTS (SELECT FROM moved)
    ON CONFLICT (key_id) DO UPDATE SET accepted = k.accepted + excluded.accepted, refused = k.refused + excluded.refused,
       last_used_at = greatest(k.last_used_at, excluded.last_used_at),
       last_refused_at = greatest(k.last_refused_at, excluded.last_refused_at)
), spread AS (
INSERT INTO `+hoursTable+p.suffix+` AS h (key_id, hour, outcome, count)
SELECT n.key_id, timestamptz 'epoch' + n.hour * interval '1 hour', n.outcome, n.count
  FROM unnest($13::uuid[], $14::bigint[], $15::smallint[], $16::bigint[])
       AS n (key_id, hour, outcome, count)
 WHERE EXISTS (SELECT FROM moved)
    ON CONFLICT (key_id, hour, outcome) DO UPDATE SET count = h.count + excluded.count)`,
		k.ids.array(), k.accepted.array(), k.refused.array(), k.lastUsed.array(), k.lastRefused.array(),
		h.ids.array(), h.starts.array(), h.outcomes.array(), h.counts.array())
}

// column is an array as Postgres reads it. A statement has some ten thousand rows, and what
// is made for all kinds of values costs several times as much.
type column []byte

func (c *column) next() {
	if len(*c) == 0 {
		*c = append(*c, '{')
	} else {
		*c = append(*c, ',')
	}
}

func (c *column) number(n int64) {
	c.next()
	*c = strconv.AppendInt(*c, n, 10)
}

func (c *column) id(id domain.KeyID) {
	c.next()
	*c = hex.AppendEncode(*c, id[:])
}

// moment is microseconds since 1970, which Postgres reads faster than times, or NULL.
func (c *column) moment(t time.Time) {
	if t.IsZero() {
		c.next()
		*c = append(*c, "NULL"...)
		return
	}
	c.number(t.UnixMicro())
}

func (c *column) array() string {
	if len(*c) == 0 {
		return "{}"
	}
	return string(append(*c, '}'))
}
