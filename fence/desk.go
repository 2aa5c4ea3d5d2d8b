package fence

import (
	"context"
	"crypto/rand"
	"sync"
	"time"

	"keyledger/domain"
)

// Desk serves verifiers that are no servers: those embedded in other programs, and
// observers. They hold leases of this node's length, and reach the primary through it.
type Desk struct {
	fence *Fence

	mu       sync.Mutex
	observed domain.ID // the row of this node's observers; zero: not joined
	running  bool
	next     *observation
}

// mostEmbedded bounds how many verifiers a revocation waits for one by one. Fleets
// hold leases as observers.
const mostEmbedded = 1000

// NewDesk makes the desk of a fence.
func NewDesk(f *Fence) *Desk { return &Desk{fence: f} }

// Join registers an embedded verifier; from now on revocations wait for it.
func (d *Desk) Join(ctx context.Context, name string) (id domain.ID, lease time.Duration, err error) {
	members, err := d.fence.read(ctx)
	if err != nil {
		return id, 0, err
	}
	embedded := 0
	for _, m := range members {
		if m.kind == Embedded {
			embedded++
		}
	}
	if embedded >= mostEmbedded {
		return id, 0, &domain.Error{Code: domain.CodeUnavailable, Message: "there are too many embedded verifiers: join as an observer"}
	}
	if id, err = domain.NewID(time.Now(), rand.Reader); err != nil {
		return id, 0, err
	}
	return id, d.fence.o.Lease, d.fence.registry.join(ctx, id, Embedded, name, d.fence.o.Lease)
}

// Rejoin registers a verifier again that was reaped while it was out of reach. What it had
// confirmed stays confirmed.
func (d *Desk) Rejoin(ctx context.Context, id domain.ID, name string) error {
	return d.fence.registry.join(ctx, id, Embedded, name, d.fence.o.Lease)
}

// Renew renews an embedded verifier's lease and says where the log ended. The verifier has read
// its clock before it asked. CodeNotFound: it was reaped and must join again.
func (d *Desk) Renew(ctx context.Context, id domain.ID) (domain.Position, error) {
	head, ok, err := d.fence.registry.renew(ctx, id)
	if err == nil && !ok {
		err = domain.Errorf(domain.CodeNotFound, "no such verifier: join again")
	}
	return head, err
}

// Confirm says that a verifier has applied the log up to a position, for good.
func (d *Desk) Confirm(id domain.ID, position domain.Position) { d.fence.tellConfirmed(id, position) }

// Leave ends a verifier that says yes no more.
func (d *Desk) Leave(ctx context.Context, id domain.ID) error { return d.fence.registry.leave(ctx, id) }

// Asked is the highest position that embedded verifiers are to confirm. The channel is
// closed when it grows.
func (d *Desk) Asked() (domain.Position, <-chan struct{}) {
	d.fence.mu.Lock()
	defer d.fence.mu.Unlock()
	return d.fence.asked, d.fence.askedMore
}

// Lease is how long leases of this node last.
func (d *Desk) Lease() time.Duration { return d.fence.o.Lease }

// observation is one renewal that several observers share.
type observation struct {
	done chan struct{}
	head domain.Position
	err  error
}

// Observe renews the lease of an observer and says where the log ended. All
// observers of a node share one row, which never confirms: so while there are any, a
// revocation waits for a whole lease. Those who ask while a renewal is under way share the
// next one, which begins after they asked.
func (d *Desk) Observe(ctx context.Context) (domain.Position, error) {
	d.mu.Lock()
	o := d.next
	if o == nil {
		o = &observation{done: make(chan struct{})}
		d.next = o
	}
	if !d.running {
		d.running = true
		go d.observe(context.WithoutCancel(ctx))
	}
	d.mu.Unlock()
	select {
	case <-o.done:
		return o.head, o.err
	case <-ctx.Done():
		return 0, domain.Unavailable(ctx.Err())
	}
}

func (d *Desk) observe(ctx context.Context) {
	for {
		d.mu.Lock()
		o := d.next
		d.next = nil
		if o == nil {
			d.running = false
			d.mu.Unlock()
			return
		}
		d.mu.Unlock()
		renewing, cancel := context.WithTimeout(ctx, d.fence.o.Lease)
		o.head, o.err = d.renewObservers(renewing)
		cancel()
		close(o.done)
	}
}

// renewObservers is run by one goroutine at a time.
func (d *Desk) renewObservers(ctx context.Context) (domain.Position, error) {
	f := d.fence
	if d.observed != (domain.ID{}) {
		head, ok, err := f.registry.renew(ctx, d.observed)
		if err != nil || ok {
			return head, err
		}
	}
	id, err := domain.NewID(time.Now(), rand.Reader)
	if err != nil {
		return 0, err
	}
	if err := f.registry.join(ctx, id, Observers, "observers of "+f.o.Name, f.o.Lease); err != nil {
		return 0, err
	}
	d.observed = id
	head, ok, err := f.registry.renew(ctx, id)
	if err == nil && !ok {
		err = domain.Unavailable(errNotLeased)
	}
	return head, err
}
