package testkit

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"keyledger/internal/datadir"
	"keyledger/internal/postgres"
	"keyledger/migrations"
)

// Cluster is a whole Postgres of one test, durable like the real one, to be
// mistreated.
type Cluster struct {
	*postgres.Server
	t      testing.TB
	opts   postgres.Options
	paused []int
	killed int
}

// Postgres starts a private, migrated Postgres for one test. Options.Dir and
// Options.Logger have defaults.
func Postgres(t testing.TB, opts postgres.Options) *Cluster {
	t.Helper()
	if opts.Dir == "" {
		opts.Dir = PostgresDir(t)
	}
	if opts.Logger == nil {
		opts.Logger = Logger(t)
	}
	c := &Cluster{t: t, opts: opts}
	c.Start()
	return c
}

// PostgresDir returns a directory for postgres.Start in which everything is
// initialised and migrated: a copy, which takes a tenth of a first start.
func PostgresDir(t testing.TB) string {
	t.Helper()
	seed, err := sharedSeed()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(Dir(t), "postgres")
	if output, err := exec.CommandContext(t.Context(), "cp", "-a", seed, dir).CombinedOutput(); err != nil {
		t.Fatalf("testkit: copy a database directory: %v\n%s", err, output)
	}
	// Whoever was told where it is finds it there again after a stop.
	if err := datadir.At(dir).WriteFile("port", []byte(strconv.Itoa(Port(t))+"\n")); err != nil {
		t.Fatalf("testkit: %v", err)
	}
	return dir
}

// makeSeed initialises, migrates and stops a server.
func makeSeed(dir string) error {
	ctx, cancel := context.WithTimeout(context.Background(), startWithin)
	defer cancel()
	server, err := postgres.Start(ctx, postgres.Options{Dir: dir, Settings: map[string]string{"fsync": "off"}})
	if err != nil {
		return err
	}
	err = migrations.Apply(ctx, server.AdminURL(), slog.New(slog.DiscardHandler))
	if err := errors.Join(err, server.Stop(ctx)); err != nil {
		return err
	}
	// Every copy finds a port of its own.
	return os.Remove(filepath.Join(dir, "port"))
}

// Start brings the cluster back after Stop, on the same port.
func (c *Cluster) Start() {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), startWithin)
	defer cancel()
	server, err := postgres.Start(ctx, c.opts)
	if err != nil {
		c.t.Fatal(err)
	}
	c.Server = server
	c.t.Cleanup(func() { c.stop(server) })
}

// Stop shuts the cluster down, as maintenance would.
func (c *Cluster) Stop() {
	c.t.Helper()
	c.stop(c.Server)
}

func (c *Cluster) stop(server *postgres.Server) {
	c.t.Helper()
	c.Resume()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.t.Context()), startWithin)
	defer cancel()
	if err := server.Stop(ctx); err != nil {
		c.t.Errorf("testkit: stop postgres: %v", err)
	}
}

// Kill ends every process of the cluster with SIGKILL. The supervisor starts it
// again by itself; AwaitRestart waits for that.
func (c *Cluster) Kill() {
	c.t.Helper()
	c.killed = c.Pid()
	// The postmaster first: otherwise it would see its children die and recover.
	signal(syscall.SIGKILL, c.killed)
	signal(syscall.SIGKILL, c.Processes()...)
}

// AwaitRestart waits until the cluster serves again after Kill.
func (c *Cluster) AwaitRestart() {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), startWithin)
	defer cancel()
	if _, err := c.AwaitReady(ctx, c.killed); err != nil {
		c.t.Fatal(err)
	}
}

// Pause stops every process of the cluster: connections stay and nothing
// answers, as when a machine hangs.
func (c *Cluster) Pause() {
	c.t.Helper()
	// The postmaster first, so that no process is born that would not be stopped.
	signal(syscall.SIGSTOP, c.Pid())
	c.paused = c.Processes()
	signal(syscall.SIGSTOP, c.paused...)
}

// Resume lets a paused cluster go on where it was.
func (c *Cluster) Resume() {
	signal(syscall.SIGCONT, c.paused...)
	c.paused = nil
}

func signal(sig syscall.Signal, pids ...int) {
	for _, pid := range pids {
		if pid > 0 {
			_ = syscall.Kill(pid, sig) // it may have ended
		}
	}
}
