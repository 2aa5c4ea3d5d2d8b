package fence

import (
	"context"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"keyledger/domain"
	"keyledger/eventstore"
)

// Kind says what a verifier is.
type Kind string

const (
	Node      Kind = "node"      // a server
	Embedded  Kind = "embedded"  // in somebody else's process; it confirms
	Observers Kind = "observers" // all that hold leases through one node; they never confirm
)

// member is a row of the table.
type member struct {
	id      domain.ID
	kind    Kind
	lease   time.Duration
	renewal int64
}

// registry is the table of those who may hold a lease.
type registry struct {
	pool   *pgxpool.Pool
	ledger domain.ID
	epoch  uint32

	mu      sync.Mutex
	running bool
	next    *listing
}

// join commits a row, or makes an old one of the same verifier new. The lease of one that is
// there never becomes shorter: who joined again at another node may not have heard the answer, and
// hold a lease of the old length.
func (r *registry) join(ctx context.Context, id domain.ID, kind Kind, name string, lease time.Duration) error {
	_, err := r.pool.Exec(ctx, `
INSERT INTO verifiers AS v (id, kind, name, lease_ms) VALUES ($1, $2, $3, $4)
    ON CONFLICT (id) DO UPDATE SET renewal = nextval('verifier_renewals'), seen_at = clock_timestamp(), lease_ms = greatest(v.lease_ms, excluded.lease_ms)`,
		[16]byte(id), string(kind), name, lease.Milliseconds())
	return eventstore.Wrap(err, "join the verifiers")
}

// renew marks a row as seen and reads where the log ends, in one statement on the
// primary: a standby refuses it. ok is false when the row is gone. Whatever was committed before
// the call is part of the answer.
//
// It waits for the disk, although the row is there since the verifier joined. A renewal that a crash of the database takes
// back leaves the number that the reaper may have seen before, and it would remove the row of a verifier whose lease,
// granted by what was lost, still runs.
func (r *registry) renew(ctx context.Context, id domain.ID) (head domain.Position, ok bool, err error) {
	var ledger [16]byte
	var epoch uint32
	rows, err := r.pool.Query(ctx, `
UPDATE verifiers v SET renewal = nextval('verifier_renewals'), seen_at = clock_timestamp()
  FROM log_head h
 WHERE v.id = $1 AND h.lane = 'lifecycle'
RETURNING h.position, h.epoch, h.ledger_id`, [16]byte(id))
	if err != nil {
		return 0, false, eventstore.Wrap(err, "renew a lease")
	}
	defer rows.Close()
	for rows.Next() {
		if err := rows.Scan(&head, &epoch, &ledger); err != nil {
			return 0, false, eventstore.Wrap(err, "renew a lease")
		}
		ok = true
	}
	// The commit's own error comes last, and a lease is nothing without it.
	if err := rows.Err(); err != nil {
		return 0, false, eventstore.Wrap(err, "renew a lease")
	}
	if ok && (domain.ID(ledger) != r.ledger || epoch != r.epoch) {
		return 0, false, eventstore.Wrap(eventstore.ErrEpochChanged, "renew a lease")
	}
	return head, ok, nil
}

// succeed removes the rows of those who ran under this verifier's name before it.
func (r *registry) succeed(ctx context.Context, id domain.ID, name string) error {
	_, err := r.pool.Exec(ctx, `DELETE FROM verifiers WHERE kind = 'node' AND name = $1 AND id <> $2`, name, [16]byte(id))
	return eventstore.Wrap(err, "succeed a verifier")
}

// leave removes a verifier that says yes no more.
func (r *registry) leave(ctx context.Context, id domain.ID) error {
	_, err := r.pool.Exec(ctx, `DELETE FROM verifiers WHERE id = $1`, [16]byte(id))
	return eventstore.Wrap(err, "leave the verifiers")
}

// reap removes a row that stands as it was seen. One that was renewed meanwhile stays.
func (r *registry) reap(ctx context.Context, m member) (bool, error) {
	tag, err := r.pool.Exec(ctx, `DELETE FROM verifiers WHERE id = $1 AND renewal = $2`, [16]byte(m.id), m.renewal)
	return tag.RowsAffected() > 0, eventstore.Wrap(err, "reap a verifier")
}

// list reads all rows.
func (r *registry) list(ctx context.Context) ([]member, error) {
	rows, err := r.pool.Query(ctx, `SELECT id, kind, lease_ms, renewal FROM verifiers`)
	if err != nil {
		return nil, eventstore.Wrap(err, "list the verifiers")
	}
	defer rows.Close()
	var members []member
	for rows.Next() {
		var m member
		var lease int64
		if err := rows.Scan((*[16]byte)(&m.id), (*string)(&m.kind), &lease, &m.renewal); err != nil {
			return nil, eventstore.Wrap(err, "list the verifiers")
		}
		m.lease = time.Duration(lease) * time.Millisecond
		members = append(members, m)
	}
	return members, eventstore.Wrap(rows.Err(), "list the verifiers")
}

// listing is one reading of the table that several wait for.
type listing struct {
	done    chan struct{}
	members []member
	err     error
}

// listTimeout bounds one reading; who waits for it has a bound of its own.
const listTimeout = 5 * time.Second

// after gives the rows as they stand at some moment after the call. Those who call
// while a reading is under way share the one that follows it: the one under way may
// have begun before their commit returned.
func (r *registry) after(ctx context.Context) ([]member, error) {
	r.mu.Lock()
	l := r.next
	if l == nil {
		l = &listing{done: make(chan struct{})}
		r.next = l
	}
	if !r.running {
		r.running = true
		go r.read(context.WithoutCancel(ctx))
	}
	r.mu.Unlock()
	select {
	case <-l.done:
		return l.members, l.err
	case <-ctx.Done():
		return nil, domain.Unavailable(ctx.Err())
	}
}

// read reads for as long as somebody waits.
func (r *registry) read(ctx context.Context) {
	for {
		r.mu.Lock()
		l := r.next
		r.next = nil
		if l == nil {
			r.running = false
			r.mu.Unlock()
			return
		}
		r.mu.Unlock()
		reading, cancel := context.WithTimeout(ctx, listTimeout)
		l.members, l.err = r.list(reading)
		cancel()
		close(l.done)
	}
}

// Nodes are the servers that may verify.
func (f *Fence) Nodes(ctx context.Context) ([]domain.ID, error) {
	members, err := f.registry.list(ctx)
	if err != nil {
		return nil, err
	}
	var nodes []domain.ID
	for _, m := range members {
		if m.kind == Node {
			nodes = append(nodes, m.id)
		}
	}
	return nodes, nil
}
