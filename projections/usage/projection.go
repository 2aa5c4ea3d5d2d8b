package usage

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strconv"
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

// keyCount is what a batch adds to a key's row.
type keyCount struct {
	accepted, refused     uint64
	lastUsed, lastRefused time.Time
}

// hour names a row of the second table.
type hour struct {
	key     domain.KeyID
	start   time.Time
	outcome domain.Outcome
}

// Apply adds up what events say, and adds each sum to its row once.
func (p *Projection) Apply(ctx context.Context, from, to projections.Checkpoint, events []eventstore.Event) (bool, error) {
	keys := map[domain.KeyID]keyCount{}
	hours := map[hour]uint64{}
	change := projections.NewChange(from.Position)
	for _, e := range events {
		change.Through(e.Position - 1)
		used, ok := e.Event.(domain.KeyUsed)
		if !ok {
			return false, projections.Broken(e.Recorded, fmt.Errorf("%s does not belong to the lane", e.Type))
		}
		for _, use := range used.Uses {
			count := keys[use.Key]
			if use.Outcome.Accepted() {
				count.accepted += use.Count
				count.lastUsed = later(count.lastUsed, use.Last)
			} else {
				count.refused += use.Count
				count.lastRefused = later(count.lastRefused, use.Last)
			}
			keys[use.Key] = count
			at := hour{use.Key, use.Last.UTC().Truncate(time.Hour), use.Outcome}
			hours[at] += use.Count
			change.Sum.Plus(at.hash(), use.Count)
		}
	}
	return p.write(ctx, from, to, keys, hours, change)
}

func (h hour) compare(other hour) int {
	if c := bytes.Compare(h.key[:], other.key[:]); c != 0 {
		return c
	}
	if c := h.start.Compare(other.start); c != 0 {
		return c
	}
	return cmp.Compare(h.outcome, other.outcome)
}

// hash is what one use of a row counts in the projection's state. The fold adds to rows without
// reading them, so the state is the sum of the rows' hashes, each as often as the
// row counts. It covers usage_hours; usage_keys are sums of that, and its times are
// compared as rows.
func (h hour) hash() [sha256.Size]byte {
	var buffer [64]byte
	b := append(buffer[:0], "keyledger usage 1"...)
	b = append(b, h.key[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(h.start.Unix()))
	return sha256.Sum256(append(b, byte(h.outcome)))
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// write moves the checkpoint and adds the sums. Rows are found by their primary
// keys alone.
func (p *Projection) write(ctx context.Context, from, to projections.Checkpoint, keys map[domain.KeyID]keyCount, hours map[hour]uint64, change projections.Change) (bool, error) {
	if len(keys) == 0 {
		return projections.Move(ctx, p.db, p, from, to, change, "")
	}
	var k struct{ ids, accepted, refused, lastUsed, lastRefused column }
	// In their order, so that neighbours are found on the same page.
	for _, id := range slices.SortedFunc(maps.Keys(keys), func(a, b domain.KeyID) int { return bytes.Compare(a[:], b[:]) }) {
		count := keys[id]
		k.ids.id(id)
		k.accepted.number(int64(count.accepted))
		k.refused.number(int64(count.refused))
		k.lastUsed.moment(count.lastUsed)
		k.lastRefused.moment(count.lastRefused)
	}
	var h struct{ ids, starts, outcomes, counts column }
	for _, at := range slices.SortedFunc(maps.Keys(hours), hour.compare) {
		h.ids.id(at.key)
		h.starts.number(at.start.Unix() / 3600)
		h.outcomes.number(int64(at.outcome))
		h.counts.number(int64(hours[at]))
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
	*c = append(*c, id.UUID()...)
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
