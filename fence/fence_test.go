package fence_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"keyledger/domain"
	"keyledger/eventstore"
	"keyledger/fence"
)

const (
	// long is a lease that no test waits for.
	long = time.Minute
	// short is one that tests wait for.
	short = 600 * time.Millisecond
	// slack is what a busy machine may need beside a wait.
	slack = 10 * time.Second
)

func TestARevocationIsAnsweredWhenEveryServerKnows(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	first, second := l.node(long), l.node(long)
	key := first.create()
	position, committed := first.revoke(key)
	fenced, err := first.fence.Hold(patient(t), position, committed)
	must(t, err)
	if len(fenced.Confirmed) != 2 || len(fenced.Expired) != 0 || !slices.Contains(fenced.Confirmed, second.id) {
		t.Errorf("the fence ended with %+v", fenced)
	}
	for _, n := range []*node{first, second} {
		if outcome := n.outcome(key); outcome != domain.OutcomeRevoked {
			t.Errorf("after the fence a server says %v", outcome)
		}
	}
	// What holds for this position holds for what came before, at once.
	if again, err := first.fence.Hold(patient(t), position-1, time.Now()); err != nil || again.Waited != 0 {
		t.Errorf("what held is waited for again: %+v, %v", again, err)
	}
}

func TestAServerThatDoesNotConfirmIsWaitedForUntilItsLeaseHasEnded(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	first, second := l.node(short), l.node(short)
	key := first.create()
	second.index.frozen.Store(true)
	position, committed := first.revoke(key)
	fenced, err := first.fence.Hold(patient(t), position, committed)
	waited := time.Since(committed)
	must(t, err)
	if !slices.Contains(fenced.Expired, second.id) || !slices.Contains(fenced.Confirmed, first.id) {
		t.Errorf("the fence ended with %+v", fenced)
	}
	if bound := fence.Bound(short); waited < bound || fenced.Waited < bound || waited > bound+slack {
		t.Errorf("it took %s, want %s from the commit on", waited, bound)
	}
}

func TestTheLongestLeaseOfThoseWhoDoNotAnswerIsWaitedFor(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	first, second := l.node(short), l.node(3*short)
	second.index.frozen.Store(true)
	position, committed := first.revoke(first.create())
	by, err := first.fence.By(patient(t), committed)
	must(t, err)
	if want := committed.Add(fence.Bound(3 * short)); !by.Equal(want) {
		t.Errorf("it is said to hold by %s, want %s", by, want)
	}
	fenced, err := first.fence.Hold(patient(t), position, committed)
	must(t, err)
	if fenced.Waited < fence.Bound(3*short) {
		t.Errorf("a lease of %s was waited for %s", 3*short, fenced.Waited)
	}
}

func TestWithoutNATSARevocationWaitsForTheLeases(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	first, second := l.node(short), l.node(short)
	key := first.create()
	l.broker.Stop()
	position, committed := first.revoke(key)
	fenced, err := first.fence.Hold(patient(t), position, committed)
	must(t, err)
	if !slices.Equal(fenced.Expired, []domain.ID{second.id}) || fenced.Waited < fence.Bound(short) {
		t.Errorf("the fence ended with %+v", fenced)
	}
	await(t, "the revocation on the other server, from the log", func() bool { return second.outcome(key) == domain.OutcomeRevoked })
}

func TestWhoeverAsksAgainElsewhereWaitsAsWell(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	first, second, third := l.node(short), l.node(short), l.node(short)
	key := first.create()
	third.index.frozen.Store(true)
	position, committed := first.revoke(key)
	go func() { _, _ = first.fence.Hold(t.Context(), position, committed) }()
	_, receipt, err := second.store.ChangeKey(patient(t), request(), key.ID, domain.RevokeKey{Now: now(), Organization: key.Organization})
	must(t, err)
	if receipt.Changed {
		t.Fatal("it was revoked twice")
	}
	again := time.Now()
	fenced, err := second.fence.Hold(patient(t), receipt.Position, again)
	must(t, err)
	if !slices.Contains(fenced.Expired, third.id) || time.Since(again) < fence.Bound(short) {
		t.Errorf("the second revocation waited %s and ended with %+v", time.Since(again), fenced)
	}
}

func TestWhoeverCannotReadWhoIsToBeWaitedForSaysSo(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	n := l.node(long)
	position, committed := n.revoke(n.create())
	owner, err := pgxpool.New(t.Context(), l.db.AdminURL)
	must(t, err)
	defer owner.Close()
	tx, err := owner.Begin(t.Context())
	must(t, err)
	_, err = tx.Exec(t.Context(), `LOCK TABLE verifiers IN ACCESS EXCLUSIVE MODE`)
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := n.fence.Hold(ctx, position, committed); domain.CodeOf(err) != domain.CodeUnavailable {
		t.Errorf("without the table the fence ends with %v", err)
	}
	must(t, tx.Rollback(t.Context()))
	if _, err := n.fence.Hold(patient(t), position, committed); err != nil {
		t.Error(err)
	}
}

func TestALeaseCountsFromBeforeItWasAskedFor(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	n := l.node(long / 10)
	// A renewal that is answered late: the row is locked until one waits for it.
	owner, err := pgxpool.New(t.Context(), l.db.AdminURL)
	must(t, err)
	defer owner.Close()
	tx, err := owner.Begin(t.Context())
	must(t, err)
	_, err = tx.Exec(t.Context(), `SELECT FROM verifiers FOR UPDATE`)
	must(t, err)
	await(t, "a renewal that waits", func() (waits bool) {
		must(t, owner.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')`).Scan(&waits))
		return waits
	})
	before := n.index.grants()
	released := time.Now()
	must(t, tx.Rollback(t.Context()))
	await(t, "the renewal that waited", func() bool { return n.index.grants() > before })
	n.index.mu.Lock()
	defer n.index.mu.Unlock()
	if late := n.index.asked[before]; !late.Before(released) {
		t.Errorf("the lease counts from %s after the lock was gone, not from before it was asked for", late.Sub(released))
	}
}

func TestAServerThatIsGoneIsReapedAndJoinsAgain(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	first := l.node(short)
	owner, err := pgxpool.New(t.Context(), l.db.AdminURL)
	must(t, err)
	defer owner.Close()
	// A server that was killed: its row stays, and nobody renews it.
	dead := newID(t)
	_, err = owner.Exec(t.Context(), `INSERT INTO verifiers (id, kind, name, lease_ms) VALUES ($1, 'node', 'dead', $2)`, [16]byte(dead), short.Milliseconds())
	must(t, err)
	began := time.Now()
	await(t, "the end of the dead one's row", func() bool { _, there := l.members()[dead]; return !there })
	if lasted := time.Since(began); lasted < 2*short {
		t.Errorf("it was reaped after %s, within twice its lease", lasted)
	}
	// One that is alive and was reaped by mistake joins again.
	_, err = owner.Exec(t.Context(), `DELETE FROM verifiers`)
	must(t, err)
	await(t, "the row of the living", func() bool { _, there := l.members()[first.id]; return there })
	// And one that ends leaves.
	must(t, first.stop())
	if members := l.members(); len(members) != 0 {
		t.Errorf("after the end there are %v", members)
	}
}

func TestWhoeverRunsAloneNeedNotWaitForItsPredecessor(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	owner, err := pgxpool.New(t.Context(), l.db.AdminURL)
	must(t, err)
	defer owner.Close()
	killed, other := newID(t), newID(t)
	for id, name := range map[domain.ID]string{killed: "a test", other: "another server"} {
		_, err = owner.Exec(t.Context(), `INSERT INTO verifiers (id, kind, name, lease_ms) VALUES ($1, 'node', $2, 60000)`, [16]byte(id), name)
		must(t, err)
	}
	l.sole = true
	n := l.node(long)
	members := l.members()
	if _, there := members[killed]; there || len(members) != 2 || members[n.id] == "" || members[other] == "" {
		t.Errorf("those who are waited for are %v", members)
	}
}

func TestAnotherEpochEndsIt(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	n := l.node(short)
	owner, err := pgxpool.New(t.Context(), l.db.AdminURL)
	must(t, err)
	defer owner.Close()
	_, err = owner.Exec(t.Context(), `SELECT raise_epoch('a test')`)
	must(t, err)
	before := n.index.grants()
	ended := make(chan error, 1)
	go func() { ended <- n.waitForEnd() }()
	select {
	case err := <-ended:
		if !errors.Is(err, eventstore.ErrEpochChanged) {
			t.Errorf("it ended with %v", err)
		}
	case <-patient(t).Done():
		t.Fatal("it goes on in another epoch")
	}
	if n.index.grants() > before+1 { // one may have been under way
		t.Error("leases were granted in another epoch")
	}
}

func TestHowAFenceEndedIsOnRecord(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	n := l.node(long)
	key := n.create()
	position, committed := n.revoke(key)
	fenced, err := n.fence.Hold(patient(t), position, committed)
	must(t, err)
	n.fence.Record(key.ID, position, fenced)
	must(t, n.stop()) // what is queued is written first
	var last domain.Event
	for r, err := range n.store.ReadStream(patient(t), eventstore.KeyStream(key.ID), 0) {
		must(t, err)
		e, err := n.store.Decode(patient(t), r)
		must(t, err)
		last = e.Event
	}
	record, ok := last.(domain.RevocationFenced)
	if !ok || record.Key != key.ID || record.Position != position || !slices.Equal(record.Confirmed, []domain.ID{n.id}) || len(record.Expired) != 0 {
		t.Errorf("the log tells %#v", last)
	}
}

func TestACreationIsToldToTheOthersAndWaitsAMomentAtMost(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	first, second := l.node(long), l.node(long)
	// The first has to know that there is another one.
	first.create()
	_, err := first.fence.Hold(patient(t), 1, time.Now())
	must(t, err)
	key := first.create()
	began := time.Now()
	first.fence.Tell(patient(t), first.index.Position())
	told := time.Since(began)
	if outcome := second.outcome(key); outcome != domain.OutcomeValid && told < fence.ToldWithin {
		t.Errorf("after %s the other server says %v of a new key", told, outcome)
	}
	second.index.frozen.Store(true)
	began = time.Now()
	first.create()
	first.fence.Tell(patient(t), first.index.Position())
	if took := time.Since(began); took > slack {
		t.Errorf("a creation waited %s", took)
	}
	began = time.Now()
	const often = 10 * slack / fence.ToldWithin
	ctx := patient(t)
	for range often {
		first.fence.Tell(ctx, first.index.Position())
	}
	if took := time.Since(began); took > slack {
		t.Errorf("creations wait again and again for a server that does not answer: %s", took)
	}
}
