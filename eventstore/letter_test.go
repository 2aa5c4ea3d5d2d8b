package eventstore_test

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"keyledger/domain"
	"keyledger/eventstore"
	"keyledger/internal/testkit"
)

// sent is what a process hands to others after a commit.
type sent struct {
	lane   domain.Lane
	end    domain.Position
	letter []byte
}

// writer runs a node on a database that keeps what it sends.
func writer(t *testing.T, url string, masterKey []byte) (*node, <-chan sent) {
	t.Helper()
	letters := make(chan sent, 100)
	n := &node{pool: connect(t, url)}
	var err error
	n.Store, err = eventstore.Open(t.Context(), eventstore.Options{Pool: n.pool, MasterKey: masterKey, Logger: testkit.Logger(t)})
	if err != nil {
		t.Fatal(err)
	}
	n.OnCommit(func(lane domain.Lane, end domain.Position, letter []byte) { letters <- sent{lane, end, letter} })
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return n, letters
}

// deaf opens a store that cannot ask the database any more.
func deaf(t *testing.T, url string) *eventstore.Store {
	t.Helper()
	pool := connect(t, url)
	store, err := eventstore.Open(t.Context(), eventstore.Options{Pool: pool, MasterKey: masterKey, Logger: testkit.Logger(t)})
	if err != nil {
		t.Fatal(err)
	}
	pool.Close()
	return store
}

func TestWithALetterAFollowerElsewhereNeedsNoQuery(t *testing.T) {
	t.Parallel()
	db := testkit.Database(t)
	here, letters := writer(t, db.URL, masterKey)
	there := deaf(t, db.URL)
	for range 3 {
		key, _ := here.mustCreate(t)
		if _, _, err := here.revoke(t, domain.Request{}, key.ID); err != nil {
			t.Fatal(err)
		}
	}
	want := here.lifecycle(t)
	for range want {
		l := <-letters
		if strings.Contains(string(l.letter), "key/") {
			t.Error("whoever carries a letter can read it")
		}
		there.Receive(l.lane, l.end, l.letter)
	}
	var got []eventstore.Recorded
	for events, err := range there.Follow(t.Context(), domain.Lifecycle, 0) {
		if err != nil {
			t.Fatal(err)
		}
		if got = append(got, events...); len(got) == len(want) {
			break
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("what letters say differs from the log:\n%s", diff)
	}
}

func TestALetterIsHeededOnlyAsItWasWritten(t *testing.T) {
	t.Parallel()
	db := testkit.Database(t)
	here, letters := writer(t, db.URL, masterKey)
	other, others := writer(t, testkit.Database(t).URL, make([]byte, eventstore.MasterKeySize))
	here.mustCreate(t)
	other.mustCreate(t)
	good, foreign := <-letters, <-others
	flipped := append([]byte(nil), good.letter...)
	flipped[len(flipped)/2] ^= 1
	for name, l := range map[string]sent{
		"a bit is flipped":         {good.lane, good.end, flipped},
		"it is cut off":            {good.lane, good.end, good.letter[:len(good.letter)-1]},
		"it is empty":              {good.lane, good.end, []byte{}},
		"it ends elsewhere":        {good.lane, good.end + 1, good.letter},
		"it is of another lane":    {domain.Usage, good.end, good.letter},
		"it is of another ledger":  {good.lane, good.end, foreign.letter},
		"a node sends none at all": {good.lane, good.end, nil},
	} {
		there := deaf(t, db.URL)
		// It is told of news in any case, and asks the database.
		there.Receive(l.lane, l.end, l.letter)
		for events, err := range there.Follow(t.Context(), l.lane, 0) {
			if err == nil {
				t.Errorf("%s: it is taken for %d events", name, len(events))
			}
			break
		}
	}
}

// counting counts readings of the log.
type counting struct{ pages atomic.Int64 }

func (c *counting) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	if strings.Contains(data.SQL, "FROM events") {
		c.pages.Add(1)
	}
	return ctx
}

func (c *counting) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

func TestTheFollowersOfAProcessReadTheLogTogether(t *testing.T) {
	t.Parallel()
	db := testkit.Database(t)
	here := open(t, db.URL)
	c := &counting{}
	pool, err := eventstore.Connect(t.Context(), db.URL, eventstore.ConnectOptions{Tracer: c})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	there, err := eventstore.Open(t.Context(), eventstore.Options{Pool: pool, MasterKey: masterKey, Logger: testkit.Logger(t)})
	if err != nil {
		t.Fatal(err)
	}
	const followers, events = 8, 20
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var all sync.WaitGroup
	for range followers {
		all.Go(func() {
			last := domain.Position(0)
			for batch, err := range there.Follow(ctx, domain.Lifecycle, 0) {
				if err != nil {
					t.Error(err)
					return
				}
				for _, r := range batch {
					if last++; r.Position != last {
						t.Errorf("%d follows %d", r.Position, last-1)
					}
				}
				if last == events {
					return
				}
			}
		})
	}
	for range events {
		_, receipt := here.mustCreate(t)
		there.Wake(domain.Lifecycle, receipt.Position)
	}
	all.Wait()
	if n := c.pages.Load(); n > events {
		t.Errorf("%d followers have made %d queries for %d events", followers, n, events)
	}
}
