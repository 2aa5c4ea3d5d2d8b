package audit

import (
	"bytes"
	"fmt"
	"slices"
	"time"

	"github.com/oklog/ulid/v2"

	"keyledger/domain"
	"keyledger/eventstore"
)

// DefaultSkew is how far the wall clocks of verifiers are believed to differ.
const DefaultSkew = 2 * time.Second

// revocation is what a lane says of the end of a key.
type revocation struct {
	position  uint64
	fenced    time.Time // when no verifier accepted the key any more; zero: that is not on record
	confirmed []domain.ID
	expired   []domain.ID
}

// watch knows which uses there must not be. Each use names the highest lifecycle position at
// which it was decided, and when it was: so one is wrong that was accepted
//
//   - at or behind the position of the revocation: its verifier knew;
//   - by the clock, after the fence held. By then its verifier had confirmed, or its
//     lease had run out.
//
// Clocks differ, so the second allows for some skew. A verifier that was told to go on without a
// lease records what it accepts as VALID_STALE, which only the first rule is for.
type watch struct {
	revoked map[[ulid.EncodedSize]byte]*revocation // by the key as events write it
	skew    time.Duration
}

func newWatch(revocations map[domain.KeyID]*revocation, skew time.Duration) *watch {
	if skew == 0 {
		skew = DefaultSkew
	}
	w := &watch{revoked: make(map[[ulid.EncodedSize]byte]*revocation, len(revocations)), skew: skew}
	for key, r := range revocations {
		var text [ulid.EncodedSize]byte
		_ = ulid.ULID(key).MarshalTextTo(text[:]) // the size fits
		w.revoked[text] = r
	}
	return w
}

var (
	usedKeys   = []byte(`"keys":[`)
	usedPrefix = []byte(`"key_`)
)

// late says what is wrong with the uses of an event; empty when nothing is. An event of
// which no key was ever revoked is not decoded.
func (w *watch) late(r *row) string {
	if w == nil || len(w.revoked) == 0 || r.left || r.damage != "" {
		return ""
	}
	i := bytes.Index(r.data, usedKeys)
	if i < 0 {
		return ""
	}
	for keys := r.data[i+len(usedKeys):]; bytes.HasPrefix(keys, usedPrefix) && len(keys) > len(usedPrefix)+ulid.EncodedSize+1; {
		text := [ulid.EncodedSize]byte(keys[len(usedPrefix):])
		if w.revoked[text] != nil {
			return w.judge(r)
		}
		if keys = keys[len(usedPrefix)+ulid.EncodedSize+1:]; keys[0] == ',' {
			keys = keys[1:]
		}
	}
	return ""
}

func (w *watch) judge(r *row) string {
	event, err := eventstore.DecodeData(eventstore.Recorded{Lane: domain.Usage, Position: domain.Position(r.position), Type: string(r.kind), Schema: r.schema, Data: r.data})
	if err != nil {
		return "its data cannot be read"
	}
	used, ok := event.(domain.KeyUsed)
	if !ok {
		return ""
	}
	for _, use := range used.Uses {
		var text [ulid.EncodedSize]byte
		_ = ulid.ULID(use.Key).MarshalTextTo(text[:]) // the size fits
		end := w.revoked[text]
		if end == nil || !use.Outcome.Accepted() {
			continue
		}
		if uint64(use.DecidedAt) >= end.position {
			return fmt.Sprintf("the verifier %s accepted the key %s at position %d, which was revoked at %d", used.Boot.UUID(), use.Key, use.DecidedAt, end.position)
		}
		if over := use.Last.Sub(end.fenced); use.Outcome == domain.OutcomeValid && !end.fenced.IsZero() && over > w.skew {
			how := "which its fence does not name"
			switch {
			case slices.Contains(end.confirmed, used.Boot):
				how = "which had confirmed its revocation"
			case slices.Contains(end.expired, used.Boot):
				how = "whose lease had run out"
			}
			return fmt.Sprintf("the key %s was accepted by the verifier %s, %s, %s after its fence", use.Key, used.Boot.UUID(), how, over.Round(time.Millisecond))
		}
	}
	return ""
}

// fenced reads how the wait for a revocation ended.
func (r *row) fenced() *domain.RevocationFenced {
	event, err := eventstore.DecodeData(eventstore.Recorded{Lane: domain.Lifecycle, Position: domain.Position(r.position), Type: string(r.kind), Schema: r.schema, Data: r.data})
	if err != nil {
		return nil
	}
	fenced, _ := event.(domain.RevocationFenced)
	return &fenced
}

// fence takes what the log says of a fence. Only the first counts: from then on nobody
// accepts the key.
func (c *chain) fence(e *checked) {
	end := c.revocations[e.key]
	switch {
	case e.fence == nil:
		c.fault(e.position, "the fence of the key %s cannot be read", e.key)
	case end == nil: // said above, or not in the file
	case uint64(e.fence.Position) < end.position:
		c.fault(e.position, "the fence of the key %s is for position %d, and it was revoked at %d", e.key, e.fence.Position, end.position)
	case end.fenced.IsZero():
		end.fenced, end.confirmed, end.expired = e.fence.At, e.fence.Confirmed, e.fence.Expired
	}
}
