// Package lifecycle runs the parts of a process, and stops them in the reverse
// of the order in which they were started: each part may use the earlier ones
// until its very end.
package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// Group is the parts of a process. It is used by one goroutine.
type Group struct {
	logger   *slog.Logger
	patience time.Duration
	parts    []*part
	failed   chan error
}

type part struct {
	name   string
	cancel context.CancelFunc
	done   chan struct{}
	err    error // valid once done is closed
}

// New makes an empty group. patience bounds how long the end of one part is
// waited for.
func New(patience time.Duration, logger *slog.Logger) *Group {
	return &Group{logger: logger, patience: patience, failed: make(chan error, 1)}
}

// Go runs a part until its context ends. A part that ends before that is a
// failure, even without an error.
func (g *Group) Go(name string, run func(ctx context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	p := &part{name: name, cancel: cancel, done: make(chan struct{})}
	g.parts = append(g.parts, p)
	go func() {
		p.err = run(ctx)
		if ctx.Err() == nil {
			g.fail(p)
		}
		close(p.done)
	}()
}

func (g *Group) fail(p *part) {
	err := p.err
	if err == nil {
		err = errors.New("nobody asked it to")
	}
	p.err = nil // said here, and not again at the end
	select {
	case g.failed <- fmt.Errorf("%s ended: %w", p.name, err):
	default: // the first failure counts, the others follow from it
		g.logger.Error("a part of the server ended", "part", p.name, "error", err)
	}
}

// Failed gives the first failure of a part.
func (g *Group) Failed() <-chan error { return g.failed }

// Stop stops all parts, the newest first. A part that does not end in time is
// left behind, and the next one is stopped.
func (g *Group) Stop() error {
	var errs []error
	for i := len(g.parts) - 1; i >= 0; i-- {
		p := g.parts[i]
		started := time.Now()
		p.cancel()
		timeout := time.NewTimer(g.patience)
		select {
		case <-p.done:
			if p.err != nil && !errors.Is(p.err, context.Canceled) {
				errs = append(errs, fmt.Errorf("stop %s: %w", p.name, p.err))
			}
			g.logger.Debug("stopped", "part", p.name, "took", time.Since(started))
		case <-timeout.C:
			errs = append(errs, fmt.Errorf("stop %s: it did not end within %s", p.name, g.patience))
		}
		timeout.Stop()
	}
	g.parts = nil
	return errors.Join(errs...)
}
