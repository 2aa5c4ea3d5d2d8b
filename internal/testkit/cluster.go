package testkit

import (
	"context"
	"path/filepath"
	"syscall"
	"testing"

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
		opts.Dir = filepath.Join(Dir(t), "postgres")
	}
	if opts.Logger == nil {
		opts.Logger = Logger(t)
	}
	c := &Cluster{t: t, opts: opts}
	c.Start()
	if err := migrations.Apply(t.Context(), c.AdminURL(), opts.Logger); err != nil {
		t.Fatal(err)
	}
	return c
}

// Start brings the cluster back after Stop, on the same port if it is free.
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
