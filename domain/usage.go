package domain

import "time"

// UsageCount is how often a key was used with one outcome in one interval.
type UsageCount struct {
	Start   time.Time // the interval's beginning, in UTC
	Outcome Outcome
	Count   uint64
}
