package publisher_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"

	"keyledger/domain"
	"keyledger/eventstore"
	"keyledger/internal/testkit"
	"keyledger/projections"
	"keyledger/projections/organizations"
	"keyledger/publisher"
)

// What is shown over HTTP says the same as the message, but for the digest.
func TestWhatIsShownIsTheMessageWithoutTheDigest(t *testing.T) {
	t.Parallel()
	for _, e := range everyEvent() {
		r := sample(e)
		r.Data = []byte(`{"keyId":"key_01KF09MFG0FAN8QER1081G8186","digest":"2861a931","scopes":["digest"],"note":{"digest":1},"expiresAt":null}`)
		text, err := publisher.AppendStructured([]byte("before "), r)
		if err != nil {
			t.Fatal(err)
		}
		text, ok := bytes.CutPrefix(text, []byte("before "))
		var shown cloudevents.Event
		if err := json.Unmarshal(text, &shown); err != nil || !ok {
			t.Fatalf("%s: %v", text, err)
		}
		if err := shown.Validate(); err != nil {
			t.Errorf("%s: %v", text, err)
		}
		message, err := publisher.Message(r)
		if err != nil {
			t.Fatal(err)
		}
		var members map[string]any
		if err := json.Unmarshal(text, &members); err != nil {
			t.Fatal(err)
		}
		for name, values := range message.Header {
			attribute := strings.TrimPrefix(name, "ce-")
			if members[attribute] != values[0] {
				t.Errorf("%s: %s is %v, and in the header %q", e.EventName(), attribute, members[attribute], values[0])
			}
			delete(members, attribute)
		}
		if len(members) != 1 || string(shown.Data()) != `{"keyId":"key_01KF09MFG0FAN8QER1081G8186","scopes":["digest"],"note":{"digest":1},"expiresAt":null}` {
			t.Errorf("%s also shows %v", e.EventName(), members)
		}
	}
	r := sample(domain.KeyRevoked{})
	r.Data = []byte(`{"digest":1`)
	if text, err := publisher.AppendStructured(nil, r); err == nil {
		t.Errorf("data that cannot be read is shown as %s", text)
	}
}

// ledger is a real log that is written here.
type realLog struct {
	*eventstore.Store
	*organizations.Reader
	t *testing.T
	n byte
}

func openLog(t *testing.T) *realLog {
	t.Helper()
	pool, err := eventstore.Connect(t.Context(), testkit.Database(t).URL, eventstore.ConnectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	store, err := eventstore.Open(t.Context(), eventstore.Options{Pool: pool, MasterKey: make([]byte, 32), Logger: testkit.Logger(t)})
	if err != nil {
		t.Fatal(err)
	}
	places := projections.NewFollower(store, organizations.New(pool), projections.FollowerOptions{Logger: testkit.Logger(t)})
	l := &realLog{Store: store, Reader: organizations.NewReader(pool, store, places), t: t}
	l.run(store.Run)
	return l
}

func (l *realLog) run(run func(context.Context) error) {
	ctx, stop := context.WithCancel(context.WithoutCancel(l.t.Context()))
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	l.t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			l.t.Error(err)
		}
	})
}

func (l *realLog) request() domain.Request {
	l.n++
	return domain.Request{ID: domain.CommandID{0: l.n, 15: 1}, Metadata: domain.Metadata{Actor: domain.Actor{Kind: domain.ActorConsole, User: "user_ada"}}}
}

// create makes a key; revoke ends it.
func (l *realLog) create(organization domain.OrganizationID) domain.KeyID {
	l.t.Helper()
	request := l.request()
	key := domain.KeyID(id("made", 0, uint64(l.n)))
	_, _, err := l.ChangeKey(l.t.Context(), request, key, domain.CreateKey{
		Now: recordedAt, Key: key, Organization: organization, Digest: domain.Digest{l.n}, Prefix: "bsk_live_a1b2", Name: "Ada's key",
		Scopes: domain.Scopes{"read"}, Granter: domain.Scopes{"*"},
	})
	if err != nil {
		l.t.Fatal(err)
	}
	return key
}

func (l *realLog) revoke(organization domain.OrganizationID, key domain.KeyID) {
	l.t.Helper()
	if _, _, err := l.ChangeKey(l.t.Context(), l.request(), key, domain.RevokeKey{Now: recordedAt, Organization: organization, Reason: "Ada left"}); err != nil {
		l.t.Fatal(err)
	}
}

func positions(page publisher.FeedPage) (positions []domain.Position) {
	for _, e := range page.Events {
		positions = append(positions, e.Position)
	}
	return positions
}

func TestAFeedGivesWhatIsAskedForAndSaysHowFarItLooked(t *testing.T) {
	t.Parallel()
	log := openLog(t)
	for range 3 { // 1 a, 2 a revoked, 3 b; 4 a, 5 a revoked, 6 b; ...
		key := log.create("org_a")
		log.revoke("org_a", key)
		log.create("org_b")
	}
	feed := publisher.NewFeed(log, nil)
	revoked := []string{"keyledger.key.revoked"}
	for _, test := range []struct {
		name  string
		query publisher.FeedQuery
		want  []domain.Position
		next  domain.Position
	}{
		{"everything", publisher.FeedQuery{Most: 100}, []domain.Position{1, 2, 3, 4, 5, 6, 7, 8, 9}, 9},
		{"from the middle", publisher.FeedQuery{Most: 100, After: 7}, []domain.Position{8, 9}, 9},
		{"at the end", publisher.FeedQuery{Most: 100, After: 9}, nil, 9},
		{"a page", publisher.FeedQuery{Most: 2, After: 3}, []domain.Position{4, 5}, 5},
		{"one type", publisher.FeedQuery{Most: 100, Types: revoked}, []domain.Position{2, 5, 8}, 9},
		{"one type, a page: what is left out at its end is passed over", publisher.FeedQuery{Most: 2, Types: revoked}, []domain.Position{2, 5}, 7},
		{"one organization", publisher.FeedQuery{Most: 100, Organization: "org_b"}, []domain.Position{3, 6, 9}, 9},
		{"one organization, a page", publisher.FeedQuery{Most: 2, Organization: "org_a", After: 1}, []domain.Position{2, 4}, 4},
		{"one organization, one type", publisher.FeedQuery{Most: 2, Organization: "org_a", Types: revoked}, []domain.Position{2, 5}, 7},
		{"one organization without it", publisher.FeedQuery{Most: 2, Organization: "org_b", Types: revoked}, nil, 9},
		{"nobody's", publisher.FeedQuery{Most: 2, Organization: "org_c"}, nil, 9},
	} {
		test.query.Lane = domain.Lifecycle
		page, err := feed.Page(t.Context(), test.query)
		if err != nil || !slices.Equal(positions(page), test.want) || page.Next != test.next || page.Head != 9 {
			t.Errorf("%s: got %v and goes on after %d of %d (%v)", test.name, positions(page), page.Next, page.Head, err)
		}
		for _, e := range page.Events {
			if text := string(e.JSON); strings.Contains(text, "igest") || strings.Contains(text, "Ada") || strings.Contains(text, "user_ada") {
				t.Errorf("%s shows %s", test.name, text)
			}
		}
	}
	if _, err := feed.Page(t.Context(), publisher.FeedQuery{Lane: domain.Lifecycle, After: 10, Most: 1}); domain.CodeOf(err) != domain.CodeStale {
		t.Errorf("a position behind the end: %v", err)
	}
	if _, err := feed.Page(t.Context(), publisher.FeedQuery{Lane: domain.Usage, Types: revoked, Most: 1}); domain.CodeOf(err) != domain.CodeInvalid {
		t.Errorf("a type of the other lane: %v", err)
	}
}

// Nothing that happens between two looks may be slept through.
func TestWhoWatchesHearsOfWhatConcernsThem(t *testing.T) {
	t.Parallel()
	log := openLog(t)
	feed := publisher.NewFeed(log, nil)
	log.run(feed.Run)
	news, stop := feed.Watch(domain.Lifecycle, "org_a")
	defer stop()
	all, stopAll := feed.Watch(domain.Lifecycle, "")
	defer stopAll()
	other, stopOther := feed.Watch(domain.Lifecycle, "org_never")
	for len(other) > 0 { // the beginning is news to everybody
		<-other
	}
	follow := func(news <-chan struct{}, organization domain.OrganizationID, want int) {
		var next domain.Position
		for seen := 0; seen < want; {
			page, err := feed.Page(t.Context(), publisher.FeedQuery{Lane: domain.Lifecycle, Organization: organization, After: next, Most: 7})
			if err != nil {
				t.Error(err)
				return
			}
			if seen, next = seen+len(page.Events), page.Next; seen < want && next >= page.Head {
				select {
				case <-news:
				case <-time.After(30 * time.Second):
					t.Errorf("%q heard of %d events of %d", organization, seen, want)
					return
				}
			}
		}
	}
	done := make(chan struct{}, 2)
	go func() { follow(news, "org_a", 60); done <- struct{}{} }()
	go func() { follow(all, "", 120); done <- struct{}{} }()
	for range 60 {
		log.create("org_b")
		log.create("org_a")
	}
	<-done
	<-done
	stopOther()
}

// Parts of the usage lane may be taken away: a reader is told, and not led past it.
func TestAReaderBehindWhatTheLedgerHoldsIsTold(t *testing.T) {
	t.Parallel()
	log := newMemLog(domain.Usage)
	log.grow(50, recordedAt)
	log.detach(20)
	feed := publisher.NewFeed(detached{log}, nil)
	_, err := feed.Page(t.Context(), publisher.FeedQuery{Lane: domain.Usage, After: 10, Most: 5})
	if domain.CodeOf(err) != domain.CodeStale || !strings.Contains(err.Error(), "after=20") {
		t.Errorf("got %v", err)
	}
	page, err := feed.Page(t.Context(), publisher.FeedQuery{Lane: domain.Usage, After: 20, Most: 5})
	if err != nil || !slices.Equal(positions(page), []domain.Position{21, 22, 23, 24, 25}) {
		t.Errorf("got %v %v", positions(page), err)
	}
}

// detached is a log in memory that says what Postgres would.
type detached struct{ *memLog }

func (d detached) Page(_ context.Context, _ domain.Lane, after domain.Position) ([]eventstore.Recorded, error) {
	batch, _, err := d.after(after, 100)
	if err != nil {
		err = fmt.Errorf("%w: %w", eventstore.ErrGap, err)
	}
	return batch, err
}

func (detached) OrganizationPage(context.Context, domain.OrganizationID, domain.Position, domain.Position, int) ([]eventstore.Recorded, domain.Position, error) {
	return nil, 0, nil
}

func (detached) Await(ctx context.Context, _ domain.Lane, after domain.Position) (domain.Position, error) {
	<-ctx.Done()
	return after, ctx.Err()
}

func TestEveryTypeCanBeAskedFor(t *testing.T) {
	t.Parallel()
	for _, e := range everyEvent() {
		r := sample(e)
		message, err := publisher.Message(r)
		if err != nil {
			t.Fatal(err)
		}
		if err := publisher.CheckTypes(r.Lane, message.Header["ce-type"]); err != nil {
			t.Errorf("%s: %v", e.EventName(), err)
		}
	}
	if all := len(publisher.Types(domain.Lifecycle)) + len(publisher.Types(domain.Usage)); all != len(everyEvent()) {
		t.Errorf("%d types can be asked for, there are %d", all, len(everyEvent()))
	}
}
