package http_test

import (
	"bufio"
	"context"
	"crypto/rand"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	nethttp "net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"keyledger/domain"
	"keyledger/eventstore"
	keyhttp "keyledger/http"
	"keyledger/index"
	"keyledger/internal/testkit"
	"keyledger/projections"
	"keyledger/projections/keylist"
	"keyledger/projections/verification"
)

var garbageKeys = flag.Int("garbage", 20_000, "how many garbage keys are presented")

// queries counts what goes to the database.
type queries struct{ n atomic.Int64 }

func (q *queries) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	q.n.Add(1)
	return ctx
}
func (*queries) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// Garbage comes through every door, beside good keys that are used at the same
// time, on a real index and a real list. No other test runs meanwhile: the heap is
// everybody's.
func TestGarbageKeysCostNoQueryAndNoMemory(t *testing.T) {
	asked := &queries{}
	db := testkit.Database(t)
	pool, err := eventstore.Connect(t.Context(), db.URL, eventstore.ConnectOptions{Tracer: asked})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	store, index, key := realIndex(t, pool)
	s := start(t, func(o *keyhttp.Options) {
		o.Verifier = index
		o.Ledger = store
		o.Keys = keylist.NewList(pool, projections.NewFollower(store, keylist.New(pool), projections.FollowerOptions{}))
		o.Logger = slog.New(slog.DiscardHandler)
		o.Clock = nil // the index has the real one
	})
	good := key.Reveal()
	doors := []func(*caller, string) (int, string){
		func(c *caller, key string) (int, string) { return c.ask("POST", verifyPath, "", `{"key":"`+key+`"}`) },
		func(c *caller, key string) (int, string) { return c.ask("GET", "/forward-auth/-/x", key, "") },
		func(c *caller, key string) (int, string) { return c.ask("GET", bullseyePath, key, "") },
		func(c *caller, key string) (int, string) { return c.ask("DELETE", bunshipPath+"/key_x", key, "") },
		func(c *caller, key string) (int, string) {
			return c.ask("POST", batchPath, "", `{"keys":[{"key":"`+key+`"}]}`)
		},
	}
	garbage := func(i int) string {
		if i%2 == 0 {
			return fmt.Sprintf("bsk_live_%032x", i)
		}
		return fmt.Sprintf("%d-%s", i, strings.Repeat("x", i%300))
	}
	present := func(from, to int) (refused int64) {
		var group sync.WaitGroup
		var count atomic.Int64
		const callers = 4
		for n := range callers {
			group.Go(func() {
				c := newCaller(t, s)
				defer c.close()
				for i := from + n; i < to; i += callers {
					status, body := doors[i/callers%len(doors)](c, garbage(i))
					switch {
					case status == nethttp.StatusTooManyRequests:
						count.Add(1)
					case status != nethttp.StatusUnauthorized && !strings.Contains(body, "NOT_FOUND"):
						t.Errorf("%d: a garbage key gets %d %s", i, status, body)
						return
					}
				}
			})
		}
		group.Wait()
		return count.Load()
	}
	// Good keys on the doors that ask no database for them either.
	stop, stopped := make(chan struct{}), make(chan int)
	go func() {
		c := newCaller(t, s)
		defer c.close()
		served := 0
		for {
			select {
			case <-stop:
				stopped <- served
				return
			default:
			}
			for _, door := range []int{0, 1, 4} {
				if status, body := doors[door](c, good); status != nethttp.StatusOK || strings.Contains(body, `"valid":false`) {
					t.Errorf("a good key gets %d %s", status, body)
				}
				served++
			}
		}
	}()

	total := *garbageKeys
	present(0, total/5) // connections, pools and buffers have their size then
	before, queriesBefore := heap(), asked.n.Load()
	refused := present(total/5, total)
	after, queriesAfter := heap(), asked.n.Load()
	close(stop)
	served := <-stopped

	t.Logf("%d garbage keys, %d refused for their number; %d good ones beside them; the heap went from %d to %d KiB", total, refused, served, before>>10, after>>10)
	if queriesAfter != queriesBefore {
		t.Errorf("%d queries were asked", queriesAfter-queriesBefore)
	}
	if grown := int64(after) - int64(before); grown > 2<<20 {
		t.Errorf("the heap grew by %d KiB", grown>>10)
	}
	if refused < int64(total)/2 {
		t.Errorf("only %d of %d garbage keys were refused for their number", refused, total)
	}
	if served == 0 {
		t.Error("no good key was used beside them")
	}
	c := newCaller(t, s)
	defer c.close()
	if status, body := doors[2](c, good); status != nethttp.StatusOK {
		t.Errorf("a list with a good key gets %d %s", status, body)
	}
}

// realIndex makes a log with one key without a limit, and an index that knows it.
func realIndex(t *testing.T, pool *pgxpool.Pool) (*eventstore.Store, *index.Index, domain.Secret) {
	t.Helper()
	store, err := eventstore.Open(t.Context(), eventstore.Options{Pool: pool, MasterKey: make([]byte, 32), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- store.Run(ctx) }()
	defer cancel()
	secret, err := domain.NewSecret(domain.DefaultKeyFormat, false, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now().UTC().Truncate(time.Microsecond)
	id, err := domain.NewID(now, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	scopes := domain.Scopes{domain.ScopeAdmin}
	_, receipt, err := store.ChangeKey(t.Context(), domain.Request{ID: domain.CommandID(id)}, domain.KeyID(id), domain.CreateKey{
		Now: now, Key: domain.KeyID(id), Organization: acme, Digest: secret.Digest(), Prefix: secret.VisiblePrefix(domain.DefaultKeyFormat),
		Name: "Good", Scopes: scopes, Granter: scopes,
	})
	if err != nil {
		t.Fatal(err)
	}
	// It is quiet from here on: what asks the database now, asks for the garbage.
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if err := projections.NewFollower(store, keylist.New(pool), projections.FollowerOptions{}).CatchUp(t.Context(), receipt.Position); err != nil {
		t.Fatal(err)
	}
	keys := index.New(index.Options{})
	if err := verification.New(keys, verification.Options{Pool: pool, Log: store}).Load(t.Context(), pool); err != nil {
		t.Fatal(err)
	}
	return store, keys, secret
}

// caller is a client with a connection of its own. It costs less than a library's,
// which would be most of what is measured.
type caller struct {
	conn   net.Conn
	reader *bufio.Reader
}

func newCaller(t *testing.T, s *site) *caller {
	t.Helper()
	conn, err := net.Dial("tcp", s.address)
	if err != nil {
		t.Error(err)
		return &caller{}
	}
	return &caller{conn, bufio.NewReader(conn)}
}

func (c *caller) close() {
	if c.conn != nil {
		_ = c.conn.Close()
	}
}

func (c *caller) ask(method, path, key, body string) (int, string) {
	if c.conn == nil {
		return 0, "no connection"
	}
	if _, err := fmt.Fprintf(c.conn, "%s %s HTTP/1.1\r\nHost: h\r\nX-API-Key: %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
		method, path, key, len(body), body); err != nil {
		return 0, err.Error()
	}
	response, err := nethttp.ReadResponse(c.reader, nil)
	if err != nil {
		return 0, err.Error()
	}
	defer func() { _ = response.Body.Close() }()
	answer, err := io.ReadAll(response.Body)
	if err != nil {
		return 0, err.Error()
	}
	return response.StatusCode, string(answer)
}

// heap is what is live.
func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
