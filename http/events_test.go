package http_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	nethttp "net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"keyledger/domain"
	keyhttp "keyledger/http"
)

// feedInMemory is a log: acme's events stand at even positions, other's at odd ones.
type feedInMemory struct {
	mu      sync.Mutex
	head    domain.Position
	looked  int // events that one page looks at
	failing error
	news    map[chan struct{}]struct{}
	left    chan struct{} // has a value for every watcher that went
}

func newFeed(head domain.Position) *feedInMemory {
	return &feedInMemory{head: head, looked: 1000, news: map[chan struct{}]struct{}{}, left: make(chan struct{}, 100)}
}

func (f *feedInMemory) Head(context.Context, domain.Lane) (domain.Position, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.head, f.failing
}

func (f *feedInMemory) Page(_ context.Context, q keyhttp.EventQuery) (keyhttp.EventPage, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	page := keyhttp.EventPage{Next: q.After, Head: f.head}
	switch {
	case f.failing != nil:
		return page, f.failing
	case q.After > f.head:
		return page, &domain.Error{Code: domain.CodeStale, Field: "after", Message: "is behind the end"}
	case slices.Contains(q.Types, "nonsense"):
		return page, domain.Invalid("types", "must be known")
	}
	for page.Next < f.head && int(page.Next-q.After) < f.looked && len(page.Events) < q.Most {
		page.Next++
		organization := other
		if page.Next%2 == 0 {
			organization = acme
		}
		if q.Organization == "" || q.Organization == organization {
			page.Events = append(page.Events, keyhttp.FeedEvent{
				Position: page.Next,
				JSON:     fmt.Appendf(nil, `{"position":"%d","organization":%q,"data":{"pad":%q}}`, page.Next, organization, strings.Repeat("x", 100)),
			})
		}
	}
	return page, nil
}

func (f *feedInMemory) Watch(domain.Lane, domain.OrganizationID) (<-chan struct{}, func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	news := make(chan struct{}, 1)
	f.news[news] = struct{}{}
	return news, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.news, news)
		f.left <- struct{}{}
	}
}

// grow appends events and says so.
func (f *feedInMemory) grow(n domain.Position) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.head += n
	for news := range f.news {
		select {
		case news <- struct{}{}:
		default:
		}
	}
}

func (f *feedInMemory) watchers() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.news)
}

const (
	systemFeed = "/api/v1/events"
	acmeFeed   = "/api/v1/organizations/" + string(acme) + "/events"
)

type eventPage struct {
	Events []struct {
		Position, Organization string
	}
	Next, Head uint64
	Epoch      uint32
	Lane       string
	Cursor     string
}

func (p eventPage) positions() (positions []string) {
	for _, e := range p.Events {
		positions = append(positions, e.Position)
	}
	return positions
}

func startFeed(t *testing.T, head domain.Position) (*site, *feedInMemory) {
	t.Helper()
	f := newFeed(head)
	s := start(t, func(o *keyhttp.Options) { o.Events = f })
	keyhttp.SetStreams(s.server, 5*time.Millisecond, time.Millisecond, 30*time.Second)
	return s, f
}

func TestTheFeedIsReadPageByPage(t *testing.T) {
	t.Parallel()
	s, _ := startFeed(t, 7)
	key := "X-API-Key: " + s.key(domain.SystemOrganization, domain.ScopeSystemEvents)
	first := s.ask("GET", systemFeed+"?limit=3", key)
	page := decode[eventPage](t, first.body)
	if !slices.Equal(page.positions(), []string{"1", "2", "3"}) || page.Next != 3 || page.Head != 7 || page.Epoch != 3 || page.Cursor != "3:lifecycle:3" || page.Lane != "lifecycle" {
		t.Errorf("got %s", first.body)
	}
	first.has(t, "Cache-Control", "no-store").has(t, "Link", "<"+systemFeed+`?after=3%3Alifecycle%3A3&limit=3>; rel="next"`)
	for _, after := range []string{"6", "3:lifecycle:6"} {
		last := s.ask("GET", systemFeed+"?after="+after, key)
		if page := decode[eventPage](t, last.body); !slices.Equal(page.positions(), []string{"7"}) || page.Next != 7 || last.header.Get("Link") != "" {
			t.Errorf("got %s", last.body)
		}
	}
	mine := s.ask("GET", acmeFeed, "X-API-Key: "+s.key(acme, "events:read"))
	if page := decode[eventPage](t, mine.body); !slices.Equal(page.positions(), []string{"2", "4", "6"}) || page.Next != 7 {
		t.Errorf("got %s", mine.body)
	}
}

func TestTheFeedIsForThoseWhoMayReadIt(t *testing.T) {
	t.Parallel()
	s, _ := startFeed(t, 7)
	member := "Authorization: Bearer " + sign(t, jwt.SigningMethodHS256, tokenSecret, "", claimsOf("user_1", claimSet{"org_id": string(acme), "org_role": "member"}))
	for name, try := range map[string]struct {
		path, credential string
		status           int
	}{
		"a system key":                        {systemFeed, "X-API-Key: " + s.key(domain.SystemOrganization, domain.ScopeSystemEvents), 200},
		"a system key for something else":     {systemFeed, "X-API-Key: " + s.key(domain.SystemOrganization, domain.ScopeSystemVerify), 403},
		"an organization's key, whole log":    {systemFeed, "X-API-Key: " + s.key(acme, "*"), 403},
		"a member, whole log":                 {systemFeed, member, 403},
		"nobody":                              {systemFeed, "Accept: */*", 401},
		"events:read":                         {acmeFeed, "X-API-Key: " + s.key(acme, "events:read"), 200},
		"everything in the organization":      {acmeFeed, "X-API-Key: " + s.key(acme, "*"), 200},
		"admin does not read events":          {acmeFeed, "X-API-Key: " + s.key(acme, "admin"), 403},
		"another organization's":              {acmeFeed, "X-API-Key: " + s.key(other, "*"), 403},
		"a member":                            {acmeFeed, member, 200},
		"a system key, of an organization":    {acmeFeed, "X-API-Key: " + s.key(domain.SystemOrganization, domain.ScopeSystemEvents), 403},
		"nobody, of an organization":          {acmeFeed, "Accept: */*", 401},
		"nobody, as a stream":                 {acmeFeed + "?format=sse", "Accept: */*", 401},
		"admin does not read events, streams": {acmeFeed + "?format=sse", "X-API-Key: " + s.key(acme, "admin"), 403},
	} {
		if a := s.ask("GET", try.path, try.credential); a.status != try.status {
			t.Errorf("%s: got %d %s", name, a.status, a.body)
		}
	}
}

func TestBadQuestionsToTheFeedNameTheirField(t *testing.T) {
	t.Parallel()
	s, f := startFeed(t, 7)
	system, mine := "X-API-Key: "+s.key(domain.SystemOrganization, domain.ScopeSystemEvents), "X-API-Key: "+s.key(acme, "*")
	for _, try := range []struct {
		path, header string
		status       int
		field        string
	}{
		{"?after=-1", "", 400, "after"},
		{"?after=x", "", 400, "after"},
		{"?after=99999999999999999999", "", 400, "after"},
		{"?after=3:usage:1", "", 400, "after"},
		{"?after=2:lifecycle:1", "", 409, "after"},
		{"?after=8", "", 409, "after"},
		{"?after=8&format=sse", "", 409, "after"},
		{"?after=8&format=ndjson", "", 409, "after"},
		{"?format=sse", "Last-Event-ID: 2:lifecycle:1", 409, "Last-Event-ID"},
		{"?format=sse", "Last-Event-ID: x", 400, "Last-Event-ID"},
		{"?limit=0", "", 400, "limit"},
		{"?limit=1001", "", 400, "limit"},
		{"?limit=+1", "", 400, "limit"},
		{"?types=nonsense", "", 400, "types"},
		{"?types=nonsense&format=sse", "", 400, "types"},
		{"?types=" + strings.Repeat("a,", 40), "", 400, "types"},
		{"?lane=both", "", 400, "lane"},
		{"?after=1&after=2", "", 400, "after"},
		{"?format=xml", "", 400, "format"},
	} {
		for path, key := range map[string]string{systemFeed: system, acmeFeed: mine} {
			a := s.ask("GET", path+try.path, key, "X: y", cond(try.header))
			if a.status != try.status || !strings.Contains(a.body, `"field":"`+try.field+`"`) {
				t.Errorf("%s %s: got %d %s", path+try.path, try.header, a.status, a.body)
			}
		}
	}
	if a := s.ask("GET", acmeFeed+"?lane=usage", mine); a.status != 400 || !strings.Contains(a.body, `"field":"lane"`) {
		t.Errorf("got %d %s", a.status, a.body)
	}
	if n := f.watchers(); n != 0 {
		t.Errorf("%d watchers are left", n)
	}
}

func cond(header string) string {
	if header == "" {
		return "X: z"
	}
	return header
}

func TestTheFeedIsExportedLineByLineUpToItsEnd(t *testing.T) {
	t.Parallel()
	s, f := startFeed(t, 5000)
	f.looked = 300
	key := "X-API-Key: " + s.key(acme, "*")
	a := s.ask("GET", acmeFeed, key, "Accept: application/x-ndjson")
	a.has(t, "X-Keyledger-Position", "3:lifecycle:5000").has(t, "Content-Type", "application/x-ndjson")
	want := 2
	for line := range strings.Lines(a.body) {
		var e struct{ Position string }
		if err := json.Unmarshal([]byte(line), &e); err != nil || e.Position != strconv.Itoa(want) {
			t.Fatalf("got %s instead of %d (%v)", line, want, err)
		}
		want += 2
	}
	if want != 5002 {
		t.Errorf("the lines end before %d", want)
	}
	if a := s.ask("GET", acmeFeed+"?limit=400&after=10", key, "Accept: application/x-ndjson"); strings.Count(a.body, "\n") != 400 {
		t.Errorf("got %d lines", strings.Count(a.body, "\n"))
	}
}

// An export that cannot be finished must not look like one that is.
func TestAnExportThatBreaksOffIsNoWholeOne(t *testing.T) {
	t.Parallel()
	s, f := startFeed(t, 1_000_000) // far more than buffers on the way can hold
	f.looked = 100
	r := s.open(acmeFeed, "X-API-Key: "+s.key(acme, "*"), "Accept: application/x-ndjson")
	r.line()
	f.mu.Lock()
	f.failing = errPostgresAway
	f.mu.Unlock()
	if _, err := io.Copy(io.Discard, r.lines); err == nil {
		t.Error("it ended as if it were whole")
	}
}

// reading is one open stream.
type reading struct {
	t        *testing.T
	response *nethttp.Response
	lines    *bufio.Reader
}

func (s *site) open(path string, headers ...string) *reading {
	t := s.t.(*testing.T)
	t.Helper()
	request, err := nethttp.NewRequestWithContext(t.Context(), "GET", s.url+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		request.Header.Set(name, value)
	}
	response, err := s.client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = response.Body.Close() })
	if response.StatusCode != nethttp.StatusOK {
		body, _ := io.ReadAll(response.Body)
		t.Fatalf("got %d %s", response.StatusCode, body)
	}
	return &reading{t, response, bufio.NewReader(response.Body)}
}

func (r *reading) line() string {
	r.t.Helper()
	line, err := r.lines.ReadString('\n')
	if err != nil {
		r.t.Fatal(err)
	}
	return strings.TrimSuffix(line, "\n")
}

// event gives the next event's id and data, and passes over signs of life.
func (r *reading) event() (id, data string) {
	r.t.Helper()
	for {
		line := r.line()
		name, value, _ := strings.Cut(line, ": ")
		switch {
		case line == "" && data != "":
			return id, data
		case name == "id":
			id = value
		case name == "data":
			data = value
		case line != "" && line != ":" && line != "retry: 2000":
			r.t.Fatalf("got %q", line)
		}
	}
}

// ends waits for the end of the stream, and says whether it was a good one.
func (r *reading) ends() error {
	_, err := io.Copy(io.Discard, r.lines)
	return err
}

func TestAStreamBeginsAtTheEndAndGoesOn(t *testing.T) {
	t.Parallel()
	s, f := startFeed(t, 7)
	key := "X-API-Key: " + s.key(acme, "*")
	r := s.open(acmeFeed, key, "Accept: text/event-stream")
	if got := r.response.Header.Get("Content-Type"); got != "text/event-stream" || r.line() != "retry: 2000" {
		t.Errorf("got %s", got)
	}
	f.grow(3)
	for _, want := range []string{"8", "10"} {
		if id, data := r.event(); id != "3:lifecycle:"+want || !strings.Contains(data, `"position":"`+want+`"`) {
			t.Errorf("got %s %s", id, data)
		}
	}
	f.grow(1) // other's: only the id moves on
	for r.line() != "id: 3:lifecycle:11" {
	}
	_ = r.response.Body.Close()

	back := s.open(acmeFeed+"?format=sse&after=0", key, "Last-Event-ID: 3:lifecycle:8")
	if id, _ := back.event(); id != "3:lifecycle:10" {
		t.Errorf("got %s", id)
	}
	whole := s.open(systemFeed+"?after=0", "X-API-Key: "+s.key(domain.SystemOrganization, domain.ScopeSystemEvents), "Accept: text/event-stream")
	for want := 1; want <= 11; want++ {
		if id, _ := whole.event(); id != fmt.Sprintf("3:lifecycle:%d", want) {
			t.Errorf("got %s instead of %d", id, want)
		}
	}
}

func TestAStreamEndsWithTheRightToIt(t *testing.T) {
	t.Parallel()
	s, f := startFeed(t, 7)
	plain := s.key(acme, "*")
	resting, reading := s.open(acmeFeed+"?format=sse", "X-API-Key: "+plain), s.open(acmeFeed+"?format=sse&after=0", "X-API-Key: "+plain)
	reading.event()
	s.set(func(g *ledger) {
		for _, k := range g.keys {
			k.key.Revoked = true
		}
	})
	f.grow(1000)
	rest, err := io.ReadAll(reading.lines)
	if err != nil || strings.Contains(string(rest), `"position":"8"`) {
		t.Errorf("a revoked key still reads: %s (%v)", rest, err)
	}
	if err := resting.ends(); err != nil {
		t.Error(err)
	}
	s.ask("GET", acmeFeed, "X-API-Key: "+plain).is(t, 401, s.ask("GET", acmeFeed, "X-API-Key: "+plain).body)

	token := "Authorization: Bearer " + sign(t, jwt.SigningMethodHS256, tokenSecret, "", claimsOf("user_1", claimSet{"org_id": string(acme), "org_role": "member"}))
	member := s.open(acmeFeed+"?format=sse", token)
	s.pass(1000 * time.Hour)
	if err := member.ends(); err != nil {
		t.Error(err)
	}
}

// A stream that rests costs its key no use.
func TestLookingAgainIsNoUse(t *testing.T) {
	t.Parallel()
	s, _ := startFeed(t, 7)
	r := s.open(acmeFeed+"?format=sse", "X-API-Key: "+s.key(acme, "*"))
	for range 6 {
		r.line()
	}
	s.set(func(g *ledger) {
		if silent := slices.IndexFunc(g.asked, func(v domain.Verification) bool { return v.Silent }); silent != 1 || len(g.asked) < 3 {
			t.Errorf("the key was looked at like this: %+v", g.asked)
		}
		for _, v := range g.asked[1:] {
			if !v.Silent {
				t.Errorf("it was charged again: %+v", v)
			}
		}
	})
}

func TestStreamsEndWithTheServer(t *testing.T) {
	t.Parallel()
	s, f := startFeed(t, 7)
	r := s.open(acmeFeed+"?format=sse", "X-API-Key: "+s.key(acme, "*"))
	r.line()
	ended := make(chan error, 1)
	go func() { ended <- r.ends() }()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := s.server.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if f.watchers() != 0 {
		t.Error("somebody still watches")
	}
}

func TestAStreamEndsWithItsClient(t *testing.T) {
	t.Parallel()
	s, f := startFeed(t, 7)
	r := s.open(acmeFeed+"?format=sse", "X-API-Key: "+s.key(acme, "*"))
	r.line()
	_ = r.response.Body.Close()
	<-f.left
}

// Who takes nothing is cut off, and holds neither events nor a place.
func TestASlowReaderIsCutOff(t *testing.T) {
	t.Parallel()
	s, f := startFeed(t, 10_000_000)
	keyhttp.SetStreams(s.server, time.Minute, time.Minute, 50*time.Millisecond)
	r := s.open(systemFeed+"?format=sse&after=0", "X-API-Key: "+s.key(domain.SystemOrganization, domain.ScopeSystemEvents))
	<-f.left
	if err := r.ends(); err == nil {
		t.Error("it was told that this is all")
	}
}

func TestStreamsAreLimited(t *testing.T) {
	t.Parallel()
	s, f := startFeed(t, 7)
	mine := "X-API-Key: " + s.keyWith(domain.CreateKey{Organization: acme, Scopes: domain.Scopes{"*"}, RateLimit: 100_000}).Reveal()
	var open []*reading
	for range 32 {
		open = append(open, s.open(acmeFeed+"?format=sse", mine))
	}
	a := s.ask("GET", acmeFeed+"?format=sse", mine)
	<-f.left
	if a.status != 429 || a.header.Get("Retry-After") == "" || !strings.Contains(a.body, "32") {
		t.Errorf("got %d %s", a.status, a.body)
	}
	s.open("/api/v1/organizations/"+string(other)+"/events?format=sse", "X-API-Key: "+s.key(other, "*"))
	if a := s.ask("GET", acmeFeed, mine); a.status != 200 {
		t.Errorf("a page is no stream: got %d %s", a.status, a.body)
	}
	if got := s.ask("GET", "/metrics").body; !strings.Contains(got, "keyledger_http_streams 33\n") {
		t.Error("the metric does not say 33")
	}
	system := "X-API-Key: " + s.keyWith(domain.CreateKey{Organization: domain.SystemOrganization, Scopes: domain.Scopes{domain.ScopeSystemEvents}, RateLimit: 100_000}).Reveal()
	for range 33 {
		s.open(systemFeed+"?format=sse", system)
	}
	_ = open[0].response.Body.Close()
	<-f.left
	s.open(acmeFeed+"?format=sse", mine)
}
