//go:build !race

package verification

const raceEnabled = false
