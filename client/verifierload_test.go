package client_test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"keyledger/client"
	"keyledger/domain"
	"keyledger/eventstore"
	"keyledger/index"
	"keyledger/projections/verification"
)

// node is a server's side of a verifier, on keys that are in memory and a log where
// nothing happens: what can break off is the way to it.
type node struct {
	t       *testing.T
	history index.History
	index   *index.Index
	feed    *verification.Feed

	mu       sync.Mutex
	breaks   int // so many more snapshots break off
	after    []string
	restored bool
	version  uint64
	reaped   bool
	joins    []string // what they said that they were
}

// quiet is a log without events.
type quiet struct{ history index.History }

func (q quiet) Follow(ctx context.Context, _ domain.Lane, _ domain.Position) iter.Seq2[[]eventstore.Recorded, error] {
	return func(func([]eventstore.Recorded, error) bool) { <-ctx.Done() }
}

func (quiet) Decode(context.Context, eventstore.Recorded) (eventstore.Event, error) {
	return eventstore.Event{}, errors.New("there is none")
}

func (quiet) AppendUsage(context.Context, eventstore.UsageFlush) (domain.Receipt, error) {
	return domain.Receipt{}, errors.New("nothing is recorded")
}

func (q quiet) Ledger() (domain.ID, uint32) { return q.history.Ledger, q.history.Epoch }

func plainKey(n int) string { return fmt.Sprintf("bsk_live_%032d", n) }

func startNode(t *testing.T, history index.History, keys int) *node {
	t.Helper()
	n := &node{t: t, history: history, index: index.New(index.Options{})}
	n.fill(keys)
	return n
}

func (n *node) fill(keys int) {
	position := domain.Position(keys)
	l := index.Begin(n.history, position, keys)
	for i := range keys {
		k := index.Key{Digest: sha256.Sum256([]byte(plainKey(i))), Organization: fmt.Sprint("org_", i%7), Name: fmt.Sprint("key ", i), Scopes: l.Scopes(domain.Scopes{"read"}), Version: 1}
		copy(k.ID[:], fmt.Sprintf("id %013d", i))
		if err := l.Add(&k); err != nil {
			n.t.Fatal(err)
		}
	}
	n.index.Replace(l, position, 0)
	n.feed = verification.NewFeed(n.index, quiet{n.history})
}

func (n *node) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	n.mu.Lock()
	history, feed := n.history, n.feed
	n.mu.Unlock()
	problem := func(err error) {
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(map[domain.Code]int{domain.CodeNotFound: 404, domain.CodeInvalid: 400}[domain.CodeOf(err)])
		_ = json.NewEncoder(w).Encode(map[string]string{"code": string(domain.CodeOf(err))})
	}
	switch r.URL.Path {
	case "/api/v1/verifiers":
		var said struct{ Kind, Name, Verifier string }
		_ = json.NewDecoder(r.Body).Decode(&said)
		n.mu.Lock()
		n.joins = append(n.joins, said.Kind+" "+said.Verifier)
		n.reaped = false
		n.mu.Unlock()
		w.WriteHeader(http.StatusCreated)
		_, _ = fmt.Fprintf(w, `{"verifier":"it","leaseMs":%d,"ledger":%q,"epoch":%d}`, longLease.Milliseconds(), history.Ledger.UUID(), history.Epoch)
	case "/api/v1/verifiers/it/lease":
		n.mu.Lock()
		reaped := n.reaped
		n.mu.Unlock()
		if reaped {
			problem(domain.Errorf(domain.CodeNotFound, "join again"))
			return
		}
		_, _ = fmt.Fprintf(w, `{"head":"%d:lifecycle:%d","leaseMs":%d}`, history.Epoch, n.index.Position(), longLease.Milliseconds())
	case "/api/v1/verifiers/it/uses":
		n.mu.Lock()
		defer n.mu.Unlock()
		n.version++
		_, _ = fmt.Fprintf(w, `{"version":%d}`, n.version)
	case "/api/v1/verifiers/snapshot":
		after := r.URL.Query().Get("after")
		n.mu.Lock()
		n.after = append(n.after, after)
		breaks := n.breaks > 0
		n.breaks--
		n.mu.Unlock()
		next, stop, err := feed.Snapshot(after)
		if err != nil {
			problem(err)
			return
		}
		defer stop()
		w.Header().Set("Content-Encoding", "zstd")
		for parts := 0; ; parts++ {
			part, err := next(r.Context())
			if err != nil {
				if !errors.Is(err, io.EOF) {
					panic(http.ErrAbortHandler)
				}
				return
			}
			if breaks && parts == 1 {
				_, _ = w.Write(part[:len(part)/2]) // in the middle of a frame
				_ = http.NewResponseController(w).Flush()
				panic(http.ErrAbortHandler)
			}
			_, _ = w.Write(part)
			_ = http.NewResponseController(w).Flush()
		}
	case "/api/v1/verifiers/changes":
		after, _ := strconv.ParseUint(r.URL.Query().Get("after"), 10, 64)
		for frames, err := range feed.Changes(r.Context(), domain.Position(after)) {
			if err != nil {
				return
			}
			_, _ = w.Write(frames)
			_ = http.NewResponseController(w).Flush()
			n.mu.Lock()
			over := n.restored
			n.mu.Unlock()
			if over {
				return
			}
		}
	default:
		w.WriteHeader(http.StatusNoContent)
	}
}

func (n *node) url() string {
	s := httptest.NewServer(n)
	n.t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	return s.URL
}

func TestASnapshotThatBreaksOffGoesOnWhereItWas(t *testing.T) {
	t.Parallel()
	const keys = 30_000
	n := startNode(t, index.History{Ledger: domain.ID{1}, Epoch: 2}, keys)
	n.breaks = 3
	v := startVerifier(t, client.VerifierOptions{URL: n.url(), Key: "a-key"})
	if v.Len() != keys {
		t.Errorf("%d keys of %d", v.Len(), keys)
	}
	for i := range keys {
		if got := verdictOf(t, v, client.Question{Key: plainKey(i)}); !got.Valid || got.Name != fmt.Sprint("key ", i) || got.OrganizationID != client.OrganizationID(fmt.Sprint("org_", i%7)) {
			t.Fatalf("key %d: %+v", i, got)
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	seen := map[string]bool{}
	for _, after := range n.after {
		if seen[after] {
			t.Errorf("asked twice for what follows %q: %q", after, n.after)
		}
		seen[after] = true
	}
	if len(n.after) != 4 {
		t.Errorf("asked %q", n.after)
	}
}

func TestACursorThatIsNotKnownAnyMoreBeginsAnew(t *testing.T) {
	t.Parallel()
	n := startNode(t, index.History{Ledger: domain.ID{1}, Epoch: 2}, 10_000)
	n.breaks = 1
	another := startNode(t, n.history, 10_000)
	var snapshots atomic.Int32
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/api/v1/verifiers/snapshot" && snapshots.Add(1) > 1 {
			another.ServeHTTP(w, r) // as behind a balancer
			return
		}
		n.ServeHTTP(w, r)
	}))
	defer s.Close()
	defer s.CloseClientConnections()
	v := startVerifier(t, client.VerifierOptions{URL: s.URL, Key: "a-key"})
	defer v.Close()
	another.mu.Lock()
	defer another.mu.Unlock()
	if v.Len() != 10_000 || len(another.after) != 2 || another.after[0] == "" || another.after[1] != "" {
		t.Errorf("%d keys, asked %q", v.Len(), another.after)
	}
}

func TestAnotherHistoryStopsAVerifierWhichBeginsAnew(t *testing.T) {
	t.Parallel()
	n := startNode(t, index.History{Ledger: domain.ID{1}, Epoch: 2}, 100)
	s := httptest.NewUnstartedServer(n)
	s.Start()
	defer s.Close()
	defer s.CloseClientConnections()
	v := startVerifier(t, client.VerifierOptions{URL: s.URL, Key: "a-key"})
	defer v.Close()
	if got := verdictOf(t, v, client.Question{Key: plainKey(99)}); !got.Valid {
		t.Fatalf("%+v", got)
	}
	// A backup was restored, in which the last keys never were.
	n.mu.Lock()
	n.history.Epoch = 3
	n.fill(50)
	n.restored = true
	n.mu.Unlock()
	s.CloseClientConnections()
	poll := time.NewTicker(time.Millisecond)
	defer poll.Stop()
	for ; ; <-poll.C {
		got, err := v.Verify(t.Context(), client.Question{Key: plainKey(99)})
		if err == nil && got.Code == client.NotFound {
			break
		}
		if err != nil && !errors.Is(err, client.ErrUnavailable) {
			t.Fatal(err)
		}
	}
	if got := verdictOf(t, v, client.Question{Key: plainKey(49)}); !got.Valid || got.Position != 50 {
		t.Errorf("%+v", got)
	}
	token := client.Token{Epoch: 2, Lane: domain.Lifecycle, Position: 60}
	if _, err := v.Verify(client.WithMinPosition(t.Context(), token), client.Question{Key: plainKey(49)}); !errors.Is(err, client.ErrStale) {
		t.Errorf("a position of the old history: %v", err)
	}
}

func TestAVerifierThatWasForgottenJoinsAgainAsWhoItWas(t *testing.T) {
	t.Parallel()
	n := startNode(t, index.History{Ledger: domain.ID{1}, Epoch: 2}, 100)
	s := httptest.NewServer(n)
	defer s.Close()
	defer s.CloseClientConnections()
	v := startVerifier(t, client.VerifierOptions{URL: s.URL, Key: "a-key"})
	defer v.Close()
	n.mu.Lock()
	n.reaped = true
	n.mu.Unlock()
	poll := time.NewTicker(time.Millisecond)
	defer poll.Stop()
	for again := false; !again; <-poll.C {
		// Its lease lasts longer than that takes.
		if got := verdictOf(t, v, client.Question{Key: plainKey(1)}); !got.Valid {
			t.Fatalf("%+v", got)
		}
		n.mu.Lock()
		again = !n.reaped
		n.mu.Unlock()
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.joins) != 2 || n.joins[0] != "embedded " || n.joins[1] != "embedded it" || len(n.after) != 1 {
		t.Errorf("joined as %q, %d snapshots", n.joins, len(n.after))
	}
}

func TestVerifyingInMemoryAllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	n := startNode(t, index.History{Ledger: domain.ID{1}, Epoch: 2}, 100)
	s := httptest.NewServer(n)
	defer s.Close()
	defer s.CloseClientConnections()
	v := startVerifier(t, client.VerifierOptions{URL: s.URL, Key: "a-key"})
	defer v.Close()
	for name, q := range map[string]client.Question{
		"valid":   {Key: plainKey(7), Scopes: client.Scopes{"read"}},
		"refused": {Key: plainKey(7), Scopes: client.Scopes{"write"}},
		"unknown": {Key: "bsk_live_nothing"},
	} {
		ctx := context.Background()
		_, _ = v.Verify(ctx, q)
		// Those who keep the lease allocate meanwhile, a little.
		if n := testing.AllocsPerRun(20_000, func() { _, _ = v.Verify(ctx, q) }); n > 0.5 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}
