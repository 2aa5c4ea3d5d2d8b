package client_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"keyledger/client"
	"keyledger/internal/testkit"
)

const (
	patience = time.Minute
	ledgerID = "019bc09a-3e00-7aaa-8bbb-010203040506"
)

// history is a log, the stream that shows it, and the API that reads it: a key is
// created at every odd position and revoked at the even one behind it, by turns of
// two organizations.
type history struct {
	t     *testing.T
	nats  *testkit.NATSServer
	js    jetstream.JetStream
	epoch int

	mu     sync.Mutex
	events []written
}

type written struct{ id, typ, organization, key, epoch string }

func newHistory(t *testing.T) *history {
	t.Helper()
	h := &history{t: t, nats: testkit.NATS(t), epoch: 1}
	var err error
	if h.js, err = jetstream.New(h.nats.Conn); err != nil {
		t.Fatal(err)
	}
	h.makeStream(0)
	return h
}

// makeStream makes the stream, which begins behind a position.
func (h *history) makeStream(after int) {
	h.t.Helper()
	c := jetstream.StreamConfig{Name: "KEYLEDGER_LIFECYCLE", Subjects: []string{"keyledger.lifecycle.>"}, Storage: jetstream.MemoryStorage}
	if after > 0 {
		c.FirstSeq = uint64(after) + 1
	}
	if _, err := h.js.CreateStream(h.t.Context(), c); err != nil {
		h.t.Fatal(err)
	}
}

// write lets so many events happen, and publishes them.
func (h *history) write(n int) {
	h.t.Helper()
	for range n {
		at := h.record()
		h.publish(at)
	}
}

// record lets an event happen that is not published.
func (h *history) record() (position int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	at := len(h.events) + 1
	w := written{fmt.Sprintf("%d-%d", h.epoch, at), "created", []string{"org_a", "org_b"}[(at-1)/2%2], fmt.Sprintf("key_%026d", (at+1)/2), strconv.Itoa(h.epoch)}
	if at%2 == 0 {
		w.typ = "revoked"
	}
	h.events = append(h.events, w)
	return at
}

func (h *history) publish(at int) {
	h.t.Helper()
	w := h.events[at-1]
	_, err := h.js.PublishMsg(h.t.Context(), &nats.Msg{
		Subject: "keyledger.lifecycle." + w.organization + "." + w.key + "." + w.typ,
		Header: nats.Header{
			"ce-ledger": {ledgerID}, "ce-epoch": {w.epoch}, "ce-id": {w.id}, "ce-type": {"keyledger.key." + w.typ}, "ce-lane": {"lifecycle"},
			"ce-position": {strconv.Itoa(at)}, "ce-organization": {w.organization}, "ce-subject": {w.key}, "ce-time": {"2026-01-15T10:00:00.123456Z"}, "ce-streamversion": {"1"}, "ce-schema": {"1"},
		},
		Data: []byte(`{}`),
	}, jetstream.WithExpectLastSequence(uint64(at-1)))
	if err != nil {
		h.t.Fatal(err)
	}
}

// rebuild deletes the stream and publishes the log again from behind a position.
func (h *history) rebuild(after int) {
	h.t.Helper()
	if err := h.js.DeleteStream(h.t.Context(), "KEYLEDGER_LIFECYCLE"); err != nil {
		h.t.Fatal(err)
	}
	h.makeStream(after)
	for at := after + 1; at <= len(h.events); at++ {
		h.publish(at)
	}
}

// restore takes the log back to a position, as an older backup does.
func (h *history) restore(to int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.events = h.events[:to:to]
	h.epoch++
}

// ServeHTTP is GET /api/v1/events, in pages of three.
func (h *history) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	after, _ := strconv.Atoi(r.URL.Query().Get("after"))
	types := r.URL.Query().Get("types")
	if after > len(h.events) {
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(http.StatusConflict)
		_, _ = io.WriteString(w, `{"code":"stale"}`)
		return
	}
	var page []string
	next := min(after+3, len(h.events))
	for at := after + 1; at <= next; at++ {
		e := h.events[at-1]
		if typ := "keyledger.key." + e.typ; types == "" || slices.Contains(strings.Split(types, ","), typ) {
			page = append(page, fmt.Sprintf(`{"id":%q,"type":%q,"subject":%q,"time":"2026-01-15T10:00:00Z","ledger":%q,"epoch":%q,"lane":"lifecycle","position":"%d","organization":%q,"streamversion":"1","schema":"1","data":{}}`,
				e.id, typ, e.key, ledgerID, e.epoch, at, e.organization))
		}
	}
	_, _ = fmt.Fprintf(w, `{"events":[%s],"next":%d,"head":%d,"epoch":%d}`, strings.Join(page, ","), next, len(h.events), h.epoch)
}

func (h *history) client() *client.Client {
	h.t.Helper()
	server := httptest.NewServer(h)
	h.t.Cleanup(server.Close)
	return clientOf(h.t, server.URL, "bsk_live_x")
}

// subscriber is a subscription that runs.
type subscriber struct {
	t      *testing.T
	events chan client.Event
	ended  chan error
	stop   context.CancelFunc
}

func (h *history) subscribe(o client.SubscribeOptions) *subscriber {
	h.t.Helper()
	ctx, stop := context.WithTimeout(h.t.Context(), patience)
	s := &subscriber{h.t, make(chan client.Event), make(chan error, 1), stop}
	if o.NATS == nil {
		o.NATS = h.nats.Conn
	}
	o.Logger = testkit.Logger(h.t)
	go func() {
		s.ended <- client.Subscribe(ctx, o, func(ctx context.Context, e client.Event) error {
			select {
			case s.events <- e:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	}()
	h.t.Cleanup(func() { stop() })
	return s
}

// expect takes events at these positions, and gives the last.
func (s *subscriber) expect(positions ...int) (last client.Event) {
	s.t.Helper()
	for _, want := range positions {
		select {
		case last = <-s.events:
			if last.Position != client.Position(want) || last.ID == "" || last.Key.IsZero() || last.Time.IsZero() || last.Lane != client.Lifecycle {
				s.t.Fatalf("got %+v, not position %d", last, want)
			}
		case err := <-s.ended:
			s.t.Fatalf("it ended before %d: %v", want, err)
		}
	}
	return last
}

// end stops it, or takes the error that it ended with by itself.
func (s *subscriber) end(stop bool) error {
	s.t.Helper()
	if stop {
		s.stop()
	}
	select {
	case err := <-s.ended:
		s.stop()
		return err
	case e := <-s.events:
		s.t.Fatalf("it went on with %+v", e)
	}
	return nil
}

func upTo(from, to int) (all []int) {
	for at := from; at <= to; at++ {
		all = append(all, at)
	}
	return all
}

func TestASubscriptionGoesOnWhereItStopped(t *testing.T) {
	t.Parallel()
	for name, store := range map[string]func(h *history) client.PositionStore{
		"a file": func(h *history) client.PositionStore { return client.FileStore(h.t.TempDir()) },
		"a bucket": func(h *history) client.PositionStore {
			bucket, err := h.js.CreateKeyValue(h.t.Context(), jetstream.KeyValueConfig{Bucket: "positions"})
			if err != nil {
				h.t.Fatal(err)
			}
			return client.KVStore(bucket)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHistory(t)
			o := client.SubscribeOptions{Name: "test", Store: store(h)}
			h.write(4)
			s := h.subscribe(o)
			s.expect(1, 2, 3, 4)
			h.write(2)
			s.expect(5, 6)
			if err := s.end(true); !errors.Is(err, context.Canceled) {
				t.Errorf("it ended with %v", err)
			}
			h.write(2)
			s = h.subscribe(o)
			s.expect(7, 8)
			_ = s.end(true)
			// What the handler keeps itself.
			at, err := o.Store.Load(t.Context(), "test")
			if err != nil || at.String() != ledgerID+"/1/8/1-8" {
				t.Fatalf("got %v, %v", at, err)
			}
			if at, err = client.ParseCursor(at.String()); err != nil {
				t.Fatal(err)
			}
			h.write(1)
			s = h.subscribe(client.SubscribeOptions{After: at})
			s.expect(9)
			_ = s.end(true)
		})
	}
}

func TestTwoProcessesUnderOneNameNoticeEachOther(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	bucket, err := h.js.CreateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: "positions"})
	if err != nil {
		t.Fatal(err)
	}
	h.write(2)
	one := h.subscribe(client.SubscribeOptions{Name: "test", Store: client.KVStore(bucket)})
	one.expect(1, 2)
	// A position is kept a moment after its handler has returned.
	poll := time.NewTicker(time.Millisecond)
	defer poll.Stop()
	kept := func(position client.Position) {
		for {
			at, err := client.KVStore(bucket).Load(t.Context(), "test")
			if err != nil {
				t.Fatal(err)
			}
			if at.Position == position {
				return
			}
			<-poll.C
		}
	}
	kept(2) // where the second begins
	two := h.subscribe(client.SubscribeOptions{Name: "test", Store: client.KVStore(bucket)})
	h.write(1)
	two.expect(3)
	h.write(1)
	two.expect(4)
	kept(4) // were it 3, the first would take it for its own
	one.expect(3)
	if err := one.end(false); !errors.Is(err, client.ErrTwoSubscribers) {
		t.Errorf("it ended with %v", err)
	}
	_ = two.end(true)
}

func TestAFilterLeavesEventsOutAndStillAdvances(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	h.write(8)
	dir := t.TempDir()
	for _, c := range []struct {
		filter client.Filter
		want   []int
	}{
		{client.Filter{Types: []string{client.TypeKeyRevoked}}, []int{2, 4, 6, 8}},
		{client.Filter{Organization: "org_b"}, []int{3, 4, 7, 8}},
		{client.Filter{Organization: "org_a", Types: []string{client.TypeKeyCreated, client.TypeMemberAdded}}, []int{1, 5}},
	} {
		s := h.subscribe(client.SubscribeOptions{Filter: c.filter})
		s.expect(c.want...)
		_ = s.end(true)
	}
	s := h.subscribe(client.SubscribeOptions{Filter: client.Filter{Organization: "org_c"}, Name: "nothing", Store: client.FileStore(dir)})
	defer func() { _ = s.end(true) }()
	for {
		at, err := client.FileStore(dir).Load(t.Context(), "nothing")
		if err != nil || t.Context().Err() != nil {
			t.Fatal(err)
		}
		if at.Position == 8 {
			return
		}
		select {
		case err := <-s.ended:
			t.Fatal(err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func TestASubscriptionBeginsWhereItIsToldTo(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	h.write(4)
	h.rebuild(2)
	s := h.subscribe(client.SubscribeOptions{Start: client.FromTheStream})
	s.expect(3, 4)
	_ = s.end(true)
	s = h.subscribe(client.SubscribeOptions{})
	if err := s.end(false); !errors.Is(err, client.ErrGap) {
		t.Errorf("it ended with %v", err)
	}
	s = h.subscribe(client.SubscribeOptions{Client: h.client()})
	s.expect(1, 2, 3, 4)
	_ = s.end(true)
}

func TestAStreamThatIsMadeAgainRepeatsNothing(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	h.write(4)
	s := h.subscribe(client.SubscribeOptions{})
	s.expect(1, 2, 3, 4)
	h.rebuild(0)
	h.write(2)
	s.expect(5, 6)
	// It comes back slowly, behind us.
	if err := h.js.DeleteStream(t.Context(), "KEYLEDGER_LIFECYCLE"); err != nil {
		t.Fatal(err)
	}
	h.makeStream(0)
	for at := range 6 {
		h.publish(at + 1)
	}
	h.write(1)
	s.expect(7)
	_ = s.end(true)
}

func TestWhatHasAgedOutIsReadFromTheLog(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		filter client.Filter
		want   func(from, to int) []int
	}{
		"everything": {client.Filter{}, upTo},
		"revocations": {client.Filter{Types: []string{client.TypeKeyRevoked}}, func(from, to int) []int {
			return slices.DeleteFunc(upTo(from, to), func(at int) bool { return at%2 == 1 })
		}},
		"an organization": {client.Filter{Organization: "org_a"}, func(from, to int) []int {
			return slices.DeleteFunc(upTo(from, to), func(at int) bool { return (at-1)/2%2 == 1 })
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHistory(t)
			o := client.SubscribeOptions{Filter: c.filter, Client: h.client(), Name: "test", Store: client.FileStore(t.TempDir())}
			h.write(8)
			s := h.subscribe(o)
			s.expect(c.want(1, 8)...)
			_ = s.end(true)
			for range 13 {
				h.record()
			}
			h.rebuild(17) // 9 to 17 are in the log alone
			s = h.subscribe(o)
			s.expect(c.want(9, 21)...)
			// Under a running subscription, too.
			for range 7 {
				h.record()
			}
			h.rebuild(26)
			s.expect(c.want(22, 28)...)
			_ = s.end(true)
			o.Client = nil
			h.write(4)
			h.rebuild(31)
			s = h.subscribe(o)
			if err := s.end(false); !errors.Is(err, client.ErrGap) {
				t.Errorf("it ended with %v", err)
			}
		})
	}
}

// The stream has lost a message in the middle, as a disk may.
func TestAHoleInTheStreamIsReadFromTheLog(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	h.write(6)
	stream, err := h.js.Stream(t.Context(), "KEYLEDGER_LIFECYCLE")
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.DeleteMsg(t.Context(), 4); err != nil {
		t.Fatal(err)
	}
	for _, filter := range []client.Filter{{}, {Types: []string{client.TypeKeyRevoked, client.TypeKeyCreated}}} {
		s := h.subscribe(client.SubscribeOptions{Filter: filter, Client: h.client()})
		s.expect(1, 2, 3, 4, 5, 6)
		_ = s.end(true)
		s = h.subscribe(client.SubscribeOptions{Filter: filter})
		if err := s.end(false); !errors.Is(err, client.ErrGap) {
			t.Errorf("it ended with %v", err)
		}
	}
}

// Rule 3 of docs/events.md.
func TestAnotherHistoryEndsASubscription(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		happens func(h *history)
		client  bool
		another bool
	}{
		"a backup that held everything":         {happens: func(h *history) { h.restore(4); h.write(2) }},
		"that, and the stream was made again":   {happens: func(h *history) { h.restore(4); h.rebuild(0); h.write(2) }},
		"an older backup":                       {happens: func(h *history) { h.restore(2); h.rebuild(0); h.write(4) }, another: true},
		"an older backup, and nothing else yet": {happens: func(h *history) { h.restore(2); h.rebuild(0); h.write(1) }, another: true},
		"the proof is gone, in the same epoch":  {happens: func(h *history) { h.write(1); h.record(); h.rebuild(4) }},
		"the proof is gone, in another epoch":   {happens: func(h *history) { h.restore(4); h.record(); h.record(); h.rebuild(4) }, another: true},
		"the log has the proof":                 {happens: func(h *history) { h.restore(4); h.record(); h.record(); h.rebuild(4) }, client: true},
		"the log proves the contrary": {happens: func(h *history) {
			h.restore(2)
			h.record()
			h.record()
			h.record()
			h.record()
			h.rebuild(4)
		}, client: true, another: true},
		"the log ends before us, and the stream is gone": {happens: func(h *history) { h.restore(2); h.rebuild(2) }, client: true, another: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHistory(t)
			o := client.SubscribeOptions{}
			if c.client {
				o.Client = h.client()
			}
			h.write(4)
			running := h.subscribe(o)
			at := running.expect(1, 2, 3, 4).Cursor
			c.happens(h)
			o.After = at
			later := h.subscribe(o)
			for _, s := range []*subscriber{running, later} {
				if !c.another {
					s.expect(5, 6)
					_ = s.end(true)
				} else if err := s.end(false); !errors.Is(err, client.ErrAnotherHistory) {
					t.Errorf("it ended with %v", err)
				}
			}
		})
	}
}

func TestASubscriptionOutlivesItsNATS(t *testing.T) {
	t.Parallel()
	server := testkit.NATS(t)
	js, err := jetstream.New(server.Conn)
	if err != nil {
		t.Fatal(err)
	}
	h := &history{t: t, nats: server, js: js, epoch: 1}
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "KEYLEDGER_LIFECYCLE", Subjects: []string{"keyledger.lifecycle.>"}}); err != nil {
		t.Fatal(err)
	}
	h.write(2)
	nc, err := nats.Connect(server.URL, nats.MaxReconnects(-1), nats.ReconnectWait(10*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	s := h.subscribe(client.SubscribeOptions{NATS: nc})
	s.expect(1, 2)
	server.Stop()
	server.Start()
	if h.js, err = jetstream.New(server.Conn); err != nil {
		t.Fatal(err)
	}
	h.write(2)
	s.expect(3, 4)
	nc.Close()
	if err := s.end(false); !errors.Is(err, nats.ErrConnectionClosed) {
		t.Errorf("it ended with %v", err)
	}
}

func TestAHandlersErrorEndsTheSubscription(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	h.write(3)
	ours := errors.New("the disk is full")
	store := client.FileStore(t.TempDir())
	handled := 0
	handle := func(context.Context, client.Event) error {
		if handled++; handled == 2 {
			return ours
		}
		return nil
	}
	err := client.Subscribe(t.Context(), client.SubscribeOptions{NATS: h.nats.Conn, Name: "test", Store: store, SaveEvery: time.Hour}, handle)
	at, loadErr := store.Load(t.Context(), "test")
	if !errors.Is(err, ours) || !strings.Contains(err.Error(), "position 2") || loadErr != nil || at.Position != 1 {
		t.Errorf("got %v, and kept %v, %v", err, at, loadErr)
	}
}

func TestSubscriptionsAreCheckedBeforeTheyBegin(t *testing.T) {
	t.Parallel()
	nothing := func(context.Context, client.Event) error { return nil }
	nc := &nats.Conn{}
	store := client.FileStore(t.TempDir())
	for name, o := range map[string]client.SubscribeOptions{
		"no NATS":          {},
		"two of them":      {NATS: nc, URL: "nats://x"},
		"no name":          {NATS: nc, Store: store},
		"a name of a path": {NATS: nc, Store: store, Name: "../x"},
		"two positions":    {NATS: nc, Store: store, Name: "x", After: client.Cursor{Position: 1}},
		"no lane":          {NATS: nc, Filter: client.Filter{Lane: "x"}},
		"no organization":  {NATS: nc, Filter: client.Filter{Organization: "*"}},
		"no type":          {NATS: nc, Filter: client.Filter{Types: []string{"*"}}},
	} {
		if err := client.Subscribe(t.Context(), o, nothing); !errors.Is(err, client.ErrInvalid) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if err := client.Subscribe(t.Context(), client.SubscribeOptions{NATS: nc}, nil); !errors.Is(err, client.ErrInvalid) {
		t.Errorf("no handler: got %v", err)
	}
	for _, bad := range []string{"x", "a/1/2", "a/-1/2/b", "a/1/0/b", "/1/2/b", "a/1/2/"} {
		if c, err := client.ParseCursor(bad); err == nil {
			t.Errorf("%s is %v", bad, c)
		}
	}
}
