package verification

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"keyledger/domain"
	"keyledger/eventstore"
	"keyledger/index"
)

// Options are what a projection needs.
type Options struct {
	Pool       *pgxpool.Pool         // where Run loads the snapshot from
	Log        Log                   // what Run follows
	Logger     *slog.Logger          // nil: none
	Clock      func() time.Time      // nil: time.Now
	Registerer prometheus.Registerer // nil: no metrics
}

// Projection keeps an index at the end of the log.
type Projection struct {
	index  *index.Index
	pool   *pgxpool.Pool
	log    Log
	logger *slog.Logger
	clock  func() time.Time
}

// New makes the projection of an index. An index has one.
func New(x *index.Index, o Options) *Projection {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.Registerer != nil {
		if err := o.Registerer.Register(&collector{x}); err != nil {
			o.Logger.Error("the verification index is not published as metrics", "error", err)
		}
	}
	return &Projection{index: x, pool: o.Pool, log: o.Log, logger: o.Logger, clock: o.Clock}
}

// Log is what the index follows. *eventstore.Store is one.
type Log interface {
	// Follow never ends before its context, but for an error.
	Follow(ctx context.Context, lane domain.Lane, after domain.Position) iter.Seq2[[]eventstore.Recorded, error]
	Decode(context.Context, eventstore.Recorded) (eventstore.Event, error)
}

const (
	firstPause = 50 * time.Millisecond
	longPause  = 5 * time.Second
)

// Run loads the index and follows the log until ctx ends, which is no error. When Postgres cannot
// be reached it tries again and again, and what is loaded goes on answering. When
// what is loaded turns out to be another history than the log's, or cannot be
// trusted for another reason, the index stops answering and is loaded anew.
func (p *Projection) Run(ctx context.Context) error {
	pause, loaded := firstPause, false
	for {
		before := p.index.Position()
		var err error
		if !loaded {
			err = p.Load(ctx, p.pool)
			loaded = err == nil
		}
		if loaded {
			err = p.follow(ctx)
		}
		if ctx.Err() != nil {
			return nil
		}
		// Being out of reach says nothing about what is known; anything else does.
		if domain.CodeOf(err) != domain.CodeUnavailable {
			p.index.Distrust()
			loaded = false
			p.logger.Error("THE VERIFICATION INDEX DOES NOT ANSWER until it is loaded anew", "position", p.index.Position(), "error", err)
		}
		if p.index.Position() != before {
			pause = firstPause
		}
		wait := pause/2 + rand.N(pause/2)
		p.logger.Warn("the verification index waits to go on", "position", p.index.Position(), "pause", wait, "error", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
		pause = min(2*pause, longPause)
	}
}

// follow applies what the log says from where the index stands, until an error.
func (p *Projection) follow(ctx context.Context) error {
	events := make([]index.Event, 0, 1000)
	for batch, err := range p.log.Follow(ctx, domain.Lifecycle, p.index.Position()) {
		if err != nil {
			return err
		}
		events = events[:0]
		for _, r := range batch {
			e, err := decode(ctx, p.log, r)
			if err != nil {
				// What came before it counts already.
				if err := p.index.Apply(events); err != nil {
					return err
				}
				return fmt.Errorf("decode %s at position %d: %w", r.Type, r.Position, err)
			}
			events = append(events, e)
		}
		if err := p.index.Apply(events); err != nil {
			return err
		}
		clear(events) // not to keep the batch
	}
	return domain.Unavailable(errors.New("the log ended"))
}
