package eventstore_test

import (
	"context"
	"sync"
	"testing"

	"keyledger/domain"
	"keyledger/eventstore"
	"keyledger/internal/testkit"
)

func (n *node) erase(t testing.TB, organization domain.OrganizationID) (domain.Receipt, error) {
	t.Helper()
	o, receipt, err := n.ChangeOrganization(t.Context(), domain.Request{}, organization,
		domain.EraseOrganization{Now: now(), Organization: organization, Reason: "ticket 4711"})
	if err == nil && !o.Erased {
		t.Error("the organization is erased, and does not say so")
	}
	return receipt, err
}

func (n *node) dataKeys(t testing.TB, organization domain.OrganizationID) (count int) {
	t.Helper()
	if err := n.pool.QueryRow(t.Context(), `SELECT count(*) FROM data_keys WHERE organization = $1`, string(organization)).Scan(&count); err != nil {
		t.Fatal(err)
	}
	return count
}

func TestAnErasureIsForGoodOnEveryNode(t *testing.T) {
	t.Parallel()
	db := testkit.Database(t)
	a, b := open(t, db.URL), open(t, db.URL)
	key, _ := a.mustCreate(t)
	other, _ := b.mustCreate(t) // b has the data key in memory, and the event in its tail
	add := domain.AddMember{Now: now(), Organization: acme, User: "user_ada", Role: "owner"}
	if _, _, err := b.ChangeOrganization(t.Context(), domain.Request{}, acme, add); err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.Organization(t.Context(), acme); err != nil {
		t.Fatal(err)
	}
	receipt, err := a.erase(t, acme)
	if err != nil || !receipt.Changed {
		t.Fatalf("the erasure gives %+v, %v", receipt, err)
	}
	if n := a.dataKeys(t, acme); n != 0 {
		t.Errorf("%d data keys are left", n)
	}

	// b has met nothing of it yet, and the log refuses it all the same.
	if _, _, err := b.create(t, domain.Request{}); domain.CodeOf(err) != domain.CodeForbidden {
		t.Errorf("a key is made in an erased organization: %v", err)
	}
	for _, n := range []*node{a, b} {
		if _, _, err := n.create(t, domain.Request{}); domain.CodeOf(err) != domain.CodeForbidden {
			t.Errorf("a key is made in an erased organization: %v", err)
		}
		if _, _, err := n.ChangeOrganization(t.Context(), domain.Request{}, acme, add); domain.CodeOf(err) != domain.CodeForbidden {
			t.Errorf("a member is added to an erased organization: %v", err)
		}
		if o, _, err := n.Organization(t.Context(), acme); err != nil || !o.Erased || len(o.Members) != 0 {
			t.Errorf("the organization is %+v, %v", o, err)
		}
	}
	if again, err := b.erase(t, acme); err != nil || again.Changed {
		t.Errorf("a second erasure gives %+v, %v", again, err)
	}
	if n := a.dataKeys(t, acme); n != 0 {
		t.Errorf("%d data keys were made since", n)
	}

	// What could not be revoked before can still be, without a word that names anybody.
	revoke := domain.RevokeKey{Now: now(), Organization: acme}
	if _, _, err := b.ChangeKey(t.Context(), domain.Request{}, other.ID, revoke); err != nil {
		t.Errorf("a key of an erased organization cannot be revoked: %v", err)
	}
	revoke.Reason = "it was Ada's"
	if _, _, err := b.ChangeKey(t.Context(), domain.Request{}, key.ID, revoke); domain.CodeOf(err) != domain.CodeForbidden {
		t.Errorf("something personal was written after the erasure: %v", err)
	}

	for _, n := range []*node{a, b} {
		for _, r := range n.lifecycle(t) {
			e, err := n.Decode(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			if created, ok := e.Event.(domain.KeyCreated); ok && (created.Name != "" || created.CreatedBy != "") {
				t.Errorf("position %d still tells of %q by %q", r.Position, created.Name, created.CreatedBy)
			}
			if e.Erased != (r.Sealed != nil) {
				t.Errorf("position %d is erased: %v", r.Position, e.Erased)
			}
		}
	}
	// Another organization, and the service's own, go on.
	if _, _, err := b.ChangeOrganization(t.Context(), domain.Request{}, "org_other", domain.AddMember{Now: now(), Organization: "org_other", User: "user_bob", Role: "owner"}); err != nil {
		t.Error(err)
	}
	if _, err := a.erase(t, domain.SystemOrganization); domain.CodeOf(err) != domain.CodeForbidden {
		t.Errorf("the service's own organization is erased: %v", err)
	}
}

// A follower is handed the erasure only after this process has forgotten.
func TestAFollowersProcessForgetsBeforeItSeesTheErasure(t *testing.T) {
	t.Parallel()
	db := testkit.Database(t)
	a, b := open(t, db.URL), open(t, db.URL)
	b.mustCreate(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var first eventstore.Recorded
	for batch, err := range b.Follow(ctx, domain.Lifecycle, 0) {
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range batch {
			switch r.Type {
			case "KeyCreated":
				first = r // as b's tail holds it
				if e, err := b.Decode(ctx, r); err != nil || e.Erased {
					t.Fatalf("the name is not there before the erasure: %v", err)
				}
				if _, err := a.erase(t, acme); err != nil {
					t.Fatal(err)
				}
			case "OrganizationErased":
				if e, err := b.Decode(ctx, first); err != nil || !e.Erased || e.Event.(domain.KeyCreated).Name != "" {
					t.Errorf("the tail still tells the name: %+v %v", e.Event, err)
				}
				return
			}
		}
	}
}

func TestNothingIsAddedWhileAnOrganizationIsErased(t *testing.T) {
	t.Parallel()
	db := testkit.Database(t)
	nodes := []*node{open(t, db.URL), open(t, db.URL)}
	nodes[0].mustCreate(t)
	var writers sync.WaitGroup
	begun := make(chan struct{}, 1)
	for i := range 16 {
		writers.Go(func() {
			for {
				_, _, err := nodes[i%2].create(t, domain.Request{})
				select {
				case begun <- struct{}{}:
				default:
				}
				if domain.CodeOf(err) == domain.CodeForbidden && err != nil {
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	<-begun
	if _, err := nodes[0].erase(t, acme); err != nil {
		t.Error(err)
	}
	writers.Wait()
	events := nodes[1].lifecycle(t)
	audit(t, events)
	if last := events[len(events)-1]; last.Type != "OrganizationErased" {
		t.Errorf("a %s follows the erasure", last.Type)
	}
	if n := nodes[0].dataKeys(t, acme); n != 0 {
		t.Errorf("%d data keys are left", n)
	}
}

func TestAnErasureTakesTheDataKeyThatIsBeingMade(t *testing.T) {
	t.Parallel()
	db := testkit.Database(t)
	nodes := []*node{open(t, db.URL), open(t, db.URL)}
	for range 20 {
		organization := domain.OrganizationID("org_" + newKeyID(t).String())
		var both sync.WaitGroup
		both.Go(func() {
			_, _, err := nodes[0].ChangeOrganization(t.Context(), domain.Request{}, organization, domain.AddMember{Now: now(), Organization: organization, User: "user_ada", Role: "owner"})
			if err != nil && domain.CodeOf(err) != domain.CodeForbidden {
				t.Error(err)
			}
		})
		both.Go(func() {
			if _, err := nodes[1].erase(t, organization); err != nil {
				t.Error(err)
			}
		})
		both.Wait()
		if n := nodes[0].dataKeys(t, organization); n != 0 {
			t.Fatalf("%s is erased and has %d data keys", organization, n)
		}
	}
}
