package prove_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"keyledger/domain"
)

const (
	// knownWithin is how long a new key may take to be known everywhere. Where it is
	// not, the trial goes on without: a node that is cut off does not learn of it.
	knownWithin = 300 * time.Millisecond
	// watchedFor is how long a revoked key is tried: longer than any lease.
	watchedFor   = lease + 500*time.Millisecond
	revokeWithin = 40 * time.Second
	// impatience is when a client tries another node; the first goes on meanwhile.
	impatience = 2 * time.Second
)

// prover makes keys, has them accepted everywhere, revokes them, and looks for one that is
// accepted afterwards.
type prover struct {
	*site
	chaos *chaos // nil: nothing breaks
	doors []door
	// through are the nodes that are asked to create and revoke. Default: all.
	through []*node
	// breaks is called when a key is known, before it is revoked, and mends afterwards.
	// Default: nothing.
	breaks func() (mends func())

	begun      atomic.Int64 // trials
	judging    sync.WaitGroup
	mu         sync.Mutex
	revokes    []call
	violations []violation
	wrong      []string
	trials     int
	before     int            // verifications that were accepted, as they should
	after      map[answer]int // what was answered to those that started after the revoke had returned
	late       int            // of these, those that a stopped process kept waiting
	unknowing  int            // doors that had not accepted a key before it was revoked
}

// call is a revoke call that returned what presupposes the revocation.
type call struct {
	node     string
	how      string
	from, to time.Time
	waited   time.Duration // for the fence, as the server says; 0: it does not
}

// violation is a verification that was accepted although it started after a
// revoke had returned.
type violation struct {
	key             domain.KeyID
	revoke          call
	door            string
	asked, answered time.Time
	story           string
}

func newProver(s *site, c *chaos) *prover {
	return &prover{site: s, chaos: c, doors: s.doors(), through: s.nodes, breaks: func() func() { return func() {} }, after: map[answer]int{}}
}

// run keeps some workers at it until stop is closed or enough keys were revoked.
func (p *prover) run(workers, enough int, stop <-chan struct{}) {
	var all sync.WaitGroup
	for range workers {
		all.Go(func() {
			<-time.After(rand.N(watchedFor)) // not all in step
			for p.begun.Add(1) <= int64(enough) {
				select {
				case <-stop:
					return
				default:
				}
				p.trial(stop)
			}
		})
	}
	all.Wait()
	p.judging.Wait()
}

// trial is the life of one key.
type trial struct {
	*prover
	id     domain.KeyID
	secret string

	known sync.WaitGroup // doors that have not accepted it yet
	held  chan struct{}  // closed when a revoke has returned
	over  chan struct{}  // closed when nobody needs to ask any more

	mu    sync.Mutex
	first call // the revoke that returned first; valid once held is closed
	seen  []sighting
	story []string
}

// sighting is one answer about the key.
type sighting struct {
	door            string
	asked, answered time.Time
	answer          answer
}

func (p *prover) trial(stop <-chan struct{}) {
	t := &trial{prover: p, held: make(chan struct{}), over: make(chan struct{})}
	if !t.create(stop) {
		return
	}
	var watching sync.WaitGroup
	knowing := make(chan struct{})
	t.known.Add(len(p.doors))
	for _, d := range p.doors {
		watching.Go(func() { t.watch(d) })
	}
	go func() {
		t.known.Wait()
		close(knowing)
	}()
	select {
	case <-knowing:
	case <-time.After(knownWithin):
	}
	mends := p.breaks()
	ok := t.revoke()
	if ok {
		// At this very moment, whatever the pace of those who watch.
		for _, d := range p.doors {
			watching.Go(func() { t.ask(d) })
		}
		<-time.After(watchedFor)
	}
	close(t.over)
	mends()
	// Answers that are still out, of processes that are stopped, come when they come.
	p.judging.Go(func() {
		watching.Wait()
		<-knowing
		if ok {
			t.judge()
		}
	})
}

// watch asks one door about the key, again and again.
func (t *trial) watch(d door) {
	known := sync.OnceFunc(t.known.Done)
	defer known()
	held, pause := t.held, 15*time.Millisecond
	for {
		if t.ask(d) == accepted {
			known()
		}
		select {
		case <-t.over:
			return
		case <-held:
			held, pause = nil, 4*time.Millisecond // from here on ever more slowly
		case <-time.After(pause + rand.N(pause)):
			if held == nil {
				pause = min(2*pause, 100*time.Millisecond)
			}
		}
	}
}

func (t *trial) ask(d door) answer {
	s := sighting{door: d.name, asked: time.Now()}
	s.answer = d.ask(t.t.Context(), t.secret)
	s.answered = time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.seen = append(t.seen, s)
	return s.answer
}

// anyNode gives a node to send something to.
func (p *prover) anyNode() *node { return p.through[rand.IntN(len(p.through))] }

// dialect is one of the APIs that revoke.
type dialect int

const (
	bullseye dialect = iota
	bunship
	native
	nativeLater // answers at once, and says when it will hold
	dialects
)

func (d dialect) String() string {
	return [...]string{"bullseye", "bunship", "native", "native, respond-async"}[d]
}

func anyDialect() dialect { return dialect(rand.IntN(int(dialects))) }

func keysURL(n *node, d dialect) string {
	switch d {
	case bullseye:
		return n.url + "/api/v1/organization/" + organization + "/api-keys"
	case bunship:
		return n.url + "/api/v1/organizations/" + organization + "/api-keys"
	default:
		return n.url + "/api/v1/organizations/" + organization + "/keys"
	}
}

// create makes a key somewhere, in either dialect; false when the time is over.
func (t *trial) create(stop <-chan struct{}) bool {
	for {
		n, d := t.anyNode(), anyDialect()
		asked := time.Now()
		ctx, cancel := context.WithTimeout(t.t.Context(), impatience)
		status, _, body := t.call(ctx, http.MethodPost, keysURL(n, d), `{"name":"a key","scopes":["read"]}`, t.admin())
		cancel()
		var made struct {
			APIKey   struct{ ID string }
			PlainKey string
			Data     struct{ ID, Key string }
			Key      struct{ ID string }
			Secret   string
		}
		if status == http.StatusOK || status == http.StatusCreated {
			if err := json.Unmarshal(body, &made); err != nil {
				t.odd("a create", n, status, body)
				return false
			}
			id, err := domain.ParseKeyID(made.APIKey.ID + made.Data.ID + made.Key.ID)
			if err != nil {
				t.odd("a create", n, status, body)
				return false
			}
			t.id, t.secret = id, made.PlainKey+made.Data.Key+made.Secret
			t.tell("created through %s, asked at %s, known to be at %s", n.name, t.since(asked), t.since(time.Now()))
			return true
		}
		t.check("a create", n, status, body)
		select {
		case <-stop:
			return false
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// revoke ends the key through some node, often through several at once; true when
// one of them has said so.
func (t *trial) revoke() bool {
	ctx, cancel := context.WithTimeout(t.t.Context(), revokeWithin)
	defer cancel()
	var calls sync.WaitGroup
	defer calls.Wait()
	var header []string
	if rand.IntN(3) == 0 {
		header = []string{"Idempotency-Key", t.id.String()}
	}
	d := anyDialect()
	// A second one elsewhere, while the first is under way or just after: it learns
	// that the key is revoked, and must not say so too early either.
	for range rand.IntN(3) {
		n, other, how, same, after := t.anyNode(), anyDialect(), "second", []string(nil), rand.N(60*time.Millisecond)
		if header != nil && rand.IntN(2) == 0 {
			other, how, same = d, "replay", header
		}
		calls.Go(func() {
			<-time.After(after)
			t.revokeAt(ctx, n, other, how, same)
		})
	}
	for ctx.Err() == nil {
		n, answered := t.anyNode(), make(chan struct{})
		calls.Go(func() {
			defer close(answered)
			t.revokeAt(ctx, n, d, "first", header)
		})
		select {
		case <-t.held:
			return true
		case <-answered:
		case <-time.After(impatience):
		}
		select {
		case <-t.held:
			return true
		case <-time.After(20 * time.Millisecond):
		}
	}
	t.wrongly(fmt.Sprintf("%s could not be revoked within %s", t.id, revokeWithin))
	return false
}

func (t *trial) revokeAt(ctx context.Context, n *node, d dialect, how string, header []string) {
	id := t.id.String()
	if d == bullseye {
		id = t.id.UUID()
	}
	if d == nativeLater {
		header = append([]string{"Prefer", "respond-async"}, header...)
	}
	c := call{node: n.name, how: how, from: time.Now()}
	status, _, body := t.call(ctx, http.MethodDelete, keysURL(n, d)+"/"+id, "", t.admin(header...))
	c.to = time.Now()
	later := d == nativeLater && status == http.StatusAccepted
	switch {
	case status == http.StatusOK:
		var said struct{ WaitedMs int64 }
		if json.Unmarshal(body, &said) == nil {
			c.waited = time.Duration(said.WaitedMs) * time.Millisecond
		}
	case d == bunship && status == http.StatusNotFound: // its clients are told that a revoked key is not there
	case later:
		var promised struct{ FenceBy time.Time }
		if err := json.Unmarshal(body, &promised); err != nil || promised.FenceBy.IsZero() {
			t.odd("a revoke", n, status, body)
			return
		}
		<-time.After(time.Until(promised.FenceBy))
		c.to = time.Now()
	default:
		t.check("a revoke", n, status, body)
		return
	}
	t.mu.Lock()
	if t.first.to.IsZero() {
		t.first = c
		close(t.held)
	}
	t.mu.Unlock()
	t.tell("%s revoke through %s (%s) from %s to %s: %d", how, n.name, d, t.since(c.from), t.since(c.to), status)
	if later {
		return
	}
	t.prover.mu.Lock()
	defer t.prover.mu.Unlock()
	t.revokes = append(t.revokes, c)
}

// judge holds everything that was seen against the first revoke that returned.
func (t *trial) judge() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.prover.mu.Lock()
	defer t.prover.mu.Unlock()
	t.trials++
	knew := map[string]bool{}
	for _, s := range t.seen {
		if s.asked.Before(t.first.to) {
			if s.answer == accepted {
				knew[s.door] = true
				t.before++
			}
			continue
		}
		t.after[s.answer]++
		if s.answer != silent && s.answered.Sub(s.asked) > lease/4 {
			t.late++
		}
		if s.answer == accepted {
			v := violation{key: t.id, revoke: t.first, door: s.door, asked: s.asked, answered: s.answered}
			for _, line := range t.story {
				v.story += "    " + line + "\n"
			}
			if t.chaos != nil {
				v.story += t.chaos.timeline(t.clock, t.first.from.Add(-2*time.Second), s.answered)
			}
			t.violations = append(t.violations, v)
		}
	}
	t.unknowing += len(t.doors) - len(knew)
}

func (t *trial) tell(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.story = append(t.story, fmt.Sprintf(format, args...))
}

// check notes an answer that no fault excuses.
func (t *trial) check(what string, n *node, status int, body []byte) {
	switch status {
	case 0, http.StatusServiceUnavailable, http.StatusConflict, http.StatusTooManyRequests:
	default:
		t.odd(what, n, status, body)
	}
}

func (t *trial) odd(what string, n *node, status int, body []byte) {
	t.wrongly(fmt.Sprintf("%s through %s is answered with %d: %s", what, n.name, status, body))
}

func (p *prover) wrongly(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.wrong = append(p.wrong, text)
}

func (p *prover) describe(v violation) string {
	return fmt.Sprintf("%s was accepted by %s: asked at %s, answered at %s, %s after a revoke through %s had returned\n%s",
		v.key, v.door, p.since(v.asked), p.since(v.answered), v.asked.Sub(v.revoke.to), v.revoke.node, v.story)
}
