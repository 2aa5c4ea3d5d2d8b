package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"keyledger/domain"
	"keyledger/internal/datadir"
)

// server is keyledger serve, built and started as its users would.
type server struct {
	program string
	dir     string
	process *exec.Cmd
	output  *bytes.Buffer
	took    time.Duration // from its start until it was ready
	datadir.Endpoints
}

// startServer starts a server on the parts that it brings along, or on the
// database of a ledger.
func startServer(ctx context.Context, l *ledger) (_ *server, err error) {
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
	s.process.Env = append(os.Environ(), "KEYLEDGER_DATA_DIR="+filepath.Join(dir, "data"), "LOG_LEVEL=warn", "KEYLEDGER_MASTER_KEY="+hex.EncodeToString(masterKey()))
	if l != nil {
		s.process.Env = append(s.process.Env, "DATABASE_URL="+l.url, "KEYLEDGER_DATABASE_ADMIN_URL="+l.adminURL)
	}
	s.process.Stderr = s.output
	s.process.Cancel = func() error { return s.process.Process.Signal(syscall.SIGTERM) }
	s.process.WaitDelay = 30 * time.Second
	began := time.Now()
	if err := s.process.Start(); err != nil {
		return nil, err
	}
	if err := s.awaitReady(ctx); err != nil {
		return nil, fmt.Errorf("%w: %s", err, s.output)
	}
	s.took = time.Since(began)
	return s, nil
}

// awaitReady polls for endpoints.json, which a server writes when it serves, and
// then asks whether it is ready.
func (s *server) awaitReady(ctx context.Context) (err error) {
	poll := time.NewTicker(5 * time.Millisecond)
	defer poll.Stop()
	deadline := time.After(2 * time.Minute)
	for {
		if s.Endpoints, err = datadir.At(filepath.Join(s.dir, "data")).ReadEndpoints(); err == nil {
			if answer, err := http.Get(s.HTTP + "/readyz"); err == nil {
				_ = answer.Body.Close()
				if answer.StatusCode == http.StatusOK {
					return nil
				}
			}
		}
		select {
		case <-poll.C:
		case <-deadline:
			return errors.New("the server is not ready after two minutes")
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// bootstrap makes an admin key without a limit.
func (s *server) bootstrap(ctx context.Context) (key string, err error) {
	return s.makeKey(ctx, "--organization", string(organization), "--rate-limit", "0")
}

// bootstrapSystem makes a key that may run verifiers.
func (s *server) bootstrapSystem(ctx context.Context) (key string, err error) {
	return s.makeKey(ctx, "--system", "--scopes", string(domain.ScopeSystemVerify))
}

func (s *server) makeKey(ctx context.Context, arguments ...string) (key string, err error) {
	c := exec.CommandContext(ctx, s.program, append([]string{"bootstrap", "--json"}, arguments...)...)
	c.Env = append(os.Environ(), "KEYLEDGER_DATA_DIR="+filepath.Join(s.dir, "data"), "KEYLEDGER_MASTER_KEY="+hex.EncodeToString(masterKey()))
	var stderr strings.Builder
	c.Stderr = &stderr
	output, err := c.Output()
	if err != nil {
		return "", fmt.Errorf("keyledger bootstrap: %w: %s", err, stderr.String())
	}
	var made struct{ Key string }
	err = json.Unmarshal(output, &made)
	return made.Key, err
}

// metrics reads what the server publishes, by name and labels.
func (s *server) metrics() (map[string]float64, error) {
	answer, err := http.Get(s.HTTP + "/metrics")
	if err != nil {
		return nil, err
	}
	defer func() { _ = answer.Body.Close() }()
	values := map[string]float64{}
	lines := bufio.NewScanner(answer.Body)
	for lines.Scan() {
		name, text, _ := strings.Cut(lines.Text(), " ")
		if value, err := strconv.ParseFloat(text, 64); err == nil && !strings.HasPrefix(name, "#") {
			values[name] = value
		}
	}
	return values, lines.Err()
}

const settleWithin = 3 * time.Minute

// settle waits until everything that follows the log has come to its end, so that
// what is measured next does not pay for what went before.
func (s *server) settle(ctx context.Context) error {
	return s.await(ctx, func(map[string]float64) bool { return true }, func() {})
}

// await waits until something holds, says so, and then waits for the followers of the log.
func (s *server) await(ctx context.Context, holds func(map[string]float64) bool, held func()) error {
	poll := time.NewTicker(50 * time.Millisecond) // a look costs the server some milliseconds
	defer poll.Stop()
	deadline := time.After(settleWithin)
	waiting := true
	for {
		values, err := s.metrics()
		if err != nil {
			return err
		}
		if waiting && holds(values) {
			waiting = false
			held()
		}
		behind := 0.0
		for name, value := range values {
			if strings.Contains(name, "_lag_positions") {
				behind += max(0, value)
			}
		}
		if behind == 0 && !waiting {
			return nil
		}
		select {
		case <-poll.C:
		case <-deadline:
			return fmt.Errorf("the server is still %.0f events behind after %v", behind, settleWithin)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
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

// helper is a process with a part of this very program.
type helper struct {
	process *exec.Cmd
	address string // where it serves
	once    sync.Once
}

// databaseVariable tells a helper its database.
const databaseVariable = "KEYLEDGER_BENCH_DATABASE"

func startHelper(ctx context.Context, database string, arguments ...string) (*helper, error) {
	c, err := child(ctx, database, arguments...)
	if err != nil {
		return nil, err
	}
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
		return nil, fmt.Errorf("%s said no address: %w", arguments[0], err)
	}
	return h, nil
}

// child is a command that runs a part of this program.
func child(ctx context.Context, database string, arguments ...string) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	c := exec.CommandContext(ctx, self, append([]string{"-child"}, arguments...)...)
	c.Env = append(os.Environ(), databaseVariable+"="+database)
	c.Stderr = os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return c, nil
}

func (h *helper) stop() {
	h.once.Do(func() {
		_ = h.process.Process.Kill()
		_ = h.process.Wait()
	})
}
