//go:build !planted

package client

import (
	"time"

	"keyledger/index"
)

// plant changes nothing. In builds with the tag planted it plants bugs that the proof
// of revocation must find: see planted.go.
func plant(asked time.Time, head Position, _ *index.Index) (time.Time, Position) { return asked, head }
