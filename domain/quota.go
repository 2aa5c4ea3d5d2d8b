package domain

import "time"

// MostQuota bounds a quota's limit. It is exact in every JSON parser, and fits into the
// log's counts.
const MostQuota uint64 = 1_000_000_000_000

// Quota is how many uses of a key are accepted in all of a period. The zero Quota is none.
type Quota struct {
	Limit  uint64 // 1 to MostQuota; 0: there is no quota
	Refill Refill
}

// Given says whether there is a quota.
func (q Quota) Given() bool { return q.Limit > 0 }

// Refill says when a quota begins anew. Its text is what events store and clients write.
type Refill string

const (
	RefillNone  Refill = "none"  // never: what is used up stays so
	RefillDay   Refill = "day"   // at midnight, UTC
	RefillMonth Refill = "month" // at midnight before the first of the month, UTC
)

// ParseRefill reads what clients write.
func ParseRefill(text string) (Refill, error) {
	switch r := Refill(text); r {
	case RefillNone, RefillDay, RefillMonth:
		return r, nil
	}
	return "", Invalid("quota.refill", "must be none, day or month")
}

// Start is when the period that holds a moment began: the beginning of an hour of UTC. The
// only period of RefillNone began at the zero time.
func (r Refill) Start(t time.Time) time.Time {
	year, month, day := t.UTC().Date()
	switch r {
	case RefillDay:
		return time.Date(year, month, day, 0, 0, 0, 0, time.UTC)
	case RefillMonth:
		return time.Date(year, month, 1, 0, 0, 0, 0, time.UTC)
	case RefillNone:
	}
	return time.Time{}
}

// Next is when the next period begins, given the start of one; the zero time for never.
func (r Refill) Next(start time.Time) time.Time {
	switch r {
	case RefillDay:
		return start.AddDate(0, 0, 1)
	case RefillMonth:
		return start.AddDate(0, 1, 0)
	case RefillNone:
	}
	return time.Time{}
}

// QuotaStanding is where a key stands against its quota. The zero QuotaStanding is none.
type QuotaStanding struct {
	Quota
	Remaining uint64
	Reset     time.Time // when Remaining is Limit again; zero: never
}

// checkQuota refuses what no key can have.
func checkQuota(q Quota) error {
	if !q.Given() {
		if q.Refill != "" {
			return Invalid("quota.limit", "must be 1 to %d", MostQuota)
		}
		return nil
	}
	if q.Limit > MostQuota {
		return Invalid("quota.limit", "must be 1 to %d", MostQuota)
	}
	_, err := ParseRefill(string(q.Refill))
	return err
}
