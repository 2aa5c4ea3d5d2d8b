//go:build planted

package client

import (
	"os"
	"time"

	"keyledger/index"
)

// plant makes one of two bugs that the proof of revocation must find. It exists in builds
// with the tag planted alone, and PLANTED names the bug.
func plant(asked time.Time, head Position, x *index.Index) (time.Time, Position) {
	switch os.Getenv("PLANTED") {
	case "lease-from-reply":
		return time.Now(), head
	case "lease-from-stream":
		return asked, x.Position()
	}
	return asked, head
}
