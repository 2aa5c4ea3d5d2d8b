package shares

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"keyledger/domain"
	"keyledger/index"
)

// Transport carries messages between nodes. It may lose, repeat and reorder them.
type Transport interface {
	// Publish sends to all nodes, and Send to one. Neither blocks.
	Publish(message []byte)
	Send(to domain.ID, message []byte)
	// Listen hands on what is for this node, one message at a time, until ctx ends; ready is called when it
	// hears. What the node itself has published may come, too.
	Listen(ctx context.Context, self domain.ID, ready func(), heard func(message []byte)) error
}

// Index is what counts. *index.Index is one.
type Index interface {
	Share(nodes, reached uint32, wake func())
	Reveal()
	Due(most int) []index.Spent
	Agreed(told []index.Spent)
	GaveUp()
	Hear(from domain.ID, said []index.Spent) (mine []index.Spent)
}

// Options are what Shares need.
type Options struct {
	ID        domain.ID // of this node, as it stands among the members
	Index     Index
	Transport Transport
	// Members are the nodes that may verify, this one included once it has joined.
	Members    func(context.Context) ([]domain.ID, error)
	Logger     *slog.Logger          // nil: none
	Clock      func() time.Time      // nil: time.Now
	Registerer prometheus.Registerer // nil: no metrics
}

const (
	// Forgotten is longer than a limiter remembers a use, by any node's clock, and
	// what a message may take.
	Forgotten = 70 * time.Second

	hereEvery    = 250 * time.Millisecond
	membersEvery = time.Second
	// joinEvery is how often a node looks whether it stands among the members itself.
	joinEvery = 20 * time.Millisecond
	// goneAfter is how long a node that has left the members may have gone unheard before it is not waited for.
	goneAfter    = 2 * time.Second
	roundWithin  = 40 * time.Millisecond
	longestRound = 250 * time.Millisecond
	mostInRound  = 4096
	mostNodes    = 256
)

// Shares of one node.
type Shares struct {
	o     Options
	due   chan struct{} // holds a token when the index has something to tell
	ended chan struct{} // holds a token when a round is complete

	mu      sync.Mutex
	known   bool // the members are
	peers   map[domain.ID]*peer
	sharing bool
	open    bool // what was accepted alone is revealed, and may be asked about
	round   uint64
	beat    uint64
	asked   []index.Spent
	answers map[domain.ID]bool // nil: no round is under way
	reached uint32
	agreed  uint64 // rounds
	givenUp uint64
}

type peer struct {
	member bool
	since  time.Time // when it was first known of
	heard  time.Time // by this node or by one that it hears; zero: never
	direct time.Time // by this node
	beat   uint64    // the newest that was heard of
}

// New makes the shares of an index, which is limited to a chunk of every key until Run knows who the others are.
func New(o Options) (*Shares, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	s := &Shares{o: o, due: make(chan struct{}, 1), ended: make(chan struct{}, 1), peers: map[domain.ID]*peer{}, sharing: true, open: true}
	if o.Registerer != nil {
		if err := o.Registerer.Register(metrics{s}); err != nil {
			return nil, fmt.Errorf("register the metrics of shares: %w", err)
		}
	}
	o.Index.Share(2, 2, s.wake)
	return s, nil
}

func (s *Shares) wake() {
	select {
	case s.due <- struct{}{}:
	default:
	}
}

// Run keeps the shares until ctx ends.
func (s *Shares) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	listening, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		var once sync.Once
		ended <- s.o.Transport.Listen(ctx, s.o.ID, func() { once.Do(func() { close(listening) }) }, s.hear)
	}()
	select {
	case <-listening:
	case err := <-ended:
		return err
	}
	here, members := time.NewTicker(hereEvery), time.NewTicker(joinEvery)
	defer here.Stop()
	defer members.Stop()
	var over <-chan time.Time // of the round under way
	within := roundWithin
	s.learn(ctx)
	s.here()
	begin := func() {
		if s.begin() {
			over = time.After(within)
		}
	}
	for {
		select {
		case <-ctx.Done():
			return <-ended
		case err := <-ended:
			return err
		case <-s.due:
			if over == nil {
				begin()
			}
		case <-s.ended:
			over, within = nil, roundWithin
			begin()
		case <-over:
			s.giveUp()
			over, within = nil, min(2*within, longestRound)
			begin()
		case <-here.C:
			s.here()
			s.weigh()
		case <-members.C:
			s.learn(ctx)
			if s.Known() {
				members.Reset(membersEvery)
			}
		}
	}
}

// Known says whether this node knows who the others are.
func (s *Shares) Known() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.known
}

// learn asks who the others are.
func (s *Shares) learn(ctx context.Context) {
	within, cancel := context.WithTimeout(ctx, membersEvery)
	defer cancel()
	ids, err := s.o.Members(within)
	if err != nil || !slices.Contains(ids, s.o.ID) {
		return // those that were known stay
	}
	s.mu.Lock()
	s.known = true
	for _, p := range s.peers {
		p.member = false
	}
	for _, id := range ids {
		if p := s.peer(id); p != nil {
			p.member = true
		}
	}
	s.mu.Unlock()
	s.weigh()
}

// peer gives what is known of another node, and begins to. The caller holds mu.
func (s *Shares) peer(id domain.ID) *peer {
	if id == s.o.ID {
		return nil
	}
	p := s.peers[id]
	if p == nil && len(s.peers) < mostNodes {
		p = &peer{since: s.o.Clock()}
		s.peers[id] = p
	}
	return p
}

// weigh tells the index how many nodes there are, and how many of them share with this one.
func (s *Shares) weigh() {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.o.Clock()
	for id, p := range s.peers {
		if !p.member && s.known && now.Sub(p.direct) > goneAfter && now.Sub(p.since) > goneAfter {
			delete(s.peers, id)
		}
	}
	if !s.known {
		return
	}
	nodes, reached := uint32(1+len(s.peers)), uint32(1)
	for _, p := range s.peers {
		if !s.cutOff(p, now) {
			reached++
		}
	}
	if reached != s.reached && nodes > 1 {
		s.o.Logger.Info("nodes that keep limits together", "nodes", nodes, "reached", reached)
	}
	s.reached = reached
	s.o.Index.Share(nodes, reached, s.wake)
	switch {
	case nodes == 1:
		s.sharing, s.open, s.answers = false, false, nil
	case !s.sharing:
		s.sharing = true // what is under way at this moment counts for nobody: it is revealed the next time
	case !s.open:
		s.o.Index.Reveal()
		s.open = true
	}
	s.complete() // maybe whoever was waited for is gone
}

// cutOff says that a node was not heard of, by anybody who was, for so long that both
// sides have forgotten what they knew of each other. The caller holds mu.
func (s *Shares) cutOff(p *peer, now time.Time) bool {
	last := p.heard
	if last.Before(p.since) {
		last = p.since
	}
	return now.Sub(last) > Forgotten
}

// here says that this node is there.
func (s *Shares) here() {
	s.mu.Lock()
	s.beat++
	message := appendHead(nil, head{kind: hereKind, from: s.o.ID, number: s.beat})
	var beats []beat
	for id, p := range s.peers {
		if p.beat > 0 {
			beats = append(beats, beat{id, p.beat})
		}
	}
	s.mu.Unlock()
	s.o.Transport.Publish(appendBeats(message, beats))
}

// begin begins a round, when there is something to tell.
func (s *Shares) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.sharing || !s.open {
		return false
	}
	asked := s.o.Index.Due(mostInRound)
	if len(asked) == 0 {
		return false
	}
	s.round++
	s.asked, s.answers = asked, map[domain.ID]bool{}
	s.o.Transport.Publish(appendSpent(appendHead(nil, head{kind: askKind, from: s.o.ID, number: s.round}), asked))
	s.complete() // when nobody is reached, nobody is waited for
	return true
}

func (s *Shares) giveUp() {
	s.mu.Lock()
	if s.answers != nil {
		s.answers = nil
		s.givenUp++
		s.o.Index.GaveUp()
	}
	s.mu.Unlock()
}

// complete ends the round when all have answered. The caller holds mu.
func (s *Shares) complete() {
	if s.answers == nil || !s.known {
		return
	}
	now := s.o.Clock()
	for id, p := range s.peers {
		if !s.answers[id] && !s.cutOff(p, now) {
			return
		}
	}
	s.answers = nil
	s.agreed++
	s.o.Index.Agreed(s.asked)
	select {
	case s.ended <- struct{}{}:
	default:
	}
}

// hear takes a message in.
func (s *Shares) hear(message []byte) {
	h, rest, err := readHead(message)
	if err != nil || h.from == s.o.ID {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.peer(h.from)
	if p == nil {
		return
	}
	now := s.o.Clock()
	p.heard, p.direct = now, now
	switch h.kind {
	case hereKind:
		p.beat = max(p.beat, h.number)
		s.hearBeats(rest, now)
	case askKind, toldKind:
		said, err := readSpent(rest)
		if err != nil || !s.open {
			return // who was alone until now says nothing before all it has accepted is revealed
		}
		mine := s.o.Index.Hear(h.from, said)
		if h.kind == askKind {
			s.o.Transport.Send(h.from, appendSpent(appendHead(nil, head{kind: toldKind, from: s.o.ID, number: h.number}), mine))
		} else if s.answers != nil && h.number == s.round {
			s.answers[h.from] = true
			s.complete()
		}
	}
}

// hearBeats takes in whom another node has heard of. Only a beat that is news says that somebody was there: so two
// nodes cannot keep a third one alive by telling each other of it. The caller holds mu.
func (s *Shares) hearBeats(b []byte, now time.Time) {
	beats, err := readBeats(b)
	if err != nil {
		return
	}
	for _, each := range beats {
		if p := s.peers[each.node]; p != nil && each.number > p.beat {
			p.beat, p.heard = each.number, now
		}
	}
}
