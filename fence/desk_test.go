package fence_test

import (
	"slices"
	"sync"
	"testing"
	"time"

	"keyledger/domain"
	"keyledger/fence"
)

func TestAnEmbeddedVerifierIsWaitedForUntilItConfirms(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	first, second := l.node(long), l.node(long)
	id, lease, err := second.desk.Join(patient(t), "a program")
	must(t, err)
	if lease != long {
		t.Errorf("its lease is %s", lease)
	}
	head, err := second.desk.Renew(patient(t), id)
	must(t, err)
	key := first.create()
	position, committed := first.revoke(key)
	if head >= position {
		t.Errorf("the log ended at %d before the revocation at %d", head, position)
	}
	done := make(chan domain.Fenced, 1)
	go func() {
		fenced, err := first.fence.Hold(patient(t), position, committed)
		if err != nil {
			t.Error(err)
		}
		done <- fenced
	}()
	// The ask reaches it through the node that it speaks to.
	for {
		asked, more := second.desk.Asked()
		if asked >= position {
			break
		}
		select {
		case <-more:
		case <-patient(t).Done():
			t.Fatal("it is not asked")
		}
	}
	select {
	case fenced := <-done:
		t.Fatalf("nobody waited for it: %+v", fenced)
	default:
	}
	if head, err := second.desk.Renew(patient(t), id); err != nil || head < position {
		t.Errorf("after the revocation the log ends at %d: %v", head, err)
	}
	second.desk.Confirm(id, position)
	if fenced := <-done; !slices.Contains(fenced.Confirmed, id) || len(fenced.Expired) > 0 {
		t.Errorf("the fence ended with %+v", fenced)
	}
	must(t, second.desk.Leave(patient(t), id))
	if _, err := first.desk.Renew(patient(t), id); domain.CodeOf(err) != domain.CodeNotFound {
		t.Errorf("after it has left it is renewed: %v", err)
	}
}

func TestObserversShareARowAndARevocationWaitsForTheirLease(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	n := l.node(short)
	var observing sync.WaitGroup
	for range 50 {
		observing.Go(func() {
			if _, err := n.desk.Observe(patient(t)); err != nil {
				t.Error(err)
			}
		})
	}
	observing.Wait()
	kinds := map[string]int{}
	for _, kind := range l.members() {
		kinds[kind]++
	}
	if kinds[string(fence.Observers)] != 1 || kinds[string(fence.Node)] != 1 {
		t.Errorf("those who hold leases are %v", kinds)
	}
	position, committed := n.revoke(n.create())
	if _, err := n.desk.Observe(patient(t)); err != nil {
		t.Fatal(err)
	}
	fenced, err := n.fence.Hold(patient(t), position, committed)
	must(t, err)
	if len(fenced.Expired) != 1 || fenced.Waited < fence.Bound(short) {
		t.Errorf("the fence ended with %+v", fenced)
	}
	// When there are none any more, nobody waits for them.
	await(t, "the end of the observers' row", func() bool { return len(l.members()) == 1 })
	position, committed = n.revoke(n.create())
	fenced, err = n.fence.Hold(patient(t), position, committed)
	must(t, err)
	if len(fenced.Expired) != 0 {
		t.Errorf("the fence ended with %+v", fenced)
	}
}

// What was committed before an observer asked is in its answer, however many share it.
func TestAnObserversAnswerIsNeverOlderThanItsQuestion(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	n := l.node(time.Second)
	var asking sync.WaitGroup
	for range 8 {
		asking.Go(func() {
			for range 20 {
				position, _ := n.revoke(n.create())
				if head, err := n.desk.Observe(patient(t)); err != nil || head < position {
					t.Errorf("asked after position %d was committed, the log ends at %d: %v", position, head, err)
				}
			}
		})
	}
	asking.Wait()
}
