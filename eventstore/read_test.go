package eventstore_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/jackc/pgx/v5"

	"keyledger/domain"
	"keyledger/eventstore"
	"keyledger/internal/testkit"
)

func TestAFollowerSeesEveryEventOfEveryNodeInOrder(t *testing.T) {
	t.Parallel()
	db := testkit.Database(t)
	nodes := []*node{open(t, db.URL), open(t, db.URL)}
	const each = 60
	var writers sync.WaitGroup
	defer writers.Wait() // their answers may come after their events
	for _, n := range nodes {
		writers.Go(func() {
			for range each {
				if _, _, err := n.create(t, domain.Request{}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var last domain.Position
	for events, err := range nodes[0].Follow(ctx, domain.Lifecycle, 0) {
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range events {
			if r.Position != last+1 {
				t.Fatalf("%d follows %d", r.Position, last)
			}
			last = r.Position
		}
		if last == 2*each {
			break
		}
	}
	if last != 2*each {
		t.Errorf("the follower stopped at %d", last)
	}
}

func TestWhatTheMemoryGivesIsWhatTheDatabaseGives(t *testing.T) {
	t.Parallel()
	db := testkit.Database(t)
	n, other := open(t, db.URL), open(t, db.URL)
	key, _ := n.mustCreate(t)
	if _, _, err := n.revoke(t, domain.Request{Metadata: someMetadata(key.ID)}, key.ID); err != nil {
		t.Fatal(err)
	}
	stored := n.lifecycle(t)
	for events, err := range n.Follow(t.Context(), domain.Lifecycle, 0) {
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(stored, events); diff != "" {
			t.Errorf("stored and followed events differ: %s", diff)
		}
		for _, r := range events {
			kept, err := n.Decode(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			decoded, err := other.Decode(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(decoded, kept, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
				t.Errorf("decoded and kept events differ: %s", diff)
			}
		}
		break
	}
}

func TestAWakeFromAnotherNodeIsEnough(t *testing.T) {
	t.Parallel()
	db := testkit.Database(t)
	writer, reader := open(t, db.URL), open(t, db.URL)
	_, receipt := writer.mustCreate(t)
	reader.Wake(domain.Lifecycle, receipt.Position)
	for events, err := range reader.Follow(t.Context(), domain.Lifecycle, 0) {
		if err != nil || len(events) != 1 {
			t.Errorf("%d events, %v", len(events), err)
		}
		break
	}
}

func TestAGapInTheLogIsReportedAndNeverSkipped(t *testing.T) {
	t.Parallel()
	db := testkit.Database(t)
	n := open(t, db.URL)
	for range 3 {
		n.mustCreate(t)
	}
	owner, err := pgx.Connect(t.Context(), db.AdminURL)
	if err != nil {
		t.Fatal(err)
	}
	defer owner.Close(t.Context())
	if _, err := owner.Exec(t.Context(), `ALTER TABLE events DISABLE TRIGGER USER; ALTER TABLE events_lifecycle DISABLE TRIGGER USER; DELETE FROM events WHERE position = 2`); err != nil {
		t.Fatal(err)
	}
	var failed error
	var seen int
	for _, err := range n.Read(t.Context(), domain.Lifecycle, 0) {
		if err != nil {
			failed = err
			break
		}
		seen++
	}
	if !errors.Is(failed, eventstore.ErrGap) || seen != 0 {
		t.Errorf("a reader saw %d events of a log with a gap, and %v", seen, failed)
	}
}

func TestFirstSinceFindsTheOldestEventNotBefore(t *testing.T) {
	t.Parallel()
	n := log(t)
	for range 20 {
		n.mustCreate(t)
	}
	events := n.lifecycle(t)
	for _, moment := range []time.Time{{}, events[0].RecordedAt, events[7].RecordedAt, events[7].RecordedAt.Add(time.Microsecond), events[19].RecordedAt, events[19].RecordedAt.Add(time.Hour)} {
		want := domain.Position(len(events) + 1)
		for i := len(events) - 1; i >= 0 && !events[i].RecordedAt.Before(moment); i-- {
			want = events[i].Position
		}
		got, err := n.FirstSince(t.Context(), domain.Lifecycle, moment)
		if err != nil || got != want {
			t.Errorf("first since %v: %d, not %d (%v)", moment, got, want, err)
		}
	}
}

func TestAnOrganizationIsFoldedAsItStandsNow(t *testing.T) {
	t.Parallel()
	db := testkit.Database(t)
	here, there := open(t, db.URL), open(t, db.URL)
	change := func(n *node, c domain.OrganizationCommand) {
		t.Helper()
		if _, _, err := n.ChangeOrganization(t.Context(), domain.Request{}, acme, c); err != nil {
			t.Fatal(err)
		}
	}
	roles := func(n *node) map[domain.UserID]string {
		t.Helper()
		o, _, err := n.Organization(t.Context(), acme)
		if err != nil {
			t.Fatal(err)
		}
		roles := map[domain.UserID]string{}
		for user, m := range o.Members {
			roles[user] = m.Role
		}
		return roles
	}
	change(here, domain.AddMember{Now: now(), Organization: acme, User: "ada", Role: "owner"})
	change(here, domain.AddMember{Now: now(), Organization: acme, User: "bob", Role: "member"})
	if diff := cmp.Diff(map[domain.UserID]string{"ada": "owner", "bob": "member"}, roles(there)); diff != "" {
		t.Error(diff)
	}
	change(here, domain.RemoveMember{Now: now(), Organization: acme, User: "bob"})
	change(here, domain.RemoveMember{Now: now(), Organization: acme, User: "bob"})
	for _, n := range []*node{here, there} {
		if diff := cmp.Diff(map[domain.UserID]string{"ada": "owner"}, roles(n)); diff != "" {
			t.Error(diff)
		}
	}
	if events := here.lifecycle(t); len(events) != 3 {
		t.Errorf("the log has %d events, not 3", len(events))
	}
}

func TestErasedPersonalFieldsAreGoneAndTheRestStays(t *testing.T) {
	t.Parallel()
	db := testkit.Database(t)
	n := open(t, db.URL)
	key, _ := n.mustCreate(t)
	if _, err := n.erase(t, acme); err != nil {
		t.Fatal(err)
	}
	fresh := open(t, db.URL) // another process, which never knew the data key
	recorded := fresh.lifecycle(t)[0]
	e, err := fresh.Decode(t.Context(), recorded)
	if err != nil {
		t.Fatal(err)
	}
	created, ok := e.Event.(domain.KeyCreated)
	if !ok || !e.Erased || created.Name != "" || created.CreatedBy != "" {
		t.Errorf("after erasure the event still says %+v", e)
	}
	if created.Key != key.ID || created.Digest != key.Digest {
		t.Error("what is not personal is gone as well")
	}
}

func TestASealedSectionCannotBeMovedToAnotherEvent(t *testing.T) {
	t.Parallel()
	n := log(t)
	n.mustCreate(t)
	n.mustCreate(t)
	events := n.lifecycle(t)
	events[1].Sealed = events[0].Sealed
	if _, err := n.Decode(t.Context(), events[1]); err == nil {
		t.Error("a sealed section opened in another event")
	}
}

func someMetadata(key domain.KeyID) domain.Metadata {
	return domain.Metadata{
		Actor: domain.Actor{Kind: domain.ActorKey, Key: key}, RequestID: "req_1", TraceID: "4bf92f3577b34da6a3ce929d0e0e4736",
		Source: testAddress,
	}
}

// A stream is folded from its beginning once in a process; so that must be bearable for the
// longest that there are, which are the members of large organizations.
func TestALongStreamIsFoldedOnceAndFast(t *testing.T) {
	t.Parallel()
	db := testkit.Database(t)
	n := open(t, db.URL)
	const events = 6000
	add := func(i int) domain.AddMember {
		return domain.AddMember{Now: now(), Organization: acme, User: domain.UserID(fmt.Sprint("user_", i)), Role: "member"}
	}
	if _, _, err := n.ChangeOrganization(t.Context(), domain.Request{}, acme, add(0)); err != nil {
		t.Fatal(err)
	}
	// As an import would: what the log says of one member, again and again.
	owner, err := pgx.Connect(t.Context(), db.AdminURL)
	if err != nil {
		t.Fatal(err)
	}
	defer owner.Close(t.Context())
	_, err = owner.Exec(t.Context(), fmt.Sprintf(`INSERT INTO events (lane, position, epoch, id, stream, version, organization, type, schema, recorded_at, data, metadata, sealed)
		SELECT e.lane, n, e.epoch, e.id, e.stream, n, e.organization, e.type, e.schema, e.recorded_at, e.data, e.metadata, e.sealed FROM events e, generate_series(2, %d) n;
		UPDATE log_head SET position = %[1]d WHERE lane = 'lifecycle'`, events))
	if err != nil {
		t.Fatal(err)
	}
	fresh := open(t, db.URL)
	started := time.Now()
	if _, version, err := fresh.Organization(t.Context(), acme); err != nil || version != events {
		t.Fatalf("the organization is at version %d, %v", version, err)
	}
	t.Logf("%d events of one stream were folded in %s", events, time.Since(started))
	for i := range 3 {
		o, receipt, err := fresh.ChangeOrganization(t.Context(), domain.Request{}, acme, add(i+1))
		if err != nil || receipt.Version != events+uint64(i)+1 || len(o.Members) != i+2 {
			t.Fatalf("%+v, %v, %d members", receipt, err, len(o.Members))
		}
	}
	if o, _, err := fresh.Organization(t.Context(), acme); err != nil || len(o.Members) != 4 {
		t.Errorf("%d members, %v", len(o.Members), err)
	}
}

func TestAFollowerOfUsesIsGivenWhatSeveralFlushesLeftInMemoryAtOnce(t *testing.T) {
	t.Parallel()
	n := open(t, testkit.Database(t).URL)
	key, _ := n.mustCreate(t)
	const flushes, each = 3, 70 // more than one query reads
	flush := eventstore.UsageFlush{Boot: domain.ID(newKeyID(t))}
	for range flushes {
		flush.Flush++
		flush.Events = nil
		for range each {
			flush.Events = append(flush.Events, domain.KeyUsed{
				Organization: acme, Boot: flush.Boot, Flush: flush.Flush, At: now(),
				Uses: []domain.Use{{Key: key.ID, Outcome: domain.OutcomeValid, Count: 1, First: now(), Last: now(), DecidedAt: 1}},
			})
		}
		receipt, err := n.AppendUsage(t.Context(), flush)
		if err != nil {
			t.Fatal(err)
		}
		flush.Expected = receipt.Version
	}
	for events, err := range n.Follow(t.Context(), domain.Usage, 0) {
		if err != nil || len(events) != flushes*each {
			t.Fatalf("%d events at once, %v", len(events), err)
		}
		if eventstore.Cut(domain.Usage, len(events)) {
			t.Error("all there are, and it is said that there are more")
		}
		break
	}
}
