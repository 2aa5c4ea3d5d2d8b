package postgres

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"keyledger/internal/datadir"
)

const (
	firstPause   = 10 * time.Millisecond // before a restart; doubled for every failed one, up to longestPause
	longestPause = 5 * time.Second
	pollEvery    = 5 * time.Millisecond
	killedWithin = 2 * time.Second // after an immediate shutdown, before SIGKILL
)

var (
	errStopped   = errors.New("the database was stopped")
	errPortTaken = errors.New("the port is taken")
)

// Options say where the server lives and how it differs from the default.
type Options struct {
	// Dir belongs to this package alone. It is created where it is missing.
	Dir string
	// Logger hears of starts, stops and crashes. What Postgres itself says goes
	// to postgres.log in Dir.
	Logger *slog.Logger
	// Settings are Postgres settings that replace the built-in ones, by name.
	Settings map[string]string
	// Binaries is the directory of initdb and postgres. Where it is empty,
	// KEYLEDGER_POSTGRES_BIN, PATH and the usual places are searched.
	Binaries string
	// Mirror replaces Maven Central as the place to download Postgres from when
	// this machine has none.
	Mirror string
}

// Server is a running Postgres and its supervisor.
type Server struct {
	log       *slog.Logger
	dir       string // Options.Dir, absolute
	socketDir string
	binaries  binaries
	account   *account // nil: the database runs as this process's own user
	passwords passwords
	settings  map[string]string
	lock      *datadir.Lock

	stop     chan struct{} // closed: no restarts any more
	stopOnce sync.Once
	done     chan struct{} // closed: no postmaster any more, for good
	tidyOnce sync.Once
	tidyErr  error

	mu      sync.Mutex
	port    int
	process *os.Process   // nil while no postmaster runs
	ready   bool          // the postmaster accepts connections
	changed chan struct{} // closed and replaced whenever process or ready change
	err     error         // why supervision ended
}

// Start brings up the server of a directory, initialising it the first time,
// and returns when it accepts connections. ctx bounds the start alone. It takes
// as long as crash recovery takes; a fresh directory takes about a second.
func Start(ctx context.Context, opts Options) (_ *Server, err error) {
	dir, err := filepath.Abs(opts.Dir)
	if err != nil {
		return nil, fmt.Errorf("resolve the database directory: %w", err)
	}
	s := &Server{
		log: opts.Logger, dir: dir, settings: opts.Settings,
		stop: make(chan struct{}), done: make(chan struct{}), changed: make(chan struct{}),
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.account, err = findAccount(s.dataDir()); err != nil {
		return nil, err
	}
	if err := s.prepareDir(); err != nil {
		return nil, err
	}
	// The lock comes before everything that touches files or processes: what
	// follows would take a live server's postmaster for a leftover.
	if s.lock, err = datadir.AcquireLock(s.dir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = s.lock.Release()
		}
	}()
	if s.binaries, err = s.findBinaries(ctx, opts); err != nil {
		return nil, err
	}
	if err := s.stopLeftovers(); err != nil {
		return nil, err
	}
	if s.passwords, err = s.readPasswords(); err != nil {
		return nil, err
	}
	if err := s.initialise(ctx); err != nil {
		return nil, err
	}
	if err := s.prepareSocketDir(); err != nil {
		return nil, err
	}
	for attempt := 1; ; attempt++ {
		if err := s.choosePort(); err != nil {
			return nil, err
		}
		if err := s.writeConfiguration(); err != nil {
			return nil, err
		}
		err := s.launch(ctx)
		if err == nil {
			break
		}
		// Somebody took the port after it was found free.
		if !errors.Is(err, errPortTaken) || attempt == 5 {
			return nil, err
		}
	}
	if err := s.provision(ctx); err != nil {
		_ = s.Stop(context.WithoutCancel(ctx))
		return nil, err
	}
	return s, nil
}

// launch starts the supervisor and waits until the first postmaster is ready. A
// postmaster that fails before that is an error, not a reason to try again.
func (s *Server) launch(ctx context.Context) error {
	s.done = make(chan struct{})
	go s.supervise()
	started := time.Now()
	patience := time.NewTicker(5 * time.Second)
	defer patience.Stop()
	for {
		serving, changed := s.state()
		if serving != 0 {
			return nil
		}
		select {
		case <-changed:
		case <-s.done:
			return s.Err()
		case <-patience.C:
			s.log.Info("postgres is still starting, perhaps recovering from a crash", "for", time.Since(started).Round(time.Second))
		case <-ctx.Done():
			s.stopOnce.Do(func() { close(s.stop) })
			s.signal(syscall.SIGQUIT)
			<-s.done
			return fmt.Errorf("start postgres: %w", context.Cause(ctx))
		}
	}
}

// supervise keeps a postmaster running until Stop.
//
// The kernel sends the postmaster SIGINT, a fast shutdown, when the thread that
// forked it ends. So this goroutine keeps its thread for itself, and stays on it
// from the first fork to the last exit: no process of ours survives a SIGKILL of
// the service.
func (s *Server) supervise() {
	runtime.LockOSThread()
	defer close(s.done)
	pause, first := firstPause, true
	for {
		wasReady, err := s.runPostmaster()
		if s.stopping() {
			s.finish(errStopped)
			return
		}
		if first && !wasReady {
			s.finish(err)
			return
		}
		first = false
		if _, statErr := os.Stat(filepath.Join(s.dataDir(), versionFile)); errors.Is(statErr, os.ErrNotExist) {
			s.log.Error("postgres is gone for good: its data directory was removed", "error", err)
			s.finish(fmt.Errorf("the database's data directory was removed: %w", err))
			return
		}
		// Who was killed comes back at once; who cannot start is asked ever more rarely.
		if wasReady {
			pause = firstPause
		}
		s.log.Error("postgres died and is started again", "error", err, "pause", pause)
		select {
		case <-time.After(pause):
		case <-s.stop:
			s.finish(errStopped)
			return
		}
		pause = min(2*pause, longestPause)
		// Backends notice a dead postmaster by themselves, except those that are
		// busy or stopped; while one lives, its shared memory keeps the next
		// postmaster from starting.
		if err := s.stopLeftovers(); err != nil {
			s.log.Error("processes of the dead postgres remain", "error", err)
		}
	}
}

// runPostmaster starts one postmaster and returns when it has ended, with why.
func (s *Server) runPostmaster() (wasReady bool, err error) {
	output, err := s.openLog()
	if err != nil {
		return false, err
	}
	defer output.close()
	cmd := exec.Command(s.binaries.postgres(), s.arguments()...)
	cmd.Dir = s.dir
	cmd.Env = environment()
	cmd.Stdout, cmd.Stderr = output.file, output.file
	cmd.SysProcAttr = s.account.attributes()
	// Its own group, so that Ctrl-C reaches the service alone, which then stops
	// the database after its last request.
	cmd.SysProcAttr.Setpgid = true
	dieWithParent(cmd.SysProcAttr)
	if err := cmd.Start(); err != nil {
		return false, fmt.Errorf("start postgres: %w", err)
	}
	s.setProcess(cmd.Process)
	exited := make(chan struct{})
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		s.watch(cmd.Process.Pid, output, exited)
	}()
	err = cmd.Wait()
	close(exited)
	<-watched
	wasReady = s.clearProcess()
	if err == nil {
		err = errors.New("it shut down")
	}
	if wasReady {
		return true, fmt.Errorf("postgres ended: %w", err) // postgres.log has the rest
	}
	said := output.tail()
	if strings.Contains(said, "Address already in use") {
		return false, fmt.Errorf("%w: %d", errPortTaken, s.Port())
	}
	return false, fmt.Errorf("postgres ended: %w%s", err, said)
}

// watch announces when the postmaster accepts connections, and keeps its log
// from growing without bound.
func (s *Server) watch(pid int, output *logFile, exited <-chan struct{}) {
	started := time.Now()
	poll := time.NewTicker(pollEvery)
	defer poll.Stop()
	for !s.acceptsConnections(pid) {
		select {
		case <-poll.C:
		case <-exited:
			return
		}
	}
	s.setReady()
	s.log.Info("postgres is ready", "pid", pid, "port", s.Port(), "version", s.binaries.version,
		"took", time.Since(started).Round(time.Millisecond))
	poll.Reset(trimEvery)
	for {
		select {
		case <-poll.C:
			output.trim(s.log)
		case <-exited:
			return
		}
	}
}

// acceptsConnections reads what the postmaster says of itself: the first line
// of its pid file is its process id, the eighth its state.
func (s *Server) acceptsConnections(pid int) bool {
	text, err := os.ReadFile(filepath.Join(s.dataDir(), pidFile))
	if err != nil {
		return false
	}
	lines := strings.Split(string(text), "\n")
	return len(lines) > 7 && lines[0] == strconv.Itoa(pid) && strings.TrimSpace(lines[7]) == "ready"
}

// Stop shuts the database down: sessions are ended, what was committed is
// written out. When ctx ends first it stops at once, and the next start recovers.
func (s *Server) Stop(ctx context.Context) error {
	s.stopOnce.Do(func() { close(s.stop) })
	s.signal(syscall.SIGINT)
	select {
	case <-s.done:
	case <-ctx.Done():
		s.log.Warn("postgres does not stop in time and is stopped at once", "error", context.Cause(ctx))
		s.signal(syscall.SIGQUIT)
		select {
		case <-s.done:
		case <-time.After(killedWithin):
			s.signal(syscall.SIGKILL)
			<-s.done
		}
	}
	// Once: with the lock given back, the directory may be another server's.
	s.tidyOnce.Do(func() {
		s.tidyErr = s.stopLeftovers()
		s.removeSocketDir()
		if err := s.lock.Release(); s.tidyErr == nil {
			s.tidyErr = err
		}
		if cause := s.Err(); s.tidyErr == nil && !errors.Is(cause, errStopped) {
			s.tidyErr = cause
		}
	})
	return s.tidyErr
}

// AdminURL is the superuser's URL over loopback, for migrations and tools.
func (s *Server) AdminURL() string {
	return s.tcpURL(adminRole, s.passwords.admin)
}

// URL is the restricted service login's URL over loopback.
func (s *Server) URL() string {
	return s.tcpURL(serviceRole, s.passwords.service)
}

// SocketURL is URL over the Unix socket.
func (s *Server) SocketURL() string {
	u := url.URL{
		Scheme: "postgres", User: url.UserPassword(serviceRole, s.passwords.service), Path: "/" + database,
		RawQuery: url.Values{"host": {s.socketDir}, "port": {strconv.Itoa(s.Port())}, "sslmode": {"disable"}}.Encode(),
	}
	return u.String()
}

func (s *Server) tcpURL(role, password string) string {
	u := url.URL{
		Scheme: "postgres", User: url.UserPassword(role, password),
		Host: fmt.Sprintf("127.0.0.1:%d", s.Port()), Path: "/" + database, RawQuery: "sslmode=disable",
	}
	return u.String()
}

// Port is the loopback port, the same for the life of the server.
func (s *Server) Port() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.port
}

// Pid is the postmaster's process id, 0 while there is none.
func (s *Server) Pid() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process == nil {
		return 0
	}
	return s.process.Pid
}

// Done is closed when there will be no database any more: after Stop, or when
// the data directory was removed. A crash does not close it.
func (s *Server) Done() <-chan struct{} { return s.done }

// Err says why Done is closed.
func (s *Server) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// AwaitReady waits until a postmaster other than previous accepts connections,
// and returns its process id. With previous 0, any will do.
func (s *Server) AwaitReady(ctx context.Context, previous int) (pid int, err error) {
	for {
		serving, changed := s.state()
		if serving != 0 && serving != previous {
			return serving, nil
		}
		select {
		case <-changed:
		case <-s.done:
			return 0, s.Err()
		case <-ctx.Done():
			return 0, fmt.Errorf("wait for postgres: %w", context.Cause(ctx))
		}
	}
}
