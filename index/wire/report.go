package wire

import (
	"encoding/binary"
	"fmt"
	"io"
	"time"

	"keyledger/domain"
)

// MostUses bounds a report.
const MostUses = 16_000

// Report is what one run of a verifier has counted in one window.
type Report struct {
	Flush    uint64 // 1, 2, 3, ...
	Expected uint64 // version of the verifier's stream before it, as the last answer said
	Uses     []domain.Use
}

// AppendReport appends it: a frame that says what it is, and frames of uses.
func AppendReport(dst []byte, r Report) []byte {
	dst = AppendFrame(dst, KindReport, func(b []byte) []byte {
		b = append(b, Version)
		b = binary.AppendUvarint(b, r.Flush)
		return binary.AppendUvarint(b, r.Expected)
	})
	return AppendFrame(dst, KindUses, func(b []byte) []byte {
		for i := range r.Uses {
			u := &r.Uses[i]
			b = append(b, u.Key[:]...)
			b = append(b, byte(u.Outcome))
			b = binary.AppendUvarint(b, u.Count)
			b = binary.AppendUvarint(b, uint64(max(u.First.UnixMilli(), 0)))
			b = binary.AppendUvarint(b, uint64(max(u.Last.Sub(u.First).Milliseconds(), 0)))
			b = binary.AppendUvarint(b, uint64(u.DecidedAt))
		}
		return b
	})
}

// ReadReport reads a report that is all there is. What it accepts makes sense by
// itself; whether the keys exist, the caller knows.
func ReadReport(r io.Reader) (report Report, err error) {
	frames := NewReader(r)
	kind, payload, err := frames.Next()
	if err != nil || kind != KindReport {
		return report, fmt.Errorf("%w: a report was expected", ErrMalformed)
	}
	c := cursor{rest: payload}
	if version := c.byte(); version != Version {
		return report, fmt.Errorf("%w: version %d, and this is for version %d", ErrMalformed, version, Version)
	}
	report.Flush, report.Expected = c.uint(), c.uint()
	if err := c.end("a report"); err != nil {
		return report, err
	}
	if kind, payload, err = frames.Next(); err != nil || kind != KindUses {
		return report, fmt.Errorf("%w: uses were expected", ErrMalformed)
	}
	for c = (cursor{rest: payload}); len(c.rest) > 0; {
		var u domain.Use
		copy(u.Key[:], c.bytes(len(u.Key)))
		u.Outcome = domain.Outcome(c.byte())
		u.Count = c.uint()
		first, took := c.uint(), c.uint()
		u.DecidedAt = domain.Position(c.uint())
		switch {
		case c.bad, int(u.Outcome) >= domain.Outcomes, u.Outcome == domain.OutcomeNotFound, u.Count == 0, u.Count > 1<<48,
			first > mostMillis, took > mostMillis, len(report.Uses) == MostUses:
			return report, fmt.Errorf("%w: use %d", ErrMalformed, len(report.Uses))
		}
		u.First = time.UnixMilli(int64(first)).UTC()
		u.Last = time.UnixMilli(int64(first + took)).UTC()
		report.Uses = append(report.Uses, u)
	}
	if _, _, err := frames.Next(); err != io.EOF { //nolint:errorlint // a reader gives this very one between frames
		return report, fmt.Errorf("%w: bytes after the report", ErrMalformed)
	}
	if report.Flush == 0 || len(report.Uses) == 0 {
		return report, fmt.Errorf("%w: an empty report", ErrMalformed)
	}
	return report, nil
}

// mostMillis is in the year 5138: what is later is no moment of a use.
const mostMillis = 1e14
