package http

import (
	"context"
	"strconv"
	"time"

	"github.com/gofiber/fiber/v2"

	"keyledger/domain"
)

// Usage counts a key's uses from one moment to before another, per hour or day of
// UTC, in their order; intervals without uses are left out. It shows at least
// everything that was recorded when it was called.
type Usage interface {
	Counts(ctx context.Context, key domain.KeyID, from, to time.Time, daily bool) ([]domain.UsageCount, error)
}

const (
	day = 24 * time.Hour

	// The most that one answer covers.
	mostHours = 31 * 24
	mostDays  = 366
)

// span is what a request asks about. Both ends lie between two intervals.
type span struct {
	from, to time.Time
	daily    bool
}

func (p span) width() time.Duration {
	if p.daily {
		return day
	}
	return time.Hour
}

// keyUsage answers GET /api/v1/organizations/{id}/keys/{id}/usage.
func (s *Server) keyUsage(r *request) error {
	p, err := s.admit(r, domain.ScopeRead, false)
	if err != nil {
		return err
	}
	id, err := r.key()
	if err != nil {
		return err
	}
	asked, err := s.span(r)
	if err != nil {
		return err
	}
	atLeast, err := s.awaitMinimum(r)
	if err != nil {
		return err
	}
	key, err := s.keys.Get(r.ctx, p.organization, id, atLeast)
	if err != nil {
		return err
	}
	counts, err := s.usage.Counts(r.ctx, key.ID, asked.from, asked.to, asked.daily)
	if err != nil {
		return err
	}
	r.answer(fiber.StatusOK, fiber.MIMEApplicationJSON, appendUsage(nil, key.Key, asked, counts))
	return nil
}

// span reads from, to and interval. Without from and to, it is the last 24 hours or
// 30 days. Intervals that are named in part are counted whole.
func (s *Server) span(r *request) (span, error) {
	var p span
	most, usual := mostHours, day
	switch interval, given, err := r.query("interval"); {
	case err != nil:
		return span{}, err
	case interval == "day":
		p.daily, most, usual = true, mostDays, 30*day
	case given && interval != "hour":
		return span{}, domain.Invalid("interval", "must be hour or day")
	}
	var err error
	if p.to, err = r.moment("to", s.clock()); err != nil {
		return span{}, err
	}
	if whole := p.to.Truncate(p.width()); !whole.Equal(p.to) {
		p.to = whole.Add(p.width())
	}
	if p.from, err = r.moment("from", p.to.Add(-usual)); err != nil {
		return span{}, err
	}
	p.from = p.from.Truncate(p.width())
	switch {
	case !p.from.Before(p.to):
		return span{}, domain.Invalid("from", "must be before to")
	case p.to.Sub(p.from) > time.Duration(most)*p.width():
		return span{}, domain.Invalid("from", "must be at most %d intervals before to", most)
	}
	return p, nil
}

// moment reads a time of the query: RFC 3339, or a day of UTC.
func (r *request) moment(name string, otherwise time.Time) (time.Time, error) {
	text, given, err := r.query(name)
	if err != nil {
		return time.Time{}, err
	}
	if !given {
		return otherwise.UTC(), nil
	}
	if t, err := time.Parse(time.DateOnly, text); err == nil {
		return t, nil
	}
	return parseTime(name, text)
}

// appendUsage appends every interval, also those without a use.
func appendUsage(dst []byte, key domain.Key, p span, counts []domain.UsageCount) []byte {
	dst = append(dst, `{"keyId":`...)
	dst = appendKeyID(dst, key.ID)
	dst = append(dst, `,"organizationId":`...)
	dst = appendText(dst, string(key.Organization))
	dst = append(dst, `,"interval":"`...)
	if p.daily {
		dst = append(dst, `day","from":`...)
	} else {
		dst = append(dst, `hour","from":`...)
	}
	dst = appendTime(dst, p.from)
	dst = append(dst, `,"to":`...)
	dst = appendTime(dst, p.to)
	dst = append(dst, `,"total":`...)
	dst = appendCounts(dst, counts)
	dst = append(dst, `,"intervals":[`...)
	for start := p.from; start.Before(p.to); start = start.Add(p.width()) {
		n := 0
		for n < len(counts) && counts[n].Start.Equal(start) {
			n++
		}
		dst = append(dst, `{"start":`...)
		dst = appendTime(dst, start)
		dst = append(dst, `,"uses":`...)
		dst = appendCounts(dst, counts[:n])
		dst = append(dst, `},`...)
		counts = counts[n:]
	}
	return append(trimComma(dst), `]}`...)
}

// appendCounts appends what was accepted, what was refused, and how often each
// outcome was that there was.
func appendCounts(dst []byte, counts []domain.UsageCount) []byte {
	var sums [domain.Outcomes]uint64
	var accepted, refused uint64
	for _, c := range counts {
		if int(c.Outcome) >= domain.Outcomes {
			continue // of a newer version
		}
		sums[c.Outcome] += c.Count
		if c.Outcome.Accepted() {
			accepted += c.Count
		} else {
			refused += c.Count
		}
	}
	dst = append(dst, `{"accepted":`...)
	dst = strconv.AppendUint(dst, accepted, 10)
	dst = append(dst, `,"refused":`...)
	dst = strconv.AppendUint(dst, refused, 10)
	dst = append(dst, `,"outcomes":{`...)
	for outcome, sum := range sums {
		if sum > 0 {
			dst = append(dst, '"')
			dst = append(dst, domain.Outcome(outcome).String()...)
			dst = append(dst, `":`...)
			dst = strconv.AppendUint(dst, sum, 10)
			dst = append(dst, ',')
		}
	}
	return append(trimComma(dst), `}}`...)
}
