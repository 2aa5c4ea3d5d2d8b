//go:build planted

package fence

import (
	"os"
	"time"

	"keyledger/domain"
)

// Bugs that the proof of revocation must find. They exist in builds with the tag
// planted alone, and one at a time: PLANTED names it.
var planted = os.Getenv("PLANTED")

func plant(asked time.Time, head domain.Position, index Index) (time.Time, domain.Position) {
	switch planted {
	case "lease-from-reply":
		return time.Now(), head
	case "lease-from-stream":
		return asked, index.Position()
	}
	return asked, head
}

// plantPatience takes a verifier that has not answered soon for one that has confirmed.
func plantPatience(bound time.Duration) time.Duration {
	if planted == "failed-confirmation" {
		return margin
	}
	return bound
}
