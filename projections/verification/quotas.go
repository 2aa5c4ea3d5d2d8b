package verification

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"keyledger/domain"
	"keyledger/eventstore"
	"keyledger/index"
)

// Quotas tells an index what was spent of its keys' quotas, from the log: before this run of the node,
// and elsewhere since. What the index accepts itself it has counted by then.
//
// While no key has a quota, it waits, and reads nothing. From then on it follows the usage lane
// from where the counts in usage_hours stand; those are taken in one snapshot of the database
// with their checkpoint, so that every use is in one of the two and none in both.
type Quotas struct {
	index  *index.Index
	boot   eventstore.Stream // of this run: its events tell nothing new
	pool   *pgxpool.Pool
	log    QuotaLog
	logger *slog.Logger
	clock  func() time.Time

	following bool
	at        domain.Position // of the usage lane: what is behind it the index was told
	waiting   []index.QuotaKey
	target    domain.Position // from which on the keys that wait are known
}

// QuotaLog is what Quotas reads. *eventstore.Store is one.
type QuotaLog interface {
	Log
	FirstSince(ctx context.Context, lane domain.Lane, t time.Time) (domain.Position, error)
	Read(ctx context.Context, lane domain.Lane, after domain.Position) iter.Seq2[eventstore.Recorded, error]
	Head(ctx context.Context, lane domain.Lane) (eventstore.Head, error)
}

// QuotaOptions are what Quotas needs.
type QuotaOptions struct {
	Boot   domain.ID // of this run, as its uses are recorded
	Pool   *pgxpool.Pool
	Log    QuotaLog
	Logger *slog.Logger     // nil: none
	Clock  func() time.Time // nil: time.Now
}

// NewQuotas makes the Quotas of an index. An index has one.
func NewQuotas(x *index.Index, o QuotaOptions) *Quotas {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	return &Quotas{index: x, boot: eventstore.UsageStream(o.Boot), pool: o.Pool, log: o.Log, logger: o.Logger, clock: o.Clock}
}

const (
	// knownWithin is how long a node that starts is not ready because of quotas.
	knownWithin = 10 * time.Second
	// mostSkew is more than the clocks of two nodes differ.
	mostSkew = 10 * time.Minute
	// mostAsked bounds one query.
	mostAsked = 20_000
)

// Run keeps up until ctx ends, which is no error. Whatever fails is tried again; meanwhile the
// index goes on with what it knows.
func (q *Quotas) Run(ctx context.Context) error {
	select {
	case <-q.index.QuotaNews():
	case <-ctx.Done():
		return nil
	}
	defer time.AfterFunc(knownWithin, q.index.QuotasLate).Stop()
	for pause := firstPause; ; pause = min(2*pause, longPause) {
		before := q.at
		err := q.keepUp(ctx)
		if ctx.Err() != nil {
			return nil
		}
		q.index.QuotasLate()
		if q.at != before {
			pause = firstPause
		}
		wait := pause/2 + rand.N(pause/2)
		q.logger.Warn("what is spent of quotas elsewhere cannot be followed now", "position", q.at, "pause", wait, "error", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

// keepUp makes quotas known that are not, and follows the lane, until an error.
func (q *Quotas) keepUp(ctx context.Context) error {
	for {
		if err := q.join(ctx); err != nil {
			return err
		}
		err := q.follow(ctx)
		if !errors.Is(err, errNews) {
			return err
		}
	}
}

var errNews = errors.New("there are quotas that are not known")

// join takes keys in whose quotas are not known: from the counts, then from the events
// behind these up to where the lane is followed already.
func (q *Quotas) join(ctx context.Context) error {
	unknown := q.index.UnknownQuotas()
	var stands, head domain.Position
	if len(unknown) > 0 || !q.following {
		var err error
		if stands, head, err = q.load(ctx, unknown); err != nil {
			return err
		}
	}
	if !q.following {
		at, err := q.begin(ctx, stands)
		if err != nil {
			return err
		}
		q.following, q.at = true, at
	}
	if len(unknown) == 0 {
		return nil
	}
	if stands < q.at {
		for r, err := range q.log.Read(ctx, domain.Usage, stands) {
			if err != nil {
				return err
			}
			if r.Position > q.at {
				break
			}
			if err := q.spend(ctx, r, true); err != nil {
				return err
			}
		}
	}
	q.index.Heard(unknown)
	q.waiting, q.target = unknown, head
	q.reached()
	return nil
}

// begin says from where the lane is to be followed: where the counts stand, or earlier when keys
// were created since the index was loaded that others may have used by then.
func (q *Quotas) begin(ctx context.Context, stands domain.Position) (domain.Position, error) {
	oldest := q.index.OldestQuota()
	if oldest.IsZero() {
		return stands, nil
	}
	first, err := q.log.FirstSince(ctx, domain.Usage, oldest.Add(-mostSkew))
	if err != nil {
		return 0, err
	}
	return min(stands, first-1), nil
}

// load tells the index what was spent of these keys up to where the counts stand, and says
// where that is, and where the lane ended then.
func (q *Quotas) load(ctx context.Context, keys []index.QuotaKey) (stands, head domain.Position, err error) {
	var created domain.Position
	now := q.clock()
	err = pgx.BeginTxFunc(ctx, q.pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		// Before the snapshot, as in Load.
		if _, err := tx.Exec(ctx, `LOCK TABLE usage_hours IN ACCESS SHARE MODE`); err != nil {
			return err
		}
		if stands, head, created, err = usageStands(ctx, tx); err != nil {
			return err
		}
		for len(keys) > 0 {
			n := min(len(keys), mostAsked)
			if err := q.counts(ctx, tx, keys[:n], stands, now); err != nil {
				return err
			}
			keys = keys[n:]
		}
		return nil
	})
	if err != nil {
		return 0, 0, eventstore.Wrap(err, "read what is spent of quotas")
	}
	// Whatever was created by then the index knows from here on: so it is told when these keys are used.
	return stands, head, q.index.WaitFor(ctx, created)
}

func usageStands(ctx context.Context, tx pgx.Tx) (stands, head, created domain.Position, err error) {
	var ours, theirs struct {
		ledger [16]byte
		epoch  int32
	}
	err = tx.QueryRow(ctx, `
		SELECT h.ledger_id, h.epoch, h.position, c.ledger_id, c.epoch, c.position,
		       (SELECT l.position FROM log_head l WHERE l.lane = 'lifecycle')
		  FROM log_head h, projection_checkpoints c
		 WHERE h.lane = 'usage' AND c.name = 'usage'`).
		Scan(&theirs.ledger, &theirs.epoch, &head, &ours.ledger, &ours.epoch, &stands, &created)
	if err == nil && stands > 0 && (ours != theirs || stands > head) {
		err = fmt.Errorf("%w: the counts of uses are at position %d of epoch %d, the log at %d of epoch %d: rebuild them (keyledger replay)",
			index.ErrForeign, stands, ours.epoch, head, theirs.epoch)
	}
	return stands, head, created, err
}

// counts reads the counts of the periods that hold now or come later.
func (q *Quotas) counts(ctx context.Context, tx pgx.Tx, keys []index.QuotaKey, stands domain.Position, now time.Time) error {
	ids, refills, since := make([]string, len(keys)), make([]string, len(keys)), make([]time.Time, len(keys))
	for i, k := range keys {
		ids[i], refills[i], since[i] = k.Key.UUID(), string(k.Refill), k.Refill.Start(now)
		q.index.Base(k.Key, stands, now)
	}
	rows, err := tx.Query(ctx, `
		SELECT k.key_id, max(h.hour), sum(h.count)::bigint
		  FROM unnest($1::uuid[], $2::text[], $3::timestamptz[]) AS k (key_id, refill, since)
		  JOIN usage_hours h ON h.key_id = k.key_id AND h.hour >= k.since
		 WHERE h.outcome = ANY ($4::smallint[])
		 GROUP BY k.key_id, CASE k.refill WHEN 'none' THEN NULL ELSE date_trunc(k.refill, h.hour AT TIME ZONE 'UTC') END
		 ORDER BY 2`, ids, refills, since, acceptedOutcomes())
	if err != nil {
		return err
	}
	var id [16]byte
	var at time.Time
	var count int64
	_, err = pgx.ForEachRow(rows, []any{&id, &at, &count}, func() error {
		q.index.Before(domain.KeyID(id), at, uint64(count))
		return nil
	})
	return err
}

func acceptedOutcomes() (numbers []int16) {
	for o := range domain.Outcomes {
		if domain.Outcome(o).Accepted() {
			numbers = append(numbers, int16(o))
		}
	}
	return numbers
}

// follow tells the index what happens in the lane, until an error, or errNews.
func (q *Quotas) follow(ctx context.Context) error {
	following, stop := context.WithCancel(ctx)
	defer stop()
	news := make(chan struct{})
	watching := make(chan struct{})
	go func() {
		defer close(watching)
		select {
		case <-q.index.QuotaNews():
			close(news)
			stop()
		case <-following.Done():
		}
	}()
	err := func() error {
		for batch, err := range q.log.Follow(following, domain.Usage, q.at) {
			if err != nil {
				return err
			}
			for _, r := range batch {
				if err := q.spend(following, r, false); err != nil {
					return err
				}
				q.at = r.Position
			}
			q.reached()
		}
		return domain.Unavailable(errors.New("the log ended"))
	}()
	stop()
	<-watching
	select {
	case <-news:
		return errNews
	default:
		return err
	}
}

// reached answers for the keys that wait, once what had happened when they came is told.
func (q *Quotas) reached() {
	if len(q.waiting) > 0 && q.at >= q.target {
		q.index.Known(q.waiting)
		q.waiting = nil
	}
}

// spend tells the index of one event.
func (q *Quotas) spend(ctx context.Context, r eventstore.Recorded, again bool) error {
	if r.Stream == q.boot {
		return nil // counted when they were accepted
	}
	e, err := q.log.Decode(ctx, r)
	if err != nil {
		return fmt.Errorf("decode %s at position %d: %w", r.Type, r.Position, err)
	}
	used, ok := e.Event.(domain.KeyUsed)
	if !ok {
		return fmt.Errorf("%s at position %d does not belong to the usage lane", r.Type, r.Position)
	}
	var decided domain.Position
	for i := range used.Uses {
		if used.Uses[i].Outcome.Accepted() {
			decided = max(decided, used.Uses[i].DecidedAt)
		}
	}
	// Another node may know keys that are not here yet.
	if err := q.index.WaitFor(ctx, decided); err != nil {
		return err
	}
	q.index.Spend(r.Position, again, used.Uses)
	return nil
}
