package shares_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"keyledger/domain"
	"keyledger/index"
	"keyledger/internal/testkit"
	"keyledger/publisher"
	"keyledger/shares"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// cluster is nodes with real indexes on a real NATS, a clock that the test moves, and a
// network that it cuts.
type cluster struct {
	t      testing.TB
	now    atomic.Int64
	limits []uint32
	nodes  []*node
	cut    [][]atomic.Bool // from, to
	// forge changes what a node hears of another one; nil: nothing. What it returns nil for is lost.
	forge atomic.Pointer[func(from, to int, message []byte) []byte]

	mu       sync.Mutex
	accepted [][]time.Duration // by key
}

type node struct {
	c      *cluster
	n      int
	id     domain.ID
	index  *index.Index
	shares *shares.Shares
	line   *publisher.Shares
	heard  []atomic.Int64 // that others are there

	metrics *prometheus.Registry
}

func (c *cluster) clock() time.Time { return time.Unix(0, c.now.Load()) }

func digestOf(key int) domain.Digest { return domain.Digest{1, byte(key)} }

func start(t testing.TB, nodes int, limits ...uint32) *cluster {
	t.Helper()
	broker := testkit.NATS(t)
	c := &cluster{t: t, limits: limits, accepted: make([][]time.Duration, len(limits))}
	c.now.Store(time.Date(2026, 1, 15, 10, 0, 0, 0, time.UTC).UnixNano())
	var ids []domain.ID
	for n := range nodes {
		ids = append(ids, domain.ID{15: byte(n + 1)})
		c.cut = append(c.cut, make([]atomic.Bool, nodes))
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	for n := range nodes {
		x := index.New(index.Options{Clock: c.clock})
		x.Replace(index.Begin(index.History{}, 0, 0), 0, 0)
		for i, limit := range limits {
			event := index.Event{Position: domain.Position(i + 1), Version: 1, Event: domain.KeyCreated{
				Key: domain.KeyID{1, byte(i)}, Organization: "org_1", Digest: digestOf(i), Scopes: domain.Scopes{"read"}, RateLimit: limit, Name: "n",
			}}
			if err := x.Apply([]index.Event{event}); err != nil {
				t.Fatal(err)
			}
		}
		node := &node{
			c: c, n: n, id: ids[n], index: x, line: publisher.NewShares(broker.Conn, domain.ID{9}, 1, testkit.Logger(t)),
			heard: make([]atomic.Int64, nodes), metrics: prometheus.NewRegistry(),
		}
		var err error
		node.shares, err = shares.New(shares.Options{
			ID: ids[n], Index: x, Transport: node, Clock: c.clock, Logger: testkit.Logger(t), Registerer: node.metrics,
			Members: func(context.Context) ([]domain.ID, error) { return ids, nil },
		})
		if err != nil {
			t.Fatal(err)
		}
		running.Go(func() {
			if err := node.shares.Run(ctx); err != nil {
				t.Error(err)
			}
		})
		c.nodes = append(c.nodes, node)
	}
	await(t, func() bool {
		return !slices.ContainsFunc(c.nodes, func(n *node) bool { return !n.shares.Together(nodes) })
	})
	c.pass(0)
	return c
}

func await(t testing.TB, yes func() bool) {
	t.Helper()
	poll := time.NewTicker(100 * time.Microsecond)
	defer poll.Stop()
	patience := time.After(30 * time.Second)
	for !yes() {
		select {
		case <-poll.C:
		case <-patience:
			t.Fatal("it does not come")
		}
	}
}

// metric is what the node publishes by a name, and with a result if that is not empty.
func (n *node) metric(name, result string) float64 {
	n.c.t.Helper()
	families, err := n.metrics.Gather()
	if err != nil {
		n.c.t.Fatal(err)
	}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			if family.GetName() == name && (result == "" || m.GetLabel()[0].GetValue() == result) {
				return m.GetGauge().GetValue() + m.GetCounter().GetValue()
			}
		}
	}
	n.c.t.Fatalf("there is no %s", name)
	return 0
}

func (n *node) Publish(message []byte)            { n.line.Publish(message) }
func (n *node) Send(to domain.ID, message []byte) { n.line.Send(to, message) }

// Listen loses what does not come through.
func (n *node) Listen(ctx context.Context, self domain.ID, ready func(), heard func([]byte)) error {
	return n.line.Listen(ctx, self, ready, func(message []byte) {
		from := int(message[16]) - 1
		if n.c.cut[from][n.n].Load() {
			return
		}
		if forge := n.c.forge.Load(); forge != nil {
			if message = (*forge)(from, n.n, message); message == nil {
				return
			}
		}
		heard(message)
		if message[0] == shares.HereKind {
			n.heard[from].Add(1)
		}
	})
}

// pass lets time pass, in steps after which everybody who can has heard of everybody.
func (c *cluster) pass(d time.Duration) {
	c.t.Helper()
	for {
		step := min(d, 5*time.Second)
		c.now.Add(int64(step))
		d -= step
		before := make([][]int64, len(c.nodes))
		for to, n := range c.nodes {
			for from := range c.nodes {
				before[to] = append(before[to], n.heard[from].Load())
			}
		}
		for _, n := range c.nodes {
			n.shares.Tick(c.t.Context())
		}
		for to, n := range c.nodes {
			for from := range c.nodes {
				if from != to && !c.cut[from][to].Load() {
					await(c.t, func() bool { return n.heard[from].Load() > before[to][from] })
				}
			}
		}
		for _, n := range c.nodes {
			n.shares.Tick(c.t.Context())
		}
		if d <= 0 {
			return
		}
	}
}

// use uses a key at a node so many times, and says how often it was accepted.
func (c *cluster) use(node, key, times int) (accepted int) {
	for range times {
		verdict, err := c.nodes[node].index.Verify(domain.Verification{Digest: digestOf(key), Now: c.clock()})
		if err != nil {
			c.t.Error(err)
			return accepted
		}
		if verdict.Outcome == domain.OutcomeValid {
			accepted++
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	at := time.Duration(c.now.Load())
	for range accepted {
		c.accepted[key] = append(c.accepted[key], at)
	}
	return accepted
}

// useUp uses a key so many times, however long the others take to answer.
func (c *cluster) useUp(node, key, times int) {
	c.t.Helper()
	await(c.t, func() bool {
		times -= c.use(node, key, times)
		return times == 0
	})
}

// worst is the largest number of uses of a key in any 60 seconds.
func (c *cluster) worst(key int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	most, from := 0, 0
	for to, at := range c.accepted[key] {
		for c.accepted[key][from] <= at-time.Minute {
			from++
		}
		most = max(most, to-from+1)
	}
	return most
}

// split cuts all lines between two groups.
func (c *cluster) split(group ...int) {
	for from := range c.nodes {
		for to := range c.nodes {
			c.cut[from][to].Store(slices.Contains(group, from) != slices.Contains(group, to))
		}
	}
}

func bound(limit uint32, nodes int) int { return int(limit) + nodes*int(index.Chunk(limit)) }

// rounds of random uses, pauses and cuts.
func (c *cluster) storm(random *rand.Rand, steps int) {
	for range steps {
		switch random.IntN(12) {
		case 0:
			c.split() // all is well
		case 1:
			c.split(random.IntN(len(c.nodes)))
		case 2: // single lines, in one direction
			for from := range c.nodes {
				for to := range c.nodes {
					c.cut[from][to].Store(from != to && random.IntN(4) == 0)
				}
			}
		case 3:
			c.pass(time.Duration(60+random.IntN(30)) * time.Second)
		default:
			c.pass(time.Duration(random.IntN(4000)) * time.Millisecond)
		}
		var group sync.WaitGroup
		for range 1 + random.IntN(3) {
			node, key := random.IntN(len(c.nodes)), random.IntN(len(c.limits))
			times := 1 + random.IntN(int(min(c.limits[key], 60))+1)
			group.Go(func() { c.use(node, key, times) })
		}
		group.Wait()
	}
}

func TestNoMinutePassesMoreThanTheLimitAndAChunkForEachNode(t *testing.T) {
	t.Parallel()
	for _, nodes := range []int{2, 3, 5} {
		t.Run(fmt.Sprint(nodes, " nodes"), func(t *testing.T) {
			t.Parallel()
			limits := []uint32{1, 7, 60, 300}
			c := start(t, nodes, limits...)
			c.storm(rand.New(rand.NewPCG(uint64(nodes), 1)), 400)
			for key, limit := range limits {
				if n := c.worst(key); n > bound(limit, nodes) {
					t.Errorf("%d uses in a minute of a key with a limit of %d", n, limit)
				} else {
					t.Logf("limit %d: %d accepted, at most %d in a minute", limit, len(c.accepted[key]), n)
				}
			}
		})
	}
}

func TestAKeyThatIsUsedAtOneNodeHasItsWholeLimitThere(t *testing.T) {
	t.Parallel()
	for _, limit := range []uint32{1, 10, 1000} {
		c := start(t, 3, limit)
		c.useUp(0, 0, int(limit))
		if n := c.use(0, 0, 100); n != 0 {
			t.Errorf("%d accepted beyond %d", n, limit)
		}
		// The others know of all but a chunk each.
		n := 0
		for node := range c.nodes {
			n += c.use(node, 0, 50)
		}
		if n > 3*int(index.Chunk(limit)) {
			t.Errorf("limit %d: %d more accepted", limit, n)
		}
	}
}

func TestWhoIsCutOffGoesOnWithItsPart(t *testing.T) {
	t.Parallel()
	const limit = 300
	c := start(t, 3, limit)
	c.split(2)
	// At first both sides have a chunk that the other one need not hear of.
	for node := range c.nodes {
		if n := c.use(node, 0, 20); n != int(index.Chunk(limit)) {
			t.Errorf("node %d accepted %d", node, n)
		}
	}
	// Who looks after the nodes sees it.
	await(t, func() bool { return c.nodes[2].metric("keyledger_share_rounds_total", "given_up") > 0 })
	c.pass(2 * shares.Forgotten)
	for node, reached := range []float64{2, 2, 1} {
		n := c.nodes[node]
		if nodes, got := n.metric("keyledger_share_nodes", ""), n.metric("keyledger_share_nodes_reached", ""); nodes != 3 || got != reached {
			t.Errorf("node %d says that it reaches %v of %v nodes", node, got, nodes)
		}
	}
	c.useUp(2, 0, limit/3)
	if n := c.use(2, 0, 100); n != 0 {
		t.Errorf("the node that is cut off accepted %d more", n)
	}
	c.useUp(0, 0, limit*2/3)
	if n := c.use(0, 0, 100); n != 0 {
		t.Errorf("the other ones accepted %d more", n)
	}
	c.split()
	c.pass(time.Second)
	n := 0
	for node := range c.nodes {
		n += c.use(node, 0, 50)
	}
	if worst := c.worst(0); worst > bound(limit, 3) {
		t.Errorf("%d uses in a minute after they have met again", worst)
	}
	c.pass(2 * time.Minute)
	c.useUp(2, 0, limit)
}

// The tests above must find what would break the promise.
func TestMistakesInTheProtocolAreFound(t *testing.T) {
	t.Parallel()
	const limit = 300
	for name, test := range map[string]struct {
		forge func(from, to int, message []byte) []byte
		try   func(c *cluster)
	}{
		"an answer that does not say what the answering node has accepted": {
			forge: func(from, _ int, message []byte) []byte {
				switch {
				case message[0] == shares.AskKind && from == 0:
					return nil // this may get lost
				case message[0] == shares.ToldKind:
					return message[:shares.HeadSize]
				}
				return message
			},
			try: func(c *cluster) {
				c.split(0)
				c.pass(2 * shares.Forgotten)
				c.useUp(0, 0, limit/2)
				c.split()
				c.pass(time.Second)
				c.useUp(1, 0, limit)
			},
		},
		"a count that is answered and not charged": {
			forge: func(_, _ int, message []byte) []byte {
				if message[0] == shares.AskKind {
					return message[:shares.HeadSize]
				}
				return message
			},
			try: func(c *cluster) {
				c.useUp(0, 0, limit)
				c.useUp(1, 0, limit)
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := start(t, 2, limit)
			c.forge.Store(&test.forge)
			test.try(c)
			if n := c.worst(0); n <= bound(limit, len(c.nodes)) {
				t.Errorf("%d uses in a minute: the mistake does no harm, or is not seen", n)
			}
		})
	}
}

// Whoever may read the streams can have events delivered to any subject.
func TestAnEventIsNoMessageOfANode(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", `{"keyId":"key_01KF09MFG0FAN8QER1081G8186","organizationId":"org_abc123"}`, "\x00" + string(make([]byte, shares.HeadSize)), "\x04" + string(make([]byte, shares.HeadSize))} {
		if shares.FromANode([]byte(text)) {
			t.Errorf("%q is taken for one", text)
		}
	}
	for _, kind := range []byte{shares.HereKind, shares.AskKind, shares.ToldKind} {
		if !shares.FromANode(append([]byte{kind}, make([]byte, shares.HeadSize-1)...)) {
			t.Errorf("a message of kind %d is not", kind)
		}
	}
}
