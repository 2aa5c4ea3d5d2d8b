package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"keyledger/internal/datadir"
)

// server is keyledger serve, built and started as its users would.
type server struct {
	program string
	dir     string
	process *exec.Cmd
	output  *bytes.Buffer
	datadir.Endpoints
	key string // an admin key without a limit
}

func startServer(ctx context.Context) (_ *server, err error) {
	dir, err := os.MkdirTemp("", "keyledger-bench-")
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(dir, 0o711); err != nil { // Postgres runs as another user, who must be able to pass
		return nil, err
	}
	s := &server{program: filepath.Join(dir, "keyledger"), dir: dir, output: &bytes.Buffer{}}
	defer func() {
		if err != nil {
			s.stop()
		}
	}()
	if output, err := exec.CommandContext(ctx, "go", "build", "-o", s.program, "./cmd/keyledger").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build keyledger: %w: %s", err, output)
	}
	s.process = exec.CommandContext(ctx, s.program, "serve", "--listen", "127.0.0.1:0", "--default-rate-limit", "100000000", "--log-format", "text")
	s.process.Env = append(os.Environ(), "KEYLEDGER_DATA_DIR="+filepath.Join(dir, "data"), "LOG_LEVEL=warn")
	s.process.Stderr = s.output
	s.process.Cancel = func() error { return s.process.Process.Signal(syscall.SIGTERM) }
	s.process.WaitDelay = 30 * time.Second
	if err := s.process.Start(); err != nil {
		return nil, err
	}
	if err := s.awaitReady(ctx); err != nil {
		return nil, fmt.Errorf("%w: %s", err, s.output)
	}
	output, err := s.command(ctx, "bootstrap", "--json", "--organization", string(organization), "--rate-limit", "0")
	if err != nil {
		return nil, err
	}
	var key struct{ Key string }
	if err := json.Unmarshal(output, &key); err != nil {
		return nil, err
	}
	s.key = key.Key
	return s, nil
}

// awaitReady polls for endpoints.json, which a server writes when it serves.
func (s *server) awaitReady(ctx context.Context) error {
	poll := time.NewTicker(20 * time.Millisecond)
	defer poll.Stop()
	deadline := time.After(time.Minute)
	for {
		if _, err := s.command(ctx, "healthcheck"); err == nil {
			s.Endpoints, err = datadir.At(filepath.Join(s.dir, "data")).ReadEndpoints()
			return err
		}
		select {
		case <-poll.C:
		case <-deadline:
			return errors.New("the server is not ready after a minute")
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *server) command(ctx context.Context, arguments ...string) ([]byte, error) {
	c := exec.CommandContext(ctx, s.program, arguments...)
	c.Env = append(os.Environ(), "KEYLEDGER_DATA_DIR="+filepath.Join(s.dir, "data"))
	var stderr strings.Builder
	c.Stderr = &stderr
	output, err := c.Output()
	if err != nil {
		return nil, fmt.Errorf("keyledger %s: %w: %s", arguments[0], err, stderr.String())
	}
	return output, nil
}

func (s *server) stop() {
	if s.process != nil && s.process.Process != nil {
		_ = s.process.Process.Signal(syscall.SIGTERM)
		_ = s.process.Wait()
	}
	_ = os.RemoveAll(s.dir)
}

// address is where the server listens, without its scheme.
func (s *server) address() string { return strings.TrimPrefix(s.HTTP, "http://") }

// helper runs a part of this very program in a process of its own, so that a
// baseline has a runtime and a scheduler to itself, as the server has.
type helper struct {
	process *exec.Cmd
	address string
	once    sync.Once
}

func startHelper(ctx context.Context, arguments ...string) (*helper, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	c := exec.CommandContext(ctx, self, arguments...)
	c.Stderr = os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := c.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := c.Start(); err != nil {
		return nil, err
	}
	h := &helper{process: c}
	if _, err := fmt.Fscanln(out, &h.address); err != nil {
		h.stop()
		return nil, fmt.Errorf("the baseline said no address: %w", err)
	}
	return h, nil
}

func (h *helper) stop() {
	h.once.Do(func() {
		_ = h.process.Process.Kill()
		_ = h.process.Wait()
	})
}
