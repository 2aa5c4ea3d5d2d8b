package eventstore_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"keyledger/domain"
	"keyledger/eventstore"
	"keyledger/internal/postgres"
	"keyledger/internal/testkit"
)

func TestPositionsAreDenseUnderConcurrentWritersOnTwoNodes(t *testing.T) {
	t.Parallel()
	db := testkit.Database(t)
	nodes := []*node{open(t, db.URL), open(t, db.URL)}
	const writers, each = 16, 25
	receipts := make(chan domain.Receipt, writers*each)
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for range each {
				_, receipt, err := nodes[w%len(nodes)].create(t, domain.Request{})
				if err != nil {
					t.Error(err)
					return
				}
				receipts <- receipt
			}
		})
	}
	wg.Wait()
	close(receipts)

	events := nodes[0].lifecycle(t)
	audit(t, events)
	if len(events) != writers*each {
		t.Fatalf("the log has %d events, not %d", len(events), writers*each)
	}
	seen := map[domain.Position]bool{}
	for r := range receipts {
		if seen[r.Position] {
			t.Errorf("position %d was handed out twice", r.Position)
		}
		seen[r.Position] = true
	}
}

// A log with positions from a sequence skips events under this very harness, and
// ours does not. It is the reason for the head row.
func TestATailerOfANaiveSequenceSkipsEventsAndOursDoesNot(t *testing.T) {
	t.Parallel()
	db := testkit.Database(t)
	n := open(t, db.URL)
	admin, err := pgx.Connect(t.Context(), db.AdminURL)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close(t.Context())
	if _, err := admin.Exec(t.Context(), `CREATE TABLE naive (position bigserial PRIMARY KEY, note text); GRANT ALL ON naive, naive_position_seq TO keyledger_service`); err != nil {
		t.Fatal(err)
	}

	naive := harness(t, func(ctx context.Context) error {
		tx, err := n.pool.Begin(ctx)
		if err != nil {
			return err
		}
		defer func() { _ = tx.Rollback(ctx) }()
		if _, err := tx.Exec(ctx, `INSERT INTO naive (note) VALUES ('event')`); err != nil {
			return err
		}
		return tx.Commit(ctx)
	}, func(ctx context.Context, after int64) ([]int64, error) {
		rows, err := n.pool.Query(ctx, `SELECT position FROM naive WHERE position > $1 ORDER BY position`, after)
		if err != nil {
			return nil, err
		}
		return pgx.CollectRows(rows, pgx.RowTo[int64])
	})
	ours := harness(t, func(context.Context) error {
		_, _, err := n.create(t, domain.Request{})
		return err
	}, func(ctx context.Context, after int64) ([]int64, error) {
		var positions []int64
		for r, err := range n.Read(ctx, domain.Lifecycle, domain.Position(after)) {
			if err != nil {
				return nil, err
			}
			positions = append(positions, int64(r.Position))
		}
		return positions, nil
	})
	t.Logf("skipped by the naive tailer: %d, by ours: %d", naive, ours)
	if naive == 0 {
		t.Error("the naive tailer skipped nothing: the harness proves nothing")
	}
	if ours != 0 {
		t.Errorf("our tailer skipped %d events", ours)
	}
}

// harness has 16 writers append while one reader tails by position, and counts what
// the reader never saw.
func harness(t *testing.T, write func(context.Context) error, tail func(context.Context, int64) ([]int64, error)) (skipped int) {
	t.Helper()
	const writers, each = 16, 100
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for range each {
				if err := write(t.Context()); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	written := make(chan struct{})
	go func() { wg.Wait(); close(written) }()
	var last int64
	var seen int
	for finished := false; ; {
		positions, err := tail(t.Context(), last)
		if err != nil {
			t.Fatal(err)
		}
		seen += len(positions)
		if len(positions) > 0 {
			last = positions[len(positions)-1]
		} else if finished {
			return writers*each - seen
		}
		select {
		case <-written:
			finished = true
		default:
		}
	}
}

func TestACommandAuthorisedByAKeyNeverCommitsAfterThatKeysRevocation(t *testing.T) {
	t.Parallel()
	db := testkit.Database(t)
	nodes := []*node{open(t, db.URL), open(t, db.URL)}
	for round := range 10 {
		admin, _ := nodes[0].mustCreate(t)
		request := domain.Request{
			Guard:    domain.Guard{Key: admin.ID, Version: 1},
			Metadata: domain.Metadata{Actor: domain.Actor{Kind: domain.ActorKey, Key: admin.ID}},
		}
		var wg sync.WaitGroup
		for w := range 8 {
			wg.Go(func() {
				for {
					_, _, err := nodes[w%2].create(t, request)
					if errors.Is(err, domain.ErrGuardMoved) {
						return
					}
					if err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		if _, _, err := nodes[round%2].revoke(t, domain.Request{}, admin.ID); err != nil {
			t.Fatal(err)
		}
		wg.Wait()
	}

	n := nodes[0]
	events := n.lifecycle(t)
	audit(t, events)
	revoked := map[domain.KeyID]bool{}
	for _, r := range events {
		e, err := n.Decode(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		if actor := e.EventMetadata.Actor; revoked[actor.Key] {
			t.Errorf("position %d was authorised by %s after its revocation", r.Position, actor.Key)
		}
		if e, ok := e.Event.(domain.KeyRevoked); ok {
			revoked[e.Key] = true
		}
	}
	if len(revoked) != 10 {
		t.Errorf("%d keys were revoked", len(revoked))
	}
}

func TestTheSameCommandIDGivesTheSameAnswer(t *testing.T) {
	t.Parallel()
	n := log(t)
	request := domain.Request{ID: domain.CommandIDFor(acme, domain.Actor{}, "create", "once"), Fingerprint: [32]byte{1}, Replayable: true}
	first, receipt, err := n.create(t, request)
	if err != nil {
		t.Fatal(err)
	}
	again, replayed, err := n.create(t, request)
	if err != nil {
		t.Fatal(err)
	}
	if !replayed.Replayed || receipt.Replayed {
		t.Errorf("replayed: first %v, second %v", receipt.Replayed, replayed.Replayed)
	}
	if diff := cmp.Diff(first, again); diff != "" {
		t.Errorf("the second answer differs: %s", diff)
	}
	if replayed.Position != receipt.Position || replayed.Version != receipt.Version {
		t.Errorf("the second receipt is %+v, the first %+v", replayed, receipt)
	}

	request.Fingerprint = [32]byte{2}
	if _, _, err := n.create(t, request); domain.CodeOf(err) != domain.CodeIdempotencyReused {
		t.Errorf("the same id for another body gives %v", err)
	}
	if events := n.lifecycle(t); len(events) != 1 {
		t.Errorf("the log has %d events, not 1", len(events))
	}
}

func TestTheSameCommandIDSentByManyAtOnceIsAppendedOnce(t *testing.T) {
	t.Parallel()
	db := testkit.Database(t)
	nodes := []*node{open(t, db.URL), open(t, db.URL)}
	request := domain.Request{ID: domain.CommandIDFor(acme, domain.Actor{}, "create", "once"), Fingerprint: [32]byte{1}, Replayable: true}
	var wg sync.WaitGroup
	var mu sync.Mutex
	keys := map[domain.KeyID]int{}
	fresh := 0
	for i := range 16 {
		wg.Go(func() {
			key, receipt, err := nodes[i%2].create(t, request)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Error(err)
			}
			keys[key.ID]++
			if !receipt.Replayed {
				fresh++
			}
		})
	}
	wg.Wait()
	if len(keys) != 1 || fresh != 1 {
		t.Errorf("%d keys were made, %d answers were first ones", len(keys), fresh)
	}
}

func TestAReplayedRevokeStillSaysThatItRevoked(t *testing.T) {
	t.Parallel()
	n := log(t)
	key, _ := n.mustCreate(t)
	request := domain.Request{ID: domain.CommandIDFor(acme, domain.Actor{}, "revoke", "once"), Fingerprint: [32]byte{1}, Replayable: true}
	_, first, err := n.revoke(t, request, key.ID)
	if err != nil {
		t.Fatal(err)
	}
	_, again, err := n.revoke(t, request, key.ID)
	if err != nil {
		t.Fatal(err)
	}
	if !again.Replayed || !again.Changed || again.Position != first.Position {
		t.Errorf("the replay's receipt is %+v, the first %+v", again, first)
	}
	other, receipt, err := n.revoke(t, domain.Request{}, key.ID)
	if err != nil || receipt.Changed || !other.Revoked {
		t.Errorf("revoking again: %+v, %+v, %v", other, receipt, err)
	}
}

func TestACommandThatChangesNothingKeepsItsID(t *testing.T) {
	t.Parallel()
	n := log(t)
	key, _ := n.mustCreate(t)
	if _, _, err := n.revoke(t, domain.Request{}, key.ID); err != nil {
		t.Fatal(err)
	}
	request := domain.Request{ID: domain.CommandIDFor(acme, domain.Actor{}, "revoke", "late"), Fingerprint: [32]byte{1}, Replayable: true}
	if _, receipt, err := n.revoke(t, request, key.ID); err != nil || receipt.Changed || receipt.Position != 2 {
		t.Fatalf("%+v, %v", receipt, err)
	}
	request.Fingerprint = [32]byte{2}
	if _, _, err := n.revoke(t, request, key.ID); domain.CodeOf(err) != domain.CodeIdempotencyReused {
		t.Errorf("another body under the same id gives %v", err)
	}
}

func TestNothingAcknowledgedIsLostWhenPostgresIsKilled(t *testing.T) {
	t.Parallel()
	cluster := testkit.Postgres(t, postgres.Options{})
	n := open(t, cluster.URL())
	ctx, cancel := context.WithCancel(t.Context())
	var mu sync.Mutex
	acknowledged := map[domain.KeyID]domain.Position{}
	acknowledge := make(chan struct{}, 1024)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for ctx.Err() == nil {
				key, receipt, err := n.create(t, domain.Request{})
				if err != nil {
					if domain.CodeOf(err) != domain.CodeUnavailable {
						t.Error(err)
					}
					continue
				}
				mu.Lock()
				acknowledged[key.ID] = receipt.Position
				mu.Unlock()
				select {
				case acknowledge <- struct{}{}:
				default:
				}
			}
		})
	}
	for range 3 {
		for range 50 {
			<-acknowledge
		}
		cluster.Kill()
		cluster.AwaitRestart()
	}
	for range 50 {
		<-acknowledge
	}
	cancel()
	wg.Wait()

	events := n.lifecycle(t)
	audit(t, events)
	t.Logf("%d acknowledged, %d in the log", len(acknowledged), len(events))
	for id, position := range acknowledged {
		if int(position) > len(events) || events[position-1].Stream != eventstore.KeyStream(id) {
			t.Errorf("%s was acknowledged at %d and is not there", id, position)
		}
	}
}

func TestTheServiceCanNeitherChangeNorForgeTheLog(t *testing.T) {
	t.Parallel()
	db := testkit.Database(t)
	n := open(t, db.URL)
	n.mustCreate(t)
	owner, err := pgx.Connect(t.Context(), db.AdminURL)
	if err != nil {
		t.Fatal(err)
	}
	defer owner.Close(t.Context())
	for _, statement := range []string{
		`UPDATE events SET data = '' WHERE position = 1`, `DELETE FROM events`, `TRUNCATE events`, `TRUNCATE events_lifecycle`,
	} {
		if _, err := n.pool.Exec(t.Context(), statement); err == nil {
			t.Errorf("the service may %s", statement)
		}
		if _, err := owner.Exec(t.Context(), statement); err == nil {
			t.Errorf("the owner may %s without dropping the trigger first", statement)
		}
	}
	for _, statement := range []string{
		`DELETE FROM data_keys`, `INSERT INTO erased_organizations VALUES ('org_acme', 1, now())`, `SELECT erase_organization('org_acme', 1, now())`,
		`INSERT INTO events SELECT * FROM events`, `UPDATE log_head SET position = 0`, `SELECT raise_epoch('x')`, `INSERT INTO commands SELECT * FROM commands`,
	} {
		if _, err := n.pool.Exec(t.Context(), statement); err == nil {
			t.Errorf("the service may %s", statement)
		}
	}
	audit(t, n.lifecycle(t))
}

func TestACommandThatTheDatabaseRefusesFailsAlone(t *testing.T) {
	t.Parallel()
	n := log(t)
	poison := createCommand(t, newKeyID(t))
	poison.Organization = "org\x00nul" // a text column refuses it
	var wg sync.WaitGroup
	failed := make(chan error, 1)
	wg.Go(func() {
		_, _, err := n.ChangeKey(t.Context(), domain.Request{}, poison.Key, poison)
		failed <- err
	})
	for range 16 {
		wg.Go(func() { n.mustCreate(t) })
	}
	wg.Wait()
	if err := <-failed; err == nil || domain.CodeOf(err) == domain.CodeUnavailable {
		t.Errorf("the poisoned command gives %v", err)
	}
	if events := n.lifecycle(t); len(events) != 16 {
		t.Errorf("the log has %d events, not 16", len(events))
	}
}

func TestARaisedEpochStopsEveryNode(t *testing.T) {
	t.Parallel()
	db := testkit.Database(t)
	pool := connect(t, db.URL)
	store, err := eventstore.Open(t.Context(), eventstore.Options{Pool: pool, MasterKey: masterKey})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- store.Run(t.Context()) }()
	n := &node{Store: store, pool: pool}
	n.mustCreate(t)

	owner, err := pgx.Connect(t.Context(), db.AdminURL)
	if err != nil {
		t.Fatal(err)
	}
	defer owner.Close(t.Context())
	if _, err := owner.Exec(t.Context(), `SELECT raise_epoch('restored from a backup')`); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, eventstore.ErrEpochChanged) {
		t.Errorf("the store ended with %v", err)
	}
	if _, _, err := n.create(t, domain.Request{}); err == nil {
		t.Error("a store of the old epoch still appends")
	}
	next := open(t, db.URL)
	_, receipt := next.mustCreate(t)
	if receipt.Epoch != 2 || receipt.Position != 2 {
		t.Errorf("the new epoch's first receipt is %+v", receipt)
	}
}

func TestAFlushThatIsSentAgainCountsOnce(t *testing.T) {
	t.Parallel()
	n := log(t)
	key, _ := n.mustCreate(t)
	boot := domain.ID(newKeyID(t))
	flush := eventstore.UsageFlush{Boot: boot, Flush: 1, Events: []domain.KeyUsed{{
		Organization: acme, Boot: boot, Flush: 1, At: now(),
		Uses: []domain.Use{{Key: key.ID, Outcome: domain.OutcomeValid, Count: 7, First: now(), Last: now(), DecidedAt: 1}},
	}}}
	for i := range 3 {
		receipt, err := n.AppendUsage(t.Context(), flush)
		if err != nil {
			t.Fatal(err)
		}
		if receipt.Version != 1 || receipt.Replayed != (i > 0) {
			t.Errorf("call %d: %+v", i, receipt)
		}
	}
	head, err := n.Head(t.Context(), domain.Usage)
	if err != nil || head.Position != 1 {
		t.Errorf("the usage lane is at %d, %v", head.Position, err)
	}
	flush.Expected = 7
	if _, err := n.AppendUsage(t.Context(), flush); err == nil {
		t.Error("a flush that does not continue its stream was taken")
	}
}

func TestAShutdownWritesWhatIsQueued(t *testing.T) {
	t.Parallel()
	n := log(t)
	const callers = 64
	var wg sync.WaitGroup
	outcomes := make(chan error, callers)
	for range callers {
		wg.Go(func() {
			_, _, err := n.create(t, domain.Request{})
			outcomes <- err
		})
	}
	n.stop()
	wg.Wait()
	close(outcomes)
	written := 0
	for err := range outcomes {
		if err == nil {
			written++
		} else if domain.CodeOf(err) != domain.CodeUnavailable {
			t.Error(err)
		}
	}
	if events := n.lifecycle(t); len(events) != written {
		t.Errorf("%d were acknowledged, %d are in the log", written, len(events))
	}
}

func TestACallerThatGivesUpIsToldThatTheOutcomeIsUnknown(t *testing.T) {
	t.Parallel()
	cluster := testkit.Postgres(t, postgres.Options{})
	n := open(t, cluster.URL())
	n.mustCreate(t)
	cluster.Pause()
	defer cluster.Resume()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	id := newKeyID(t)
	_, _, err := n.ChangeKey(ctx, domain.Request{}, id, createCommand(t, id))
	if domain.CodeOf(err) != domain.CodeUnavailable {
		t.Errorf("with the database paused a create gives %v", err)
	}
}

func TestAnotherMasterKeyIsRefusedAtOnce(t *testing.T) {
	t.Parallel()
	db := testkit.Database(t)
	open(t, db.URL)
	_, err := eventstore.Open(t.Context(), eventstore.Options{Pool: connect(t, db.URL), MasterKey: slices.Repeat([]byte{7}, 32)})
	if err == nil {
		t.Error("a ledger opened under a master key that is not its own")
	}
}

func TestTheCheckerFindsPlantedFaults(t *testing.T) {
	t.Parallel()
	n := log(t)
	for range 4 {
		n.mustCreate(t)
	}
	good := n.lifecycle(t)
	for name, plant := range map[string]func([]eventstore.Recorded) []eventstore.Recorded{
		"a gap":             func(e []eventstore.Recorded) []eventstore.Recorded { return append(e[:1:1], e[2:]...) },
		"a swap":            func(e []eventstore.Recorded) []eventstore.Recorded { e[1], e[2] = e[2], e[1]; return e },
		"a skipped version": func(e []eventstore.Recorded) []eventstore.Recorded { e[3].Version = 2; return e },
		"a doubled event":   func(e []eventstore.Recorded) []eventstore.Recorded { e[3].ID = e[2].ID; return e },
		"a time backwards":  func(e []eventstore.Recorded) []eventstore.Recorded { e[3].RecordedAt = time.Time{}; return e },
	} {
		if err := check(plant(slices.Clone(good))); err == nil {
			t.Errorf("%s is not found", name)
		}
	}
	if err := check(good); err != nil {
		t.Error(fmt.Errorf("a good log is refused: %w", err))
	}
}
