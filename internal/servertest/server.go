package servertest

import (
	"bufio"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"keyledger/internal/datadir"
	"keyledger/internal/probe"
	"keyledger/internal/testkit"
)

const (
	// readyLine is what a server logs when /readyz says yes.
	readyLine = "keyledger is ready"
	// startWithin and stopWithin bound what a busy machine may need; nothing waits
	// this long.
	startWithin = 2 * time.Minute
	stopWithin  = time.Minute
)

// Options of a server. The zero value runs on embedded parts, in a data
// directory of the test, on a free port.
type Options struct {
	DataDir string
	Listen  string   // default 127.0.0.1:0
	Env     []string // beside PATH, HOME and TMPDIR; "NAME=value"
	Args    []string // after "serve"
	// Program is what runs, with the argument serve. Default: Keyledger. Another one
	// says that it is ready as Keyledger does.
	Program Program
}

// Server is a running process of the program.
type Server struct {
	t         testing.TB
	options   Options
	process   *os.Process
	endpoints datadir.Endpoints
	output    *capture
	logs      *capture
	ready     chan struct{} // closed by the ready line
	ended     chan struct{} // closed when the process is gone and all it said was read
	code      int           // valid once ended is closed
	expected  bool          // its end was asked for
}

// Start starts a server and returns when it is ready.
func Start(t testing.TB, options Options) *Server {
	t.Helper()
	s := Launch(t, options)
	s.AwaitReady()
	return s
}

// Launch starts a server and returns at once.
func Launch(t testing.TB, options Options) *Server {
	t.Helper()
	if options.DataDir == "" {
		options.DataDir = filepath.Join(testkit.Dir(t), "data")
	}
	if options.Program == (Program{}) {
		options.Program = Keyledger
	}
	if options.Listen == "" {
		options.Listen = "127.0.0.1:0"
	}
	s := &Server{
		t: t, options: options, output: newCapture(), logs: newCapture(),
		ready: make(chan struct{}), ended: make(chan struct{}), code: -1,
	}
	cmd := exec.Command(options.Program.Build(t), append([]string{"serve"}, options.Args...)...)
	cmd.Env = environment(append([]string{
		"KEYLEDGER_DATA_DIR=" + options.DataDir, "KEYLEDGER_LISTEN=" + options.Listen, "KEYLEDGER_LOG_FORMAT=json",
	}, options.Env...))
	cmd.Dir = t.TempDir()
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	dieWithParent(cmd)
	started := make(chan error)
	go s.run(cmd, stdout, stderr, started)
	if err := <-started; err != nil {
		t.Fatalf("servertest: start the server: %v", err)
	}
	t.Cleanup(s.cleanUp)
	return s
}

// run starts the process and waits for it on one thread: the kernel ends the
// process with the thread that started it.
func (s *Server) run(cmd *exec.Cmd, stdout, stderr io.Reader, started chan<- error) {
	runtime.LockOSThread()
	if err := cmd.Start(); err != nil {
		started <- err
		return
	}
	s.process = cmd.Process
	started <- nil
	var reading sync.WaitGroup
	reading.Go(func() { s.output.read(stdout, func(string) {}) })
	reading.Go(func() {
		once := sync.Once{}
		s.logs.read(stderr, func(line string) {
			if strings.Contains(line, readyLine) {
				once.Do(func() { close(s.ready) })
			}
		})
	})
	reading.Wait()
	_ = cmd.Wait()
	s.code = cmd.ProcessState.ExitCode()
	close(s.ended)
}

// AwaitReady returns when /readyz answers 200, and fails the test when the
// server ends before.
func (s *Server) AwaitReady() {
	s.t.Helper()
	select {
	case <-s.ready:
	case <-s.ended:
		s.t.Fatalf("servertest: the server ended with code %d before it was ready:\n%s", s.code, s.Logs())
	case <-time.After(startWithin):
		s.t.Fatalf("servertest: the server is not ready after %s:\n%s", startWithin, s.Logs())
	}
	var err error
	if s.endpoints, err = datadir.At(s.options.DataDir).ReadEndpoints(); err != nil {
		s.t.Fatalf("servertest: %v\n%s", err, s.Logs())
	}
	if err := probe.At(s.URL()).Ready(s.t.Context()); err != nil {
		s.t.Fatalf("servertest: the server says that it is ready, and is not: %v\n%s", err, s.Logs())
	}
}

// Ready is closed when the server has said that it is ready.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// Endpoints are where the server listens, with credentials.
func (s *Server) Endpoints() datadir.Endpoints { return s.endpoints }

// URL is the server's address, such as http://127.0.0.1:41234.
func (s *Server) URL() string { return s.endpoints.HTTP }

// DataDir is where the server keeps its data.
func (s *Server) DataDir() string { return s.options.DataDir }

// Pid is the server's process id.
func (s *Server) Pid() int { return s.process.Pid }

// Logs is what the server has written to standard error so far.
func (s *Server) Logs() string { return s.logs.String() }

// Output is what the server has written to standard output so far.
func (s *Server) Output() string { return s.output.String() }

// AwaitLog returns when the server has written a text to standard error.
func (s *Server) AwaitLog(text string) {
	s.t.Helper()
	patience := time.After(startWithin)
	for {
		said, more := s.logs.state()
		if strings.Contains(said, text) {
			return
		}
		select {
		case <-more:
		case <-s.ended:
			if !strings.Contains(s.Logs(), text) {
				s.t.Fatalf("servertest: the server ended with code %d and never said %q:\n%s", s.code, text, s.Logs())
			}
			return
		case <-patience:
			s.t.Fatalf("servertest: the server has not said %q:\n%s", text, s.Logs())
		}
	}
}

// Kill ends the server with SIGKILL and returns when it is gone. Its Postgres
// is then on its way down, or already found by the next start.
func (s *Server) Kill() {
	s.t.Helper()
	s.expected = true
	s.signal(syscall.SIGKILL)
	s.await(stopWithin)
}

// Stop ends the server as an operator does, and fails the test when it does not
// end well.
func (s *Server) Stop() {
	s.t.Helper()
	s.expected = true
	s.signal(syscall.SIGTERM)
	s.await(stopWithin)
	if s.code != 0 {
		s.t.Errorf("servertest: the server ended with code %d:\n%s", s.code, s.Logs())
	}
}

// Wait returns the exit code of a server that ends by itself.
func (s *Server) Wait() (code int) {
	s.t.Helper()
	s.expected = true
	s.await(stopWithin)
	return s.code
}

// Ended is closed when the process is gone.
func (s *Server) Ended() <-chan struct{} { return s.ended }

// Pause stops the server where it is, with every thread; its Postgres goes on.
func (s *Server) Pause() { s.signal(syscall.SIGSTOP) }

// Resume lets a paused server go on.
func (s *Server) Resume() { s.signal(syscall.SIGCONT) }

// Signal sends the server any other signal.
func (s *Server) Signal(signal syscall.Signal) { s.signal(signal) }

// KillPostgres ends the postmaster of the server's embedded Postgres with SIGKILL.
func (s *Server) KillPostgres() {
	s.t.Helper()
	pid := s.PostgresPid()
	if pid == 0 {
		s.t.Fatal("servertest: no Postgres runs in the data directory")
	}
	_ = syscall.Kill(pid, syscall.SIGKILL)
}

// PostgresPid is the process id of the embedded Postgres, 0 when there is none.
func (s *Server) PostgresPid() int {
	text, err := os.ReadFile(filepath.Join(s.options.DataDir, "postgres", "data", "postmaster.pid"))
	if err != nil {
		return 0
	}
	first, _, _ := strings.Cut(string(text), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(first))
	if err != nil || !runs(pid) {
		return 0
	}
	return pid
}

// runs says whether a process is the Postgres that left its id. Ids come again, and one that
// has ended keeps its own until somebody has asked how.
func runs(pid int) bool {
	if syscall.Kill(pid, 0) != nil {
		return false
	}
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat") // only Linux tells more
	return err != nil || strings.Contains(string(stat), " (postgres) ") && !strings.Contains(string(stat), ") Z ")
}

// Key is what keyledger bootstrap --json prints.
type Key struct {
	ID             string `json:"id"`
	OrganizationID string `json:"organizationId"`
	Key            string `json:"key"`
}

// Bootstrap makes an admin key of an organization and returns the plain key.
// More arguments are handed to the command.
func (s *Server) Bootstrap(organization string, more ...string) string {
	s.t.Helper()
	return s.BootstrapKey(append([]string{"--organization", organization}, more...)...).Key
}

// BootstrapKey runs keyledger bootstrap with any arguments.
func (s *Server) BootstrapKey(arguments ...string) Key {
	s.t.Helper()
	result := s.Run(append([]string{"bootstrap", "--json"}, arguments...)...)
	if result.Code != 0 {
		s.t.Fatalf("servertest: keyledger bootstrap ended with code %d:\n%s", result.Code, result.Stderr)
	}
	var key Key
	if err := json.Unmarshal([]byte(result.Stdout), &key); err != nil {
		s.t.Fatalf("servertest: keyledger bootstrap --json printed no JSON: %v", err)
	}
	return key
}

// Run runs another command of the program on the server's data directory, with
// the server's environment.
func (s *Server) Run(arguments ...string) Result {
	s.t.Helper()
	return Run(s.t, Command{Args: arguments, Env: append([]string{"KEYLEDGER_DATA_DIR=" + s.options.DataDir}, s.options.Env...)})
}

func (s *Server) signal(signal syscall.Signal) { _ = s.process.Signal(signal) } // it may have ended

func (s *Server) await(patience time.Duration) {
	s.t.Helper()
	select {
	case <-s.ended:
	case <-time.After(patience):
		s.signal(syscall.SIGQUIT) // shows where every goroutine stands
		<-s.ended
		s.t.Fatalf("servertest: the server did not end within %s:\n%s", patience, s.Logs())
	}
}

func (s *Server) cleanUp() {
	select {
	case <-s.ended:
		if !s.expected {
			s.t.Errorf("servertest: the server ended by itself, with code %d:\n%s", s.code, s.Logs())
		}
	default:
		s.Resume()
		s.signal(syscall.SIGTERM)
		select {
		case <-s.ended:
		case <-time.After(stopWithin):
			s.signal(syscall.SIGKILL)
			<-s.ended
			s.t.Errorf("servertest: the server did not end within %s:\n%s", stopWithin, s.Logs())
		}
	}
	// The Postgres of a killed server writes for a moment longer, and the data
	// directory is about to be removed. Unless it is another server's by now.
	poll := time.NewTicker(5 * time.Millisecond)
	defer poll.Stop()
	patience := time.After(stopWithin)
	for s.PostgresPid() != 0 {
		if _, held, err := datadir.At(s.options.DataDir).Holder(); err != nil || held {
			break
		}
		select {
		case <-poll.C:
		case <-patience:
			_ = syscall.Kill(s.PostgresPid(), syscall.SIGKILL)
			s.t.Errorf("servertest: Postgres outlived its server")
			return
		}
	}
	if s.t.Failed() {
		s.t.Logf("servertest: the server's log:\n%s", s.Logs())
	}
}

// capture keeps what a process says.
type capture struct {
	mu   sync.Mutex
	text strings.Builder
	more chan struct{} // closed when there is more
}

func newCapture() *capture { return &capture{more: make(chan struct{})} }

func (c *capture) read(from io.Reader, line func(string)) {
	lines := bufio.NewReader(from)
	for {
		text, err := lines.ReadString('\n')
		c.mu.Lock()
		c.text.WriteString(text)
		close(c.more)
		c.more = make(chan struct{})
		c.mu.Unlock()
		line(text)
		if err != nil {
			return
		}
	}
}

func (c *capture) state() (text string, more <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.text.String(), c.more
}

func (c *capture) String() string {
	text, _ := c.state()
	return text
}
