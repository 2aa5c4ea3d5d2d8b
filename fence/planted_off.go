//go:build !planted

package fence

import (
	"time"

	"keyledger/domain"
)

// plant changes nothing. In builds with the tag planted it plants the bugs that the proof of
// revocation must find: see planted.go.
func plant(asked time.Time, head domain.Position, _ Index) (time.Time, domain.Position) {
	return asked, head
}

func plantPatience(bound time.Duration) time.Duration { return bound }
