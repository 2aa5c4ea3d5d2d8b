package postgres

import (
	"os"
	"syscall"
)

// state returns the process id of the postmaster if it accepts connections, else
// 0, and what is closed when that changes.
func (s *Server) state() (serving int, changed <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process != nil && s.ready {
		serving = s.process.Pid
	}
	return serving, s.changed
}

func (s *Server) setProcess(p *os.Process) {
	s.mu.Lock()
	s.process = p
	s.announce()
	s.mu.Unlock()
	// Stop may have found no process to signal a moment ago.
	if s.stopping() {
		s.signal(syscall.SIGINT)
	}
}

func (s *Server) setReady() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ready = true
	s.announce()
}

func (s *Server) clearProcess() (wasReady bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	wasReady = s.ready
	s.process, s.ready = nil, false
	s.announce()
	return wasReady
}

func (s *Server) announce() {
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *Server) finish(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

func (s *Server) signal(sig syscall.Signal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process != nil {
		_ = s.process.Signal(sig) // it may have ended
	}
}

func (s *Server) stopping() bool {
	select {
	case <-s.stop:
		return true
	default:
		return false
	}
}
