package http

import (
	"hash/maphash"
	"net/netip"
	"sync/atomic"
	"time"

	"keyledger/domain"
)

// DefaultUnknownKeys is how many answers about unknown keys a source gets in a
// minute, at once or spread.
const DefaultUnknownKeys uint32 = 1000

// throttle counts the answers about unknown keys that each source was given. It
// looks at such answers alone: a key that is known never comes here.
//
// The table has a fixed size, whoever asks: a source has a cell in each row, chosen
// by a hash that is drawn at start, and is over its budget when all of its cells are. Two
// sources share both cells with a chance of one in 16 million. Whoever commands enough
// prefixes to fill the table makes unknown keys be answered with 429 to everybody,
// and nothing else.
type throttle struct {
	seed     maphash.Seed
	interval int64 // nanoseconds in which one answer is earned back
	budget   int64 // nanoseconds that a cell may lie ahead of the clock
	rows     [2][throttleCells]atomic.Int64
}

const throttleCells = 4096

func newThrottle(perMinute uint32) *throttle {
	if perMinute == 0 {
		perMinute = DefaultUnknownKeys
	}
	interval := int64(time.Minute) / int64(perMinute)
	return &throttle{seed: maphash.MakeSeed(), interval: interval, budget: interval * int64(perMinute)}
}

// spend takes n answers from a source's budget, of which there must be one left. It
// gives how long to wait for that, 0 when there is one. What is refused costs
// nothing, and no call more than the whole budget.
func (t *throttle) spend(source netip.Addr, n int, now time.Time) time.Duration {
	prefix := prefixOf(source)
	hash := maphash.Bytes(t.seed, prefix[:])
	cells := [...]*atomic.Int64{&t.rows[0][hash%throttleCells], &t.rows[1][hash>>32%throttleCells]}
	at := now.UnixNano()
	spent := t.budget
	for _, cell := range cells {
		spent = min(spent, t.ahead(cell.Load(), at))
	}
	if spent+t.interval > t.budget {
		return time.Duration(spent + t.interval - t.budget)
	}
	cost := min(int64(n)*t.interval, t.budget)
	for _, cell := range cells {
		for {
			was := cell.Load()
			if cell.CompareAndSwap(was, at+min(t.ahead(was, at)+cost, t.budget)) {
				break
			}
		}
	}
	return 0
}

// ahead is what is spent of a cell. It is never more than the budget, so a clock
// that was set back costs a source a minute at most.
func (t *throttle) ahead(cell, at int64) int64 { return min(max(cell-at, 0), t.budget) }

// prefixOf is what counts as one source: an address of IPv4, or the 64 bits of IPv6
// that one customer of a provider has at least.
func prefixOf(a netip.Addr) (prefix [9]byte) {
	a = a.Unmap()
	if a.Is4() {
		b := a.As4()
		prefix[0] = 4
		copy(prefix[1:], b[:])
		return prefix
	}
	b := a.As16()
	prefix[0] = 6
	copy(prefix[1:], b[:8])
	return prefix
}

// unknown is asked before a request is told that n keys are unknown. It gives an
// error when the source has been told that too often.
func (s *Server) unknown(r *request, n int) error {
	wait := s.throttle.spend(r.source(), n, r.arrived)
	if wait == 0 {
		return nil
	}
	r.retryAfter = wait
	return domain.Errorf(domain.CodeRateLimited, "Too many unknown keys from this address")
}
