package lifecycle_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"keyledger/internal/lifecycle"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newGroup(patience time.Duration) *lifecycle.Group {
	return lifecycle.New(patience, slog.New(slog.DiscardHandler))
}

func TestPartsStopInReverseEachBeforeTheNext(t *testing.T) {
	t.Parallel()
	g := newGroup(time.Minute)
	var ended []string // Stop orders the writes
	for _, name := range []string{"database", "log", "server"} {
		g.Go(name, func(ctx context.Context) error {
			<-ctx.Done()
			ended = append(ended, name)
			return nil
		})
	}
	if err := g.Stop(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"server", "log", "database"}, ended); diff != "" {
		t.Error(diff)
	}
}

func TestAPartThatEndsByItselfIsAFailure(t *testing.T) {
	t.Parallel()
	for _, cause := range []error{errors.New("disk full"), nil} {
		g := newGroup(time.Minute)
		g.Go("log", func(context.Context) error { return cause })
		err := <-g.Failed()
		if err == nil || !strings.HasPrefix(err.Error(), "log ended: ") || cause != nil && !errors.Is(err, cause) {
			t.Errorf("with %v it failed with %v", cause, err)
		}
		if err := g.Stop(); err != nil {
			t.Errorf("the failure is said twice: %v", err)
		}
	}
}

func TestWhatGoesWrongAtTheEndIsSaid(t *testing.T) {
	t.Parallel()
	g := newGroup(time.Minute)
	g.Go("uses", func(ctx context.Context) error { <-ctx.Done(); return errors.New("not written") })
	g.Go("follower", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
	if err := g.Stop(); err == nil || err.Error() != "stop uses: not written" {
		t.Error(err)
	}
}

func TestAPartThatDoesNotEndHoldsUpNobody(t *testing.T) {
	t.Parallel()
	g := newGroup(10 * time.Millisecond)
	stopped, release := make(chan struct{}), make(chan struct{})
	defer close(release)
	g.Go("database", func(ctx context.Context) error { <-ctx.Done(); close(stopped); return nil })
	g.Go("stuck", func(context.Context) error { <-release; return nil })
	err := g.Stop()
	if err == nil || !strings.Contains(err.Error(), "stuck") {
		t.Error(err)
	}
	<-stopped
}
