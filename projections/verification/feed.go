package verification

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"

	"keyledger/domain"
	"keyledger/eventstore"
	"keyledger/index"
	"keyledger/index/wire"
)

// Feed gives the keys to verifiers that others embed: those that an index has, and how
// the log changes them. No query is made for it.
type Feed struct {
	index   *index.Index
	log     FeedLog
	history index.History
}

// FeedLog is what a feed reads from and writes to. *eventstore.Store is one.
type FeedLog interface {
	Log
	Ledger
	Ledger() (id domain.ID, epoch uint32)
}

// NewFeed makes a feed of an index that follows a log.
func NewFeed(x *index.Index, log FeedLog) *Feed {
	ledger, epoch := log.Ledger()
	return &Feed{index: x, log: log, history: index.History{Ledger: ledger, Epoch: epoch}}
}

// History is what the feed's positions belong to.
func (f *Feed) History() (ledger domain.ID, epoch uint32) { return f.history.Ledger, f.history.Epoch }

const (
	rowsAFrame  = 1024 // their names at their longest fit into a frame
	framesAPart = 4
)

// Snapshot gives all keys as wire frames, compressed with zstd: part by part, then
// io.EOF. Each part ends with a cursor, with which another snapshot goes on behind it: one that
// was broken off need not begin anew. An empty cursor begins.
func (f *Feed) Snapshot(cursor string) (next func(context.Context) ([]byte, error), stop func(), err error) {
	at, err := readCursor(cursor)
	if err != nil {
		return nil, nil, err
	}
	walk, err := f.index.Walk(at)
	if err != nil {
		return nil, nil, err
	}
	encoder, _ := encoders.Get().(*zstd.Encoder)
	if encoder == nil {
		// One goroutine, and a small window: rows repeat what stands close by.
		encoder, err = zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1),
			zstd.WithLowerEncoderMem(true), zstd.WithWindowSize(256<<10))
		if err != nil {
			return nil, nil, fmt.Errorf("compress a snapshot: %w", err)
		}
	}
	s := &snapshot{walk: walk, encoder: encoder, rows: make([]index.Row, rowsAFrame), organizations: map[uint64]uint64{}, scopes: map[index.ScopeSet]uint64{}}
	s.encoder.Reset(&s.compressed)
	s.frames = wire.AppendHeader(s.frames, wire.Header{
		Ledger: walk.History().Ledger, Epoch: walk.History().Epoch, Position: walk.Cursor().From, Keys: uint64(walk.Len()),
	})
	return s.next, s.stop, nil
}

var encoders sync.Pool

// snapshot is one that is on its way.
type snapshot struct {
	walk          *index.Walk
	encoder       *zstd.Encoder
	rows          []index.Row
	frames        []byte
	compressed    bytes.Buffer
	organizations map[uint64]uint64 // the numbers that were given in this answer
	scopes        map[index.ScopeSet]uint64
	ended         bool
}

func (s *snapshot) next(context.Context) ([]byte, error) {
	if s.ended {
		return nil, io.EOF
	}
	for range framesAPart {
		n := s.walk.Next(s.rows)
		if n == 0 {
			end, err := s.walk.End()
			if err != nil {
				return nil, err
			}
			s.frames, s.ended = wire.AppendEnd(s.frames, end), true
			break
		}
		s.append(s.rows[:n])
	}
	if !s.ended {
		s.frames = wire.AppendCursor(s.frames, writeCursor(s.walk.Cursor()))
	}
	s.compressed.Reset()
	if _, err := s.encoder.Write(s.frames); err != nil {
		return nil, fmt.Errorf("compress a snapshot: %w", err)
	}
	s.frames = s.frames[:0]
	finish := s.encoder.Flush // whoever has the part can read it
	if s.ended {
		finish = s.encoder.Close
	}
	if err := finish(); err != nil {
		return nil, fmt.Errorf("compress a snapshot: %w", err)
	}
	return s.compressed.Bytes(), nil
}

// append appends a frame of keys, and before it what they refer to for the first time.
func (s *snapshot) append(rows []index.Row) {
	for i := range rows {
		r := &rows[i]
		if _, ok := s.organizations[r.Place]; !ok {
			s.organizations[r.Place] = uint64(len(s.organizations))
			s.frames = wire.AppendOrganization(s.frames, r.Organization)
		}
		if _, ok := s.scopes[r.Set]; !ok {
			s.scopes[r.Set] = uint64(len(s.scopes))
			s.frames = wire.AppendScopes(s.frames, r.Scopes)
		}
	}
	s.appendKeys(wire.KindKeys, rows, false)
	if slices.ContainsFunc(rows, func(r index.Row) bool { return r.Quota.Given() }) {
		s.appendKeys(wire.KindQuotaKeys, rows, true)
	}
}

// appendKeys appends a frame of the keys with or without a quota.
func (s *snapshot) appendKeys(kind wire.Kind, rows []index.Row, quoted bool) {
	s.frames = wire.AppendFrame(s.frames, kind, func(b []byte) []byte {
		var k wire.Key
		for i := range rows {
			r := &rows[i]
			if r.Quota.Given() != quoted {
				continue
			}
			k = wire.Key{
				Digest: r.Digest, ID: r.ID, Revoked: r.Revoked, Disabled: r.Disabled, Organization: s.organizations[r.Place], Scopes: s.scopes[r.Set],
				Limit: r.Limit, Quota: r.Quota, Version: r.Version, ExpiresAt: r.ExpiresAt, Name: r.Name,
			}
			b = wire.AppendKey(b, &k)
		}
		return b
	})
}

func (s *snapshot) stop() {
	s.encoder.Reset(nil)
	encoders.Put(s.encoder)
}

// Cursors are texts for those who have them, and numbers for the index.

const cursorBytes = 8 + 8 + 4

func writeCursor(c index.Cursor) string {
	var b [cursorBytes]byte
	binary.BigEndian.PutUint64(b[0:], c.Contents)
	binary.BigEndian.PutUint64(b[8:], uint64(c.From))
	binary.BigEndian.PutUint32(b[16:], c.Next)
	return base64.RawURLEncoding.EncodeToString(b[:])
}

func readCursor(text string) (c index.Cursor, err error) {
	if text == "" {
		return c, nil
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(b) != cursorBytes {
		return c, domain.Invalid("after", "must be a cursor of an earlier snapshot")
	}
	c.Contents, c.From, c.Next = binary.BigEndian.Uint64(b[0:]), domain.Position(binary.BigEndian.Uint64(b[8:])), binary.BigEndian.Uint32(b[16:])
	if c == (index.Cursor{}) {
		return c, domain.Invalid("after", "must be a cursor of an earlier snapshot")
	}
	return c, nil
}

// Changes gives a header, and then the events of the lifecycle lane behind a position as wire
// frames, whatever is there at a time, and waits for more. It ends with ctx, or with the first
// error. What it gives is valid until the next.
func (f *Feed) Changes(ctx context.Context, after domain.Position) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		frames := wire.AppendHeader(nil, wire.Header{Ledger: f.history.Ledger, Epoch: f.history.Epoch, Position: after})
		if !yield(frames, nil) {
			return
		}
		for batch, err := range f.log.Follow(ctx, domain.Lifecycle, after) {
			if err != nil {
				yield(nil, err)
				return
			}
			frames = frames[:0]
			for _, r := range batch {
				if r.Ledger != f.history.Ledger || r.Epoch > f.history.Epoch {
					yield(nil, domain.Unavailable(fmt.Errorf("%w: epoch %d at position %d", index.ErrForeign, r.Epoch, r.Position)))
					return
				}
				e, err := decode(ctx, f.log, r)
				if err != nil {
					yield(nil, fmt.Errorf("decode %s at position %d: %w", r.Type, r.Position, err))
					return
				}
				frames = wire.AppendChange(frames, wire.Change{Position: e.Position, Version: e.Version, Event: e.Event})
				if len(frames) >= mostChangesBytes {
					if !yield(frames, nil) {
						return
					}
					frames = frames[:0]
				}
			}
			if len(frames) > 0 && !yield(frames, nil) {
				return
			}
		}
		yield(nil, domain.Unavailable(errors.New("the log ended")))
	}
}

// Record records what a verifier has counted, under the verifier's id. The same report
// may come again, and counts once. Uses of unknown keys are refused, and so are
// those of a time or a position that has not come: the whole report then.
func (f *Feed) Record(ctx context.Context, verifier domain.ID, report wire.Report) (version uint64, err error) {
	now := time.Now()
	var decided domain.Position
	for i := range report.Uses {
		decided = max(decided, report.Uses[i].DecidedAt)
		if report.Uses[i].Last.After(now.Add(mostAhead)) {
			return 0, domain.Invalid(fmt.Sprintf("uses[%d].last", i), "must not be in the future")
		}
	}
	// The verifier may have followed another node, and be ahead of this one.
	waiting, cancel := context.WithTimeout(ctx, recordWait)
	defer cancel()
	if err := f.index.WaitFor(waiting, decided); err != nil {
		return 0, domain.Unavailable(err)
	}
	flush := eventstore.UsageFlush{Boot: verifier, Flush: report.Flush, Expected: report.Expected}
	at := now.UTC().Truncate(time.Microsecond)
	events := map[domain.OrganizationID]int{}
	for i := range report.Uses {
		u := &report.Uses[i]
		organization, ok := f.index.OrganizationOf(u.Key)
		if !ok {
			return 0, domain.Invalid(fmt.Sprintf("uses[%d].key", i), "must be a key that exists")
		}
		n, ok := events[organization]
		if !ok || len(flush.Events[n].Uses) == mostUses {
			n = len(flush.Events)
			events[organization] = n
			flush.Events = append(flush.Events, domain.KeyUsed{Organization: organization, Boot: verifier, Flush: report.Flush, At: at})
		}
		flush.Events[n].Uses = append(flush.Events[n].Uses, *u)
	}
	if len(flush.Events) > mostReportEvents {
		return 0, domain.Invalid("uses", "must be of at most %d organizations", mostReportEvents)
	}
	receipt, err := f.log.AppendUsage(ctx, flush)
	return receipt.Version, err
}

const (
	recordWait = 5 * time.Second
	// mostAhead is how far a verifier's clock may be ahead of ours.
	mostAhead = 10 * time.Minute
	// mostReportEvents bounds the organizations of a report, more or less.
	mostReportEvents = mostFlush
)

const mostChangesBytes = 64 << 10

// decode opens the personal part of an event only for a key's name, so that a revocation needs
// nothing but itself.
func decode(ctx context.Context, log Log, r eventstore.Recorded) (index.Event, error) {
	e := index.Event{History: index.History{Ledger: r.Ledger, Epoch: r.Epoch}, Position: r.Position, Version: r.Version}
	var err error
	if r.Type == (domain.KeyCreated{}).EventName() {
		var decoded eventstore.Event
		decoded, err = log.Decode(ctx, r)
		e.Event = decoded.Event
	} else {
		e.Event, err = eventstore.DecodeData(r)
	}
	return e, err
}
