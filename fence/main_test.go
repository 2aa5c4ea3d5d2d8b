package fence_test

import (
	"context"
	"crypto/rand"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"

	"keyledger/domain"
	"keyledger/eventstore"
	"keyledger/fence"
	"keyledger/index"
	"keyledger/internal/testkit"
	"keyledger/projections"
	"keyledger/projections/keylist"
	"keyledger/projections/verification"
	"keyledger/publisher"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// patience bounds what must not block. It is far more than any step takes.
const patience = 30 * time.Second

func patient(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// ledger is a log that nodes share, and the NATS between them.
type ledger struct {
	t      *testing.T
	db     testkit.DB
	broker *testkit.NATSServer
	sole   bool // the nodes' option
}

func newLedger(t *testing.T) *ledger {
	t.Helper()
	return &ledger{t: t, db: testkit.Database(t), broker: testkit.NATS(t)}
}

// node is what of a server has to do with the fence.
type node struct {
	t     *testing.T
	id    domain.ID
	pool  *pgxpool.Pool
	store *eventstore.Store
	index *watched
	conn  *nats.Conn
	fence *fence.Fence
	desk  *fence.Desk
	stop  func() error // ends the fence in order, and gives its error
	ended chan error
}

// watched is a real index, and remembers the leases that it was given.
type watched struct {
	*index.Index
	mu     sync.Mutex
	asked  []time.Time
	heads  []domain.Position
	frozen atomic.Bool // it confirms nothing
}

func (w *watched) Grant(asked time.Time, head domain.Position) {
	w.Index.Grant(asked, head)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked, w.heads = append(w.asked, asked), append(w.heads, head)
}

func (w *watched) grants() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.asked)
}

func (w *watched) WaitFor(ctx context.Context, position domain.Position) error {
	if w.frozen.Load() {
		<-ctx.Done()
		return ctx.Err()
	}
	return w.Index.WaitFor(ctx, position)
}

// node starts one more node, and returns when it has its lease.
func (l *ledger) node(lease time.Duration) *node {
	l.t.Helper()
	n := &node{t: l.t, id: newID(l.t)}
	var err error
	n.pool, err = eventstore.Connect(l.t.Context(), l.db.URL, eventstore.ConnectOptions{MaxConns: 12})
	must(l.t, err)
	l.t.Cleanup(n.pool.Close)
	logger := testkit.Logger(l.t)
	n.store, err = eventstore.Open(l.t.Context(), eventstore.Options{Pool: n.pool, MasterKey: make([]byte, eventstore.MasterKeySize), Logger: logger})
	must(l.t, err)
	n.conn, err = nats.Connect(l.broker.URL)
	must(l.t, err)
	l.t.Cleanup(n.conn.Close)
	id, epoch := n.store.Ledger()
	wake := publisher.NewWake(n.conn, logger)
	n.store.OnCommit(wake.Announce)
	list := projections.NewFollower(n.store, keylist.New(n.pool), projections.FollowerOptions{Logger: logger})
	n.index = &watched{Index: index.New(index.Options{Logger: logger, Leased: true, Lease: lease})}
	projection := verification.New(n.index.Index, verification.Options{Pool: n.pool, Log: n.store, Logger: logger})
	n.fence, err = fence.New(fence.Options{
		ID: n.id, Name: "a test", Sole: l.sole, Lease: lease, Pool: n.pool, Log: n.store, Index: n.index,
		Transport: publisher.NewNotices(n.conn, id, epoch, logger), Logger: logger,
	})
	must(l.t, err)
	n.desk = fence.NewDesk(n.fence)
	for _, run := range []func(context.Context) error{
		n.store.Run, wake.Run, list.Run, projection.Run,
		func(ctx context.Context) error { return wake.Listen(ctx, n.store.Receive) },
	} {
		background(l.t, run)
	}
	n.ended = make(chan error, 1)
	n.stop = background(l.t, func(ctx context.Context) error {
		err := n.fence.Run(ctx)
		n.ended <- err
		return err
	})
	select {
	case <-n.fence.Leased():
	case <-patient(l.t).Done():
		l.t.Fatal("the node gets no lease")
	}
	return n
}

// background runs something until the test ends, or until it is told to.
func background(t *testing.T, run func(context.Context) error) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	stop = sync.OnceValue(func() error { cancel(); return <-done })
	t.Cleanup(func() {
		if err := stop(); err != nil && !errors.Is(err, eventstore.ErrEpochChanged) {
			t.Error(err)
		}
	})
	return stop
}

func newID(t testing.TB) domain.ID {
	t.Helper()
	id, err := domain.NewID(time.Now(), rand.Reader)
	must(t, err)
	return id
}

func request() domain.Request {
	r := domain.Request{Metadata: domain.Metadata{Actor: domain.Actor{Kind: domain.ActorConsole}}}
	_, _ = rand.Read(r.ID[:]) // never fails
	return r
}

func now() time.Time { return time.Now().UTC().Truncate(time.Microsecond) }

// waitForEnd gives what the fence ended with by itself.
func (n *node) waitForEnd() error { return <-n.ended }

// create makes a key that is known to this node.
func (n *node) create() domain.Key {
	n.t.Helper()
	id := domain.KeyID(newID(n.t))
	key, receipt, err := n.store.ChangeKey(patient(n.t), request(), id, domain.CreateKey{
		Now: now(), Key: id, Organization: "org_abc123", Digest: domain.Digest(append(id[:], id[:]...)), Prefix: "bsk_live_a1b2",
		Name: "a key", Scopes: domain.Scopes{domain.ScopeRead}, Granter: domain.Scopes{domain.ScopeAll},
	})
	must(n.t, err)
	must(n.t, n.index.Index.WaitFor(patient(n.t), receipt.Position))
	return key
}

// revoke says where the revocation stands, and a moment after its commit.
func (n *node) revoke(key domain.Key) (domain.Position, time.Time) {
	n.t.Helper()
	_, receipt, err := n.store.ChangeKey(patient(n.t), request(), key.ID, domain.RevokeKey{Now: now(), Organization: key.Organization})
	must(n.t, err)
	return receipt.Position, time.Now()
}

func (n *node) outcome(key domain.Key) domain.Outcome {
	n.t.Helper()
	verdict, err := n.index.Verify(domain.Verification{Digest: key.Digest, Now: time.Now()})
	must(n.t, err)
	return verdict.Outcome
}

// members are the rows of those who hold leases.
func (l *ledger) members() map[domain.ID]string {
	l.t.Helper()
	pool, err := pgxpool.New(l.t.Context(), l.db.AdminURL)
	must(l.t, err)
	defer pool.Close()
	rows, err := pool.Query(l.t.Context(), `SELECT id, kind FROM verifiers`)
	must(l.t, err)
	defer rows.Close()
	found := map[domain.ID]string{}
	for rows.Next() {
		var id [16]byte
		var kind string
		must(l.t, rows.Scan(&id, &kind))
		found[id] = kind
	}
	must(l.t, rows.Err())
	return found
}

// await asks again and again until the answer is yes.
func await(t *testing.T, what string, yes func() bool) {
	t.Helper()
	poll := time.NewTicker(5 * time.Millisecond)
	defer poll.Stop()
	deadline := time.After(patience)
	for !yes() {
		select {
		case <-poll.C:
		case <-deadline:
			t.Fatalf("%s does not come", what)
		}
	}
}
