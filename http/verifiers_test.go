package http_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"iter"
	nethttp "net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"keyledger/domain"
	keyhttp "keyledger/http"
	"keyledger/index/wire"
)

// desk is the verifiers of a server, in memory.
type desk struct {
	mu        sync.Mutex
	joined    map[domain.ID]bool
	observed  int
	confirmed map[domain.ID]domain.Position
	asked     domain.Position
	more      chan struct{}
	down      error
}

func (d *desk) Join(_ context.Context, name string) (domain.ID, time.Duration, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	id := domain.ID{byte(len(d.joined) + 1), 15: byte(len(name))}
	d.joined[id] = true
	return id, time.Second, d.down
}

func (d *desk) Rejoin(_ context.Context, id domain.ID, _ string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.joined[id] = true
	return d.down
}

func (d *desk) Renew(_ context.Context, id domain.ID) (domain.Position, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.joined[id] {
		return 0, domain.Errorf(domain.CodeNotFound, "no such verifier: join again")
	}
	return 42, d.down
}

func (d *desk) Observe(context.Context) (domain.Position, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.observed++
	return 43, d.down
}

func (d *desk) Confirm(id domain.ID, position domain.Position) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.confirmed[id] = position
}

func (d *desk) Leave(_ context.Context, id domain.ID) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.joined, id)
	return d.down
}

func (d *desk) Asked() (domain.Position, <-chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.asked, d.more
}

func (d *desk) ask(position domain.Position) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.asked = position
	close(d.more)
	d.more = make(chan struct{})
}

func (d *desk) Lease() time.Duration { return time.Second }

// keyFeed is what verifiers read, in memory.
type keyFeed struct {
	changes chan []byte
	reports []wire.Report
	left    chan struct{}
	stuck   chan struct{} // not nil: snapshots wait for it
}

func (f *keyFeed) Snapshot(cursor string) (func(context.Context) ([]byte, error), func(), error) {
	if cursor == "gone" {
		return nil, nil, domain.Errorf(domain.CodeNotFound, "begin anew")
	}
	parts := [][]byte{[]byte("one "), []byte("two " + cursor)}
	return func(context.Context) ([]byte, error) {
		if f.stuck != nil {
			<-f.stuck
		}
		if len(parts) == 0 {
			return nil, io.EOF
		}
		part := parts[0]
		parts = parts[1:]
		return part, nil
	}, func() {}, nil
}

func (f *keyFeed) Changes(ctx context.Context, after domain.Position) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		defer func() { f.left <- struct{}{} }()
		if !yield(wire.AppendHeader(nil, wire.Header{Epoch: 3, Position: after}), nil) {
			return
		}
		for {
			select {
			case frames := <-f.changes:
				if !yield(frames, nil) {
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}
}

func (f *keyFeed) Record(_ context.Context, _ domain.ID, report wire.Report) (uint64, error) {
	if report.Uses[0].Key == (domain.KeyID{}) {
		return 0, domain.Invalid("uses[0].key", "must be a key that exists")
	}
	f.reports = append(f.reports, report)
	return report.Expected + 1, nil
}

func (f *keyFeed) History() (domain.ID, uint32) { return domain.ID{0xab}, 3 }

const verifiers = "/api/v1/verifiers"

func startDesk(t *testing.T) (*site, *desk, *keyFeed) {
	t.Helper()
	d := &desk{joined: map[domain.ID]bool{}, confirmed: map[domain.ID]domain.Position{}, more: make(chan struct{})}
	f := &keyFeed{changes: make(chan []byte), left: make(chan struct{}, 10)}
	return start(t, func(o *keyhttp.Options) { o.Verifiers, o.KeyFeed = d, f }), d, f
}

type joined struct {
	Verifier, ID, Kind, Ledger string
	LeaseMs                    int
	Epoch                      uint32
}

func TestAVerifierJoinsRenewsConfirmsAndLeaves(t *testing.T) {
	t.Parallel()
	s, d, _ := startDesk(t)
	key := "X-API-Key: " + s.key(domain.SystemOrganization, domain.ScopeSystemVerify)
	a := s.ask("POST", verifiers, key, `{"kind":"embedded","name":"orders-7"}`)
	v := decode[joined](t, a.body)
	if a.status != 201 || v.LeaseMs != 1000 || v.Epoch != 3 || v.Kind != "embedded" || v.Ledger != "ab000000-0000-0000-0000-000000000000" || v.ID != "01000000-0000-0000-0000-000000000008" {
		t.Fatalf("got %d %s", a.status, a.body)
	}
	one := verifiers + "/" + v.Verifier
	s.ask("POST", one+"/lease", key).is(t, 200, `{"head":"3:lifecycle:42","leaseMs":1000}`)
	s.ask("POST", one+"/confirmation", key, `{"position":"3:lifecycle:41"}`).is(t, 204, ``)
	if d.confirmed[domain.ID{1, 15: 8}] != 41 {
		t.Errorf("confirmed %v", d.confirmed)
	}
	for _, body := range []string{`{"position":"2:lifecycle:41"}`, `{"position":"3:usage:41"}`, `{"position":"41"}`, `{}`} {
		if a := s.ask("POST", one+"/confirmation", key, body); a.status != 400 {
			t.Errorf("%s: got %d %s", body, a.status, a.body)
		}
	}
	s.ask("DELETE", one, key).is(t, 204, ``)
	if a := s.ask("POST", one+"/lease", key); a.status != 404 {
		t.Errorf("got %d %s", a.status, a.body)
	}
	// Who was forgotten comes back under the same name.
	again := decode[joined](t, s.ask("POST", verifiers, key, fmt.Sprintf(`{"kind":"embedded","name":"orders-7","verifier":%q}`, v.Verifier)).body)
	if again.Verifier != v.Verifier || again.ID != v.ID {
		t.Errorf("got %+v", again)
	}
	s.ask("POST", one+"/lease", key).is(t, 200, `{"head":"3:lifecycle:42","leaseMs":1000}`)

	// An observer is registered nowhere, and confirms nothing.
	o := decode[joined](t, s.ask("POST", verifiers, key, `{"kind":"observer","name":"edge"}`).body)
	if o.Kind != "observer" || len(d.joined) != 1 {
		t.Errorf("got %+v, joined %v", o, d.joined)
	}
	s.ask("POST", verifiers+"/"+o.Verifier+"/lease", key).is(t, 200, `{"head":"3:lifecycle:43","leaseMs":1000}`)
	if a := s.ask("POST", verifiers+"/"+o.Verifier+"/confirmation", key, `{"position":"3:lifecycle:41"}`); a.status != 422 || d.observed != 1 {
		t.Errorf("got %d %s", a.status, a.body)
	}
}

func TestVerifiersAreRefusedWhatTheyMayNot(t *testing.T) {
	t.Parallel()
	s, _, _ := startDesk(t)
	key := "X-API-Key: " + s.key(domain.SystemOrganization, domain.ScopeSystemVerify)
	v := decode[joined](t, s.ask("POST", verifiers, key, `{"kind":"embedded","name":"orders-7"}`).body)
	forged := []byte(v.Verifier)
	forged[10] ^= 1
	for name, try := range map[string]struct {
		method, path, credential, body string
		status                         int
	}{
		"nobody":                     {"POST", verifiers, "Accept: */*", `{"kind":"embedded","name":"n"}`, 401},
		"an organization's key":      {"POST", verifiers, "X-API-Key: " + s.key(acme, "*"), `{"kind":"embedded","name":"n"}`, 403},
		"a system key for something": {"POST", verifiers, "X-API-Key: " + s.key(domain.SystemOrganization, domain.ScopeSystemEvents), `{"kind":"embedded","name":"n"}`, 403},
		"its snapshot":               {"GET", verifiers + "/snapshot", "X-API-Key: " + s.key(acme, "*"), ``, 403},
		"its changes":                {"GET", verifiers + "/changes?after=1", "X-API-Key: " + s.key(acme, "*"), ``, 403},
		"its lease":                  {"POST", verifiers + "/" + v.Verifier + "/lease", "X-API-Key: " + s.key(acme, "*"), ``, 403},
		"no kind":                    {"POST", verifiers, key, `{"name":"n"}`, 400},
		"another kind":               {"POST", verifiers, key, `{"kind":"node","name":"n"}`, 400},
		"no name":                    {"POST", verifiers, key, `{"kind":"embedded"}`, 400},
		"a long name":                {"POST", verifiers, key, fmt.Sprintf(`{"kind":"embedded","name":%q}`, strings.Repeat("n", 101)), 400},
		"no body":                    {"POST", verifiers, key, ``, 400},
		"somebody who never joined":  {"POST", verifiers + "/" + string(forged) + "/lease", key, ``, 404},
		"nonsense":                   {"POST", verifiers + "/nonsense/lease", key, ``, 404},
		"who never joined rejoins":   {"POST", verifiers, key, fmt.Sprintf(`{"kind":"embedded","name":"n","verifier":%q}`, forged), 404},
		"it rejoins as another kind": {"POST", verifiers, key, fmt.Sprintf(`{"kind":"observer","name":"n","verifier":%q}`, v.Verifier), 400},
		"a cursor of before":         {"GET", verifiers + "/snapshot?after=gone", key, ``, 404},
		"changes behind nothing":     {"GET", verifiers + "/changes", key, ``, 400},
		"changes behind nonsense":    {"GET", verifiers + "/changes?after=-1", key, ``, 400},
		"uses as JSON":               {"POST", verifiers + "/" + v.Verifier + "/uses", key, `{}`, 415},
	} {
		rest := []string{try.credential}
		if try.body != "" {
			rest = append(rest, try.body)
		}
		if a := s.ask(try.method, try.path, rest...); a.status != try.status {
			t.Errorf("%s: got %d %s", name, a.status, a.body)
		}
	}
}

func TestASnapshotIsHandedOnPartByPart(t *testing.T) {
	t.Parallel()
	s, _, _ := startDesk(t)
	key := "X-API-Key: " + s.key(domain.SystemOrganization, domain.ScopeSystemVerify)
	a := s.ask("GET", verifiers+"/snapshot?after=cursor", key, "Accept-Encoding: zstd")
	if a.status != 200 || a.body != "one two cursor" {
		t.Errorf("got %d %q", a.status, a.body)
	}
	a.has(t, "Content-Type", wire.MediaType).has(t, "Content-Encoding", "zstd")
}

func TestOnlySoManySnapshotsAreOnTheirWay(t *testing.T) {
	t.Parallel()
	s, _, f := startDesk(t)
	f.stuck = make(chan struct{})
	key := s.key(domain.SystemOrganization, domain.ScopeSystemVerify)
	open := func() *nethttp.Response {
		t.Helper()
		request, err := nethttp.NewRequestWithContext(t.Context(), "GET", s.url+verifiers+"/snapshot", nil)
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("X-API-Key", key)
		response, err := s.client.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = response.Body.Close() })
		return response
	}
	for n := range 17 {
		r := open() //nolint:bodyclose // closed when the test ends
		if want := map[bool]int{true: 200, false: 503}[n < 16]; r.StatusCode != want || want == 503 && r.Header.Get("Retry-After") == "" {
			t.Errorf("snapshot %d: %d", n, r.StatusCode)
		}
	}
	close(f.stuck)
}

func TestChangesAndAsksReachAVerifierAndNobodyElse(t *testing.T) {
	t.Parallel()
	s, d, f := startDesk(t)
	plain := s.key(domain.SystemOrganization, domain.ScopeSystemVerify)
	d.ask(7)
	request, err := nethttp.NewRequestWithContext(t.Context(), "GET", s.url+verifiers+"/changes?after=5", nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("X-API-Key", plain)
	response, err := s.client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	frames := wire.NewReader(response.Body)
	next := func() (wire.Kind, []byte) {
		t.Helper()
		for {
			kind, payload, err := frames.Next()
			if err != nil {
				t.Fatal(err)
			}
			if kind != wire.KindAlive {
				return kind, payload
			}
		}
	}
	if kind, payload := next(); kind != wire.KindHeader {
		t.Errorf("kind %d %x", kind, payload)
	}
	asked := func(want domain.Position) {
		t.Helper()
		kind, payload := next()
		if got, err := wire.ReadPosition(payload); kind != wire.KindAsked || err != nil || got != want {
			t.Errorf("kind %d, position %d, %v", kind, got, err)
		}
	}
	asked(7)
	change := wire.AppendChange(nil, wire.Change{Position: 6, Version: 2, Event: domain.KeyRevoked{Key: domain.KeyID{1}}})
	f.changes <- change
	if kind, payload := next(); kind != wire.KindRevoked || !bytes.HasSuffix(change, payload) {
		t.Errorf("kind %d %s", kind, hex.EncodeToString(payload))
	}
	d.ask(9)
	asked(9)

	// Whose key is revoked reads no further.
	id := s.keyID(plain)
	if _, _, err := s.ledger.ChangeKey(t.Context(), domain.Request{ID: domain.CommandID{9}}, id, domain.RevokeKey{Now: s.clock(), Organization: domain.SystemOrganization}); err != nil {
		t.Fatal(err)
	}
	for {
		if _, _, err := frames.Next(); err != nil {
			if err != io.EOF { //nolint:errorlint // between two frames it is this very one
				t.Errorf("the stream ended with %v", err)
			}
			break
		}
	}
	<-f.left
}

func TestReportsOfUsesAreRead(t *testing.T) {
	t.Parallel()
	s, _, f := startDesk(t)
	key := s.key(domain.SystemOrganization, domain.ScopeSystemVerify)
	v := decode[joined](t, s.ask("POST", verifiers, "X-API-Key: "+key, `{"kind":"observer","name":"orders-7"}`).body)
	post := func(body []byte) (int, string) {
		t.Helper()
		request, err := nethttp.NewRequestWithContext(t.Context(), "POST", s.url+verifiers+"/"+v.Verifier+"/uses", bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("X-API-Key", key)
		request.Header.Set("Content-Type", wire.MediaType)
		response, err := s.client.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = response.Body.Close() }()
		text, _ := io.ReadAll(response.Body)
		return response.StatusCode, string(text)
	}
	use := domain.Use{Key: domain.KeyID{1}, Outcome: domain.OutcomeValid, Count: 3, First: noon.Truncate(time.Millisecond), Last: noon.Truncate(time.Millisecond), DecidedAt: 2}
	report := wire.Report{Flush: 1, Expected: 4, Uses: slices.Repeat([]domain.Use{use}, wire.MostUses)}
	if status, body := post(wire.AppendReport(nil, report)); status != 200 || body != `{"version":5}` || len(f.reports) != 1 || len(f.reports[0].Uses) != wire.MostUses || f.reports[0].Uses[7] != use {
		t.Errorf("got %d %s", status, body)
	}
	if status, body := post([]byte("nonsense")); status != 400 {
		t.Errorf("got %d %s", status, body)
	}
	if status, body := post(make([]byte, wire.MostFrame+1000)); status != 413 {
		t.Errorf("got %d %s", status, body)
	}
	report.Uses = []domain.Use{{Outcome: domain.OutcomeValid, Count: 1, First: noon, Last: noon}}
	if status, body := post(wire.AppendReport(nil, report)); status != 400 || !strings.Contains(body, `"field":"uses[0].key"`) {
		t.Errorf("got %d %s", status, body)
	}
}
