package webhooks_test

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	nethttp "net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"keyledger/domain"
	"keyledger/eventstore"
	"keyledger/internal/testkit"
	"keyledger/projections"
	"keyledger/projections/organizations"
	"keyledger/publisher"
	"keyledger/webhooks"
)

func TestMain(m *testing.M) { testkit.Main(m) }

const acme, other = domain.OrganizationID("org_a"), domain.OrganizationID("org_b")

// ledger is a real log, and what delivers it.
type ledger struct {
	t     *testing.T
	pool  *pgxpool.Pool
	store *eventstore.Store
	feed  *publisher.Feed
}

// feedLog is the log, with what finds an organization's part of it.
type feedLog struct {
	*eventstore.Store
	*organizations.Reader
}

func open(t *testing.T) *ledger {
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
	l := &ledger{t: t, pool: pool, store: store, feed: publisher.NewFeed(feedLog{store, organizations.NewReader(pool, store, places)}, nil)}
	l.run(store.Run)
	l.run(places.Run)
	l.run(l.feed.Run)
	return l
}

// run runs something until the test ends, or until stop is called.
func (l *ledger) run(run func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(l.t.Context()))
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			l.t.Error(err)
		}
	})
	l.t.Cleanup(stop)
	return stop
}

// webhooks makes a node's deliverer; it does nothing before it is run.
func (l *ledger) webhooks(change ...func(*webhooks.Options)) *webhooks.Webhooks {
	l.t.Helper()
	o := webhooks.Options{
		Pool: l.pool, Feed: l.feed, Key: make([]byte, 32), Insecure: true, Logger: testkit.Logger(l.t),
		FirstPause: 10 * time.Millisecond, Sweep: 10 * time.Millisecond,
	}
	for _, c := range change {
		c(&o)
	}
	w, err := webhooks.New(o)
	if err != nil {
		l.t.Fatal(err)
	}
	return w
}

func (l *ledger) create(organization domain.OrganizationID) domain.Position {
	l.t.Helper()
	drawn, err := domain.NewID(time.Now(), rand.Reader)
	if err != nil {
		l.t.Fatal(err)
	}
	request := domain.Request{Metadata: domain.Metadata{Actor: domain.Actor{Kind: domain.ActorConsole}}}
	_, receipt, err := l.store.ChangeKey(l.t.Context(), request, domain.KeyID(drawn), domain.CreateKey{
		Now: time.Now().UTC().Truncate(time.Microsecond), Key: domain.KeyID(drawn), Organization: organization, Digest: sha256.Sum256(drawn[:]), Prefix: "bsk_live_a1b2",
		Name: "Ada's key", Scopes: domain.Scopes{"read"}, Granter: domain.Scopes{"*"},
	})
	if err != nil {
		l.t.Fatal(err)
	}
	return receipt.Position
}

func (l *ledger) sql(sql string, args ...any) {
	l.t.Helper()
	if _, err := l.pool.Exec(l.t.Context(), sql, args...); err != nil {
		l.t.Fatal(err)
	}
}

// delivery is what a receiver got.
type delivery struct {
	id, signature string
	at            int64
	position      domain.Position
	body          []byte
}

// receiver is somebody's endpoint. Each delivery is handed to the test, which says how it is answered.
type receiver struct {
	*httptest.Server
	t      *testing.T
	got    chan delivery
	answer func(d delivery, attempt int) int
	mu     sync.Mutex
	tries  map[string]int
}

func receive(t *testing.T, answer func(d delivery, attempt int) int) *receiver {
	t.Helper()
	r := &receiver{t: t, got: make(chan delivery, 10_000), answer: answer, tries: map[string]int{}}
	r.Server = httptest.NewServer(nethttp.HandlerFunc(func(w nethttp.ResponseWriter, request *nethttp.Request) {
		body, err := io.ReadAll(request.Body)
		if err != nil {
			return // the deliverer was killed
		}
		d := delivery{id: request.Header.Get("webhook-id"), signature: request.Header.Get("webhook-signature"), body: body}
		d.at, _ = strconv.ParseInt(request.Header.Get("webhook-timestamp"), 10, 64)
		var event struct {
			ID       string
			Position string
		}
		if err := json.Unmarshal(body, &event); err != nil || event.ID != d.id {
			t.Errorf("the body is %s, and the id %s", body, d.id)
		}
		n, _ := strconv.ParseUint(event.Position, 10, 63)
		d.position = domain.Position(n)
		r.mu.Lock()
		r.tries[d.id]++
		attempt := r.tries[d.id]
		r.mu.Unlock()
		r.got <- d
		if answer != nil {
			w.WriteHeader(answer(d, attempt))
		}
	}))
	t.Cleanup(r.Close)
	return r
}

func (r *receiver) next() delivery {
	r.t.Helper()
	select {
	case d := <-r.got:
		return d
	case <-time.After(time.Minute):
		r.t.Fatal("nothing is delivered")
		return delivery{}
	}
}

// signed checks a delivery as a receiver would that has never seen our code.
func (d delivery) signed(t *testing.T, secret string) bool {
	t.Helper()
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret, "whsec_"))
	if err != nil || len(key) < 24 || !strings.HasPrefix(secret, "whsec_") {
		t.Fatalf("no secret: %v", err)
	}
	mac := hmac.New(sha256.New, key)
	fmt.Fprintf(mac, "%s.%d.%s", d.id, d.at, d.body)
	want := "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
	return slices.Contains(strings.Split(d.signature, " "), want)
}

func at(url string, types ...string) domain.WebhookChange {
	c := domain.WebhookChange{URL: &url}
	if types != nil {
		c.Types = &types
	}
	return c
}

func (l *ledger) make(w *webhooks.Webhooks, organization domain.OrganizationID, c domain.WebhookChange) (domain.WebhookID, string) {
	l.t.Helper()
	made, secret, err := w.Create(l.t.Context(), organization, c)
	if err != nil {
		l.t.Fatal(err)
	}
	return made.ID, secret.Reveal()
}

// until waits for a webhook to be in a state.
func (l *ledger) until(w *webhooks.Webhooks, organization domain.OrganizationID, id domain.WebhookID, what string, is func(domain.Webhook) bool) domain.Webhook {
	l.t.Helper()
	poll := time.NewTicker(2 * time.Millisecond)
	defer poll.Stop()
	patience := time.After(time.Minute)
	for {
		found, err := w.Get(l.t.Context(), organization, id)
		if err != nil {
			l.t.Fatal(err)
		}
		if is(found) {
			return found
		}
		select {
		case <-poll.C:
		case <-patience:
			l.t.Fatalf("it is never %s: %+v", what, found)
		}
	}
}

func TestEventsAreDeliveredSignedAndInOrder(t *testing.T) {
	t.Parallel()
	l := open(t)
	w := l.webhooks()
	l.create(acme) // before the webhook was made
	r := receive(t, nil)
	id, secret := l.make(w, acme, at(r.URL))
	l.run(w.Run)
	var want []domain.Position
	for range 20 {
		l.create(other)
		want = append(want, l.create(acme))
	}
	for _, position := range want {
		d := r.next()
		if d.position != position || !d.signed(t, secret) || time.Since(time.Unix(d.at, 0)).Abs() > time.Minute {
			t.Fatalf("got %d instead of %d, signed %v", d.position, position, d.signed(t, secret))
		}
		if text := string(d.body); strings.Contains(text, "digest") || strings.Contains(text, "Ada") {
			t.Errorf("it says %s", text)
		}
	}
	l.until(w, acme, id, "at the end", func(f domain.Webhook) bool { return f.Position == want[len(want)-1] })
	if n := len(r.got); n != 0 {
		t.Errorf("%d more were delivered", n)
	}
}

func TestAFilterPassesOver(t *testing.T) {
	t.Parallel()
	l := open(t)
	w := l.webhooks()
	r := receive(t, nil)
	id, _ := l.make(w, acme, at(r.URL, "keyledger.key.revoked"))
	l.run(w.Run)
	last := l.create(acme)
	l.until(w, acme, id, "past what it does not want", func(f domain.Webhook) bool { return f.Position == last })
	if len(r.got) != 0 {
		t.Error("it was delivered")
	}
}

func TestAFailureIsTriedAgainAndHoldsTheOrder(t *testing.T) {
	t.Parallel()
	l := open(t)
	w := l.webhooks()
	r := receive(t, func(_ delivery, attempt int) int {
		if attempt < 4 {
			return 500
		}
		return 204
	})
	healthy := receive(t, nil)
	id, secret := l.make(w, acme, at(r.URL))
	l.make(w, acme, at(healthy.URL))
	dead, _ := l.make(w, acme, at("http://127.0.0.1:1"))
	l.run(w.Run)
	first, second := l.create(acme), l.create(acme)
	for _, position := range []domain.Position{first, first, first, first, second, second, second, second} {
		if d := r.next(); d.position != position || !d.signed(t, secret) {
			t.Fatalf("got %d instead of %d", d.position, position)
		}
	}
	if d := healthy.next(); d.position != first {
		t.Errorf("got %d", d.position)
	}
	done := l.until(w, acme, id, "healthy", func(f domain.Webhook) bool { return f.Position == second })
	if done.Attempts != 0 || !done.FailingSince.IsZero() || done.LastError != "" {
		t.Errorf("it is %+v", done)
	}
	failing := l.until(w, acme, dead, "failing", func(f domain.Webhook) bool { return f.Attempts > 2 })
	if failing.NextAttempt.IsZero() || failing.FailingSince.IsZero() || failing.LastError == "" || failing.Position >= first {
		t.Errorf("it is %+v", failing)
	}
}

// What is not taken in time is a dead letter, and the next event has its turn.
func TestWhatIsNotTakenInTimeIsADeadLetter(t *testing.T) {
	t.Parallel()
	l := open(t)
	w := l.webhooks(func(o *webhooks.Options) { o.Patience = time.Nanosecond })
	poisoned, mended := domain.Position(0), make(chan struct{})
	var mu sync.Mutex
	r := receive(t, func(d delivery, _ int) int {
		mu.Lock()
		defer mu.Unlock()
		select {
		case <-mended:
			return 200
		default:
		}
		if d.position == poisoned {
			return 422
		}
		return 200
	})
	id, secret := l.make(w, acme, at(r.URL))
	mu.Lock()
	poisoned = l.create(acme)
	mu.Unlock()
	next := l.create(acme)
	l.run(w.Run)
	l.until(w, acme, id, "past it", func(f domain.Webhook) bool { return f.Position == next })
	letters, err := w.DeadLetters(t.Context(), acme, id, 0, 10)
	if err != nil || len(letters) != 1 || letters[0].Position != poisoned || letters[0].Reason != "it was answered with 422" || letters[0].Attempts != 1 || letters[0].Type != "keyledger.key.created" {
		t.Fatalf("got %+v (%v)", letters, err)
	}
	if _, err := w.DeadLetters(t.Context(), other, id, 0, 10); domain.CodeOf(err) != domain.CodeNotFound {
		t.Errorf("another organization sees it: %v", err)
	}
	if reason, err := w.Redeliver(t.Context(), acme, id, poisoned); reason != "it was answered with 422" || err != nil {
		t.Errorf("got %q %v", reason, err)
	}
	close(mended)
	for len(r.got) > 0 {
		<-r.got
	}
	if reason, err := w.Redeliver(t.Context(), acme, id, poisoned); reason != "" || err != nil {
		t.Errorf("got %q %v", reason, err)
	}
	if d := r.next(); d.position != poisoned || !d.signed(t, secret) {
		t.Errorf("got %+v", d)
	}
	if _, err := w.Redeliver(t.Context(), acme, id, poisoned); domain.CodeOf(err) != domain.CodeNotFound {
		t.Errorf("got %v", err)
	}
}

func TestAReplayBeginsWhereItIsTold(t *testing.T) {
	t.Parallel()
	l := open(t)
	w := l.webhooks()
	r := receive(t, nil)
	id, _ := l.make(w, acme, at(r.URL))
	l.run(w.Run)
	var all []domain.Position
	for range 5 {
		all = append(all, l.create(acme))
	}
	for range all {
		r.next()
	}
	if _, err := w.Replay(t.Context(), acme, id, all[1]); err != nil {
		t.Fatal(err)
	}
	for _, position := range all[2:] {
		if d := r.next(); d.position != position {
			t.Errorf("got %d instead of %d", d.position, position)
		}
	}
	if _, err := w.Replay(t.Context(), acme, id, all[4]+1000); domain.CodeOf(err) != domain.CodeInvalid {
		t.Errorf("a replay from the future: %v", err)
	}
}

func TestBothSecretsSignWhileTheyAreChanged(t *testing.T) {
	t.Parallel()
	l := open(t)
	w := l.webhooks()
	r := receive(t, nil)
	id, first := l.make(w, acme, at(r.URL))
	l.run(w.Run)
	_, rotated, err := w.Rotate(t.Context(), acme, id, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	l.create(acme)
	if d := r.next(); !d.signed(t, first) || !d.signed(t, rotated.Reveal()) || strings.Count(d.signature, "v1,") != 2 {
		t.Errorf("it is signed %s", d.signature)
	}
	_, last, err := w.Rotate(t.Context(), acme, id, 0)
	if err != nil {
		t.Fatal(err)
	}
	l.create(acme)
	if d := r.next(); d.signed(t, first) || d.signed(t, rotated.Reveal()) || !d.signed(t, last.Reveal()) {
		t.Errorf("it is signed %s", d.signature)
	}
	for _, value := range []any{last, fmt.Sprintf("%v %+v %#v %s", last, last, last, last)} {
		if text, _ := json.Marshal(value); strings.Contains(string(text), last.Reveal()[6:]) {
			t.Error("a secret is printed")
		}
	}
	var plain bool
	if err := l.pool.QueryRow(t.Context(), `SELECT position($1::bytea IN secret) > 0 FROM webhooks`, last.Key()).Scan(&plain); err != nil || plain {
		t.Errorf("the secret stands in the table: %v %v", plain, err)
	}
}

func TestAnEndpointThatIsGoneOrFailsForLongIsDisabled(t *testing.T) {
	t.Parallel()
	l := open(t)
	w := l.webhooks(func(o *webhooks.Options) { o.DisableAfter = 50 * time.Millisecond })
	var status sync.Map
	r := receive(t, func(d delivery, _ int) int {
		if _, mended := status.Load("mended"); mended {
			return 200
		}
		return 410
	})
	gone, _ := l.make(w, acme, at(r.URL))
	dead, _ := l.make(w, acme, at("http://127.0.0.1:1"))
	l.run(w.Run)
	position := l.create(acme)
	if f := l.until(w, acme, gone, "disabled", func(f domain.Webhook) bool { return !f.DisabledAt.IsZero() }); !strings.Contains(f.DisabledReason, "410") {
		t.Errorf("it is %+v", f)
	}
	if f := l.until(w, acme, dead, "disabled", func(f domain.Webhook) bool { return !f.DisabledAt.IsZero() }); !strings.Contains(f.DisabledReason, "50ms") || !f.NextAttempt.IsZero() {
		t.Errorf("it is %+v", f)
	}
	r.next()
	status.Store("mended", true)
	on := true
	if f, err := w.Change(t.Context(), acme, gone, domain.WebhookChange{Enabled: &on}); err != nil || f.DisabledReason != "" {
		t.Errorf("got %+v %v", f, err)
	}
	if d := r.next(); d.position != position {
		t.Errorf("what happened meanwhile is not sent: %d", d.position)
	}
	off := false
	if f, err := w.Change(t.Context(), acme, gone, domain.WebhookChange{Enabled: &off}); err != nil || f.DisabledAt.IsZero() || f.DisabledReason == "" {
		t.Errorf("got %+v %v", f, err)
	}
}

// Two nodes deliver everything between them, in order, and each event once while
// neither fails.
func TestTwoNodesRaceAndTheReceiverDoesNotNotice(t *testing.T) {
	t.Parallel()
	l := open(t)
	r := receive(t, nil)
	nodes := []*webhooks.Webhooks{l.webhooks(), l.webhooks()}
	l.make(nodes[0], acme, at(r.URL))
	for _, n := range nodes {
		l.run(n.Run)
	}
	var want []domain.Position
	for range 200 {
		want = append(want, l.create(acme))
	}
	for _, position := range want {
		if d := r.next(); d.position != position {
			t.Fatalf("got %d instead of %d", d.position, position)
		}
	}
}

// hanging is a receiver that says nothing to the first attempt, for as long as the test likes.
func hanging(t *testing.T) (*receiver, func()) {
	t.Helper()
	release := make(chan struct{})
	r := receive(t, func(_ delivery, attempt int) int {
		if attempt == 1 {
			<-release
		}
		return 200
	})
	free := sync.OnceFunc(func() { close(release) })
	t.Cleanup(free)
	return r, free
}

// A node that says nothing any more in the middle of a delivery, because it was killed
// or is paused, is replaced when its claim has run out; and when it comes back, what it says moves nothing.
func TestANodeThatIsStuckWhileItDeliversIsReplaced(t *testing.T) {
	t.Parallel()
	l := open(t)
	r, free := hanging(t)
	first, second := l.webhooks(), l.webhooks()
	id, _ := l.make(first, acme, at(r.URL))
	l.run(first.Run)
	position := l.create(acme)
	if d := r.next(); d.position != position {
		t.Fatalf("got %d", d.position)
	}
	l.sql(`UPDATE webhooks SET due_at = now() WHERE id = $1`, [16]byte(id)) // as if 15 s had passed
	l.run(second.Run)
	if d := r.next(); d.position != position {
		t.Fatalf("got %d", d.position)
	}
	l.until(second, acme, id, "at the end", func(f domain.Webhook) bool { return f.Position == position })
	if _, err := second.Replay(t.Context(), acme, id, position-1); err != nil {
		t.Fatal(err)
	}
	r.next()
	free() // the first node is told that its attempt was good
	next := l.create(acme)
	if d := r.next(); d.position != next {
		t.Errorf("got %d instead of %d", d.position, next)
	}
	l.until(second, acme, id, "at the end", func(f domain.Webhook) bool { return f.Position == next })
}

// A node that is told to stop leaves nobody waiting for it.
func TestANodeThatStopsGivesItsClaimBack(t *testing.T) {
	t.Parallel()
	l := open(t)
	r, _ := hanging(t)
	first, second := l.webhooks(), l.webhooks()
	id, _ := l.make(first, acme, at(r.URL))
	stop := l.run(first.Run)
	position := l.create(acme)
	r.next()
	stop()
	began := time.Now()
	l.run(second.Run)
	l.until(second, acme, id, "at the end", func(f domain.Webhook) bool { return f.Position == position })
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("the claim was waited for: %s", took)
	}
}

// A node that slept over its claim cannot take the checkpoint back or forth.
func TestAPausedNodeMovesNothing(t *testing.T) {
	t.Parallel()
	l := open(t)
	asked, release := make(chan struct{}), make(chan struct{})
	r := receive(t, func(_ delivery, attempt int) int {
		if attempt == 1 {
			close(asked)
			<-release
		}
		return 200
	})
	w := l.webhooks()
	id, _ := l.make(w, acme, at(r.URL))
	l.run(w.Run)
	position := l.create(acme)
	<-asked
	// Somebody else's claim, as when this node slept.
	l.sql(`UPDATE webhooks SET claim = claim + 1, due_at = now() + interval '1 hour' WHERE id = $1`, [16]byte(id))
	close(release)
	r.next()
	l.create(acme)
	l.sql(`UPDATE webhooks SET due_at = now() WHERE id = $1`, [16]byte(id))
	if d := r.next(); d.position != position {
		t.Errorf("the paused node moved on: %d", d.position)
	}
}

func TestNothingInsideIsReached(t *testing.T) {
	t.Parallel()
	l := open(t)
	w := l.webhooks(func(o *webhooks.Options) { o.Insecure = false })
	inside := receive(t, nil)
	port := inside.URL[strings.LastIndex(inside.URL, ":"):]
	for _, url := range []string{"http://example.com", "https://u:p@example.com/", "ftp://example.com", "https://", "example.com", "https://example.com/#x", "https://exa mple.com", "https://" + strings.Repeat("a", 3000)} {
		if _, _, err := w.Create(t.Context(), acme, at(url)); domain.CodeOf(err) != domain.CodeInvalid || strings.Contains(err.Error(), "u:p") {
			t.Errorf("%s is accepted: %v", url, err)
		}
	}
	l.run(w.Run)
	l.create(acme)
	for _, host := range []string{"localhost", "127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "127.1", "2130706433", "169.254.169.254"} {
		id, _ := l.make(w, acme, at("https://"+host+port))
		l.create(acme)
		f := l.until(w, acme, id, "refused", func(f domain.Webhook) bool { return f.Attempts > 0 })
		if f.LastError != "the host has an address that is not public" && f.LastError != "the host's name cannot be resolved" {
			t.Errorf("%s: %s", host, f.LastError)
		}
		if err := w.Remove(t.Context(), acme, id); err != nil {
			t.Fatal(err)
		}
	}
	if len(inside.got) != 0 {
		t.Error("it was reached")
	}
}

func TestARedirectIsNotFollowed(t *testing.T) {
	t.Parallel()
	l := open(t)
	w := l.webhooks()
	target := receive(t, nil)
	redirect := httptest.NewServer(nethttp.RedirectHandler(target.URL, nethttp.StatusTemporaryRedirect))
	t.Cleanup(redirect.Close)
	id, _ := l.make(w, acme, at(redirect.URL))
	l.run(w.Run)
	l.create(acme)
	f := l.until(w, acme, id, "refused", func(f domain.Webhook) bool { return f.Attempts > 0 })
	if f.LastError != "it was answered with 307" || len(target.got) != 0 {
		t.Errorf("it is %+v", f)
	}
}

func TestAnErasedOrganizationHasNoWebhooks(t *testing.T) {
	t.Parallel()
	l := open(t)
	w := l.webhooks()
	id, _ := l.make(w, acme, at("http://127.0.0.1:1/ada"))
	kept, _ := l.make(w, other, at("http://127.0.0.1:1/ada"))
	l.run(w.Run)
	l.create(acme)
	erase(t, l.store, acme)
	poll := time.NewTicker(2 * time.Millisecond)
	defer poll.Stop()
	for {
		if _, err := w.Get(t.Context(), acme, id); domain.CodeOf(err) == domain.CodeNotFound {
			break
		}
		<-poll.C
	}
	if _, err := w.Get(t.Context(), other, kept); err != nil {
		t.Error(err)
	}
}

func TestWebhooksAreBoundedAndTheOrganizationsOwn(t *testing.T) {
	t.Parallel()
	l := open(t)
	w := l.webhooks()
	id, _ := l.make(w, acme, at("http://127.0.0.1:1"))
	for range webhooks.MostOfOrganization - 1 {
		l.make(w, acme, at("http://127.0.0.1:1"))
	}
	if _, _, err := w.Create(t.Context(), acme, at("http://127.0.0.1:1")); domain.CodeOf(err) != domain.CodeUnprocessable {
		t.Errorf("got %v", err)
	}
	l.make(w, other, at("http://127.0.0.1:1"))
	for name, try := range map[string]func() error{
		"get":    func() error { _, err := w.Get(t.Context(), other, id); return err },
		"change": func() error { _, err := w.Change(t.Context(), other, id, at("http://127.0.0.1:2")); return err },
		"remove": func() error { return w.Remove(t.Context(), other, id) },
		"rotate": func() error { _, _, err := w.Rotate(t.Context(), other, id, 0); return err },
		"replay": func() error { _, err := w.Replay(t.Context(), other, id, 0); return err },
		"again":  func() error { _, err := w.Redeliver(t.Context(), other, id, 1); return err },
	} {
		if err := try(); domain.CodeOf(err) != domain.CodeNotFound {
			t.Errorf("%s: %v", name, err)
		}
	}
	if list, err := w.List(t.Context(), acme); err != nil || len(list) != webhooks.MostOfOrganization || list[0].ID != id {
		t.Errorf("got %v %v", list, err)
	}
	nonsense := []string{"keyledger.key.used"} // of the other lane
	if _, err := w.Change(t.Context(), acme, id, domain.WebhookChange{Types: &nonsense}); domain.CodeOf(err) != domain.CodeInvalid {
		t.Errorf("got %v", err)
	}
}

func erase(t *testing.T, store *eventstore.Store, organization domain.OrganizationID) {
	t.Helper()
	request := domain.Request{Metadata: domain.Metadata{Actor: domain.Actor{Kind: domain.ActorConsole}}}
	if _, _, err := store.ChangeOrganization(t.Context(), request, organization, domain.EraseOrganization{Now: time.Now().UTC(), Organization: organization}); err != nil {
		t.Fatal(err)
	}
}
