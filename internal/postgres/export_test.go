package postgres

import "context"

// Installed lists the installations of this machine.
func Installed() []string { return installed() }

// Download fetches programs into dir from a mirror.
func Download(ctx context.Context, s *Server, mirror string, major int) (string, error) {
	return s.download(ctx, mirror, major)
}
