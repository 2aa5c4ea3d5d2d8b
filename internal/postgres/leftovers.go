package postgres

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

const (
	fastWithin      = 10 * time.Second // an orphan's fast shutdown, before SIGKILL
	unparentedAfter = time.Second      // backends notice a dead postmaster, before SIGKILL
)

// stopLeftovers ends every Postgres process of the data directory. It is called
// only while this process holds the lock and runs no postmaster, so whatever is
// found outlived its parent.
func (s *Server) stopLeftovers() error {
	pids := processesIn(s.dataDir())
	if len(pids) > 0 {
		patience := unparentedAfter
		if pid := s.recordedPid(); slices.Contains(pids, pid) {
			s.log.Warn("a postgres that outlived its service is stopped", "pid", pid)
			_ = syscall.Kill(pid, syscall.SIGINT)
			_ = syscall.Kill(pid, syscall.SIGCONT) // a stopped process would not hear it
			patience = fastWithin
		}
		if remaining := s.awaitExit(patience); len(remaining) > 0 {
			s.log.Warn("postgres processes do not end and are killed", "pids", remaining)
			for _, pid := range remaining {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
			if remaining := s.awaitExit(fastWithin); len(remaining) > 0 {
				return fmt.Errorf("postgres processes %v still work in %s and cannot be killed", remaining, s.dataDir())
			}
		}
	}
	// Postgres trusts the process id in a stale file to be a postmaster's, and in
	// a restarted container that id belongs to somebody else.
	if err := os.Remove(filepath.Join(s.dataDir(), pidFile)); err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("remove a stale %s: %w", pidFile, err)
	}
	return nil
}

func (s *Server) awaitExit(patience time.Duration) (remaining []int) {
	deadline := time.Now().Add(patience)
	for {
		remaining = processesIn(s.dataDir())
		if len(remaining) == 0 || time.Now().After(deadline) {
			return remaining
		}
		time.Sleep(2 * pollEvery)
	}
}

// Processes returns the ids of the postmaster and of every process it started.
func (s *Server) Processes() []int { return processesIn(s.dataDir()) }
