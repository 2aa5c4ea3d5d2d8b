package servertest

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// commandWithin bounds a command that hangs; none takes this long.
const commandWithin = 2 * time.Minute

// Result is what a command has left.
type Result struct {
	Stdout, Stderr string
	Code           int
}

// Command is one call of the program that ends by itself.
type Command struct {
	Args  []string
	Env   []string // beside PATH, HOME and TMPDIR
	Dir   string   // working directory; empty: an empty folder
	Stdin string
}

// Run runs the program until it ends, whatever its exit code.
func Run(t testing.TB, c Command) Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), commandWithin)
	defer cancel()
	cmd := exec.CommandContext(ctx, Build(t), c.Args...)
	cmd.Env = environment(c.Env)
	cmd.Dir = c.Dir
	if cmd.Dir == "" {
		cmd.Dir = t.TempDir()
	}
	cmd.Stdin = strings.NewReader(c.Stdin)
	// A command may run a Postgres of its own, which must not be left behind.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 20 * time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) || ctx.Err() != nil {
		t.Fatalf("servertest: keyledger %s: %v\n%s", strings.Join(c.Args, " "), err, stderr.String())
	}
	return Result{Stdout: stdout.String(), Stderr: stderr.String(), Code: cmd.ProcessState.ExitCode()}
}

// environment is all that a server or command sees: a developer's own settings,
// and CI's, would lead it astray.
func environment(more []string) []string {
	// Under the race detector every process would wait a second before it ends.
	env := []string{"GORACE=atexit_sleep_ms=0"}
	for _, name := range []string{"PATH", "HOME", "TMPDIR", "GORACE", "GOCOVERDIR", "KEYLEDGER_POSTGRES_BIN"} {
		if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	return append(env, more...)
}
