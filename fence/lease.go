package fence

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"keyledger/domain"
	"keyledger/eventstore"
)

const (
	// renewals is how often a lease is renewed before it would end.
	renewals = 4
	// leaveWithin bounds the goodbye; a row that stays is reaped.
	leaveWithin = 2 * time.Second
)

// Run joins, renews this node's lease, confirms what others ask, and reaps, until ctx ends.
// Then it leaves: whoever ends it has closed every door before. Its error is ErrEpochChanged
// alone: the process must start anew.
func (f *Fence) Run(ctx context.Context) error {
	group, running := errgroup.WithContext(ctx)
	group.Go(func() error { return f.keepLease(running) })
	group.Go(func() error { return f.confirm(running) })
	group.Go(func() error { f.reapOthers(running); return nil })
	group.Go(func() error {
		return f.o.Transport.Listen(running, f.heardAsk, f.heardConfirmation)
	})
	// What was fenced is recorded to the end.
	recording, finish := context.WithCancel(context.WithoutCancel(ctx))
	recorded := make(chan struct{})
	go func() { defer close(recorded); f.record(recording) }()
	err := group.Wait()
	finish()
	<-recorded
	leaving, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveWithin)
	defer cancel()
	if gone := f.registry.leave(leaving, f.o.ID); gone != nil && err == nil {
		f.logger.Warn("this node could not leave the verifiers: revocations wait for its lease until it is reaped", "error", gone)
	}
	return err
}

// Leased is closed once this node has its first lease.
func (f *Fence) Leased() <-chan struct{} { return f.leased }

// keepLease joins and renews. A renewal that fails is tried again soon: there is
// time for some within a lease.
func (f *Fence) keepLease(ctx context.Context) error {
	every := f.o.Lease / renewals
	timer := time.NewTimer(0)
	defer timer.Stop()
	joined, failing := false, false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		began := time.Now()
		err := f.renewOnce(ctx, &joined)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, eventstore.ErrEpochChanged):
			return fmt.Errorf("keep the lease: %w", err)
		case err != nil:
			f.metrics.failed.Inc()
			if !failing {
				f.logger.Warn("the lease cannot be renewed: verification is unavailable here when it ends, until it is renewed", "lease", f.o.Lease, "error", err)
			}
			failing = true
			timer.Reset(min(every, mostPause))
			continue
		}
		if failing {
			f.logger.Info("the lease is renewed again")
			failing = false
		}
		timer.Reset(max(every-time.Since(began), every/8))
	}
}

// renewOnce renews, and joins before if need be.
//
// The clock is read before the question is asked: whatever was revoked before that is in
// the answer, so whatever is not was revoked later, and whoever revoked it waits a whole lease.
// To count from the answer would be to count a time in which nobody looked.
func (f *Fence) renewOnce(ctx context.Context, joined *bool) error {
	ctx, cancel := context.WithTimeout(ctx, f.o.Lease)
	defer cancel()
	if !*joined {
		if f.o.Sole {
			if err := f.registry.succeed(ctx, f.o.ID, f.o.Name); err != nil {
				return err
			}
		}
		if err := f.registry.join(ctx, f.o.ID, Node, f.o.Name, f.o.Lease); err != nil {
			return err
		}
		*joined = true
	}
	asked := time.Now()
	head, ok, err := f.registry.renew(ctx, f.o.ID)
	if err != nil {
		return err
	}
	if !ok {
		*joined = false // reaped
		return domain.Unavailable(errNotLeased)
	}
	asked, head = plant(asked, head, f.o.Index)
	f.o.Log.Wake(domain.Lifecycle, head)
	f.o.Index.Grant(asked, head)
	select {
	case <-f.leased:
	default:
		if err := f.o.Index.WaitFor(ctx, head); err != nil {
			return err
		}
		close(f.leased)
	}
	return nil
}
