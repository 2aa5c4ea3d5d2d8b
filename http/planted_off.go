//go:build !planted

package http

// skipFence never does. In builds with the tag planted it plants a bug that the
// proof of revocation must find.
func skipFence(bool) bool { return false }
