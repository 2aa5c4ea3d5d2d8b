package prove_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// fault is something that can be done to a site and undone.
type fault struct {
	name    string   // such as "stop node1"
	kind    string   // such as "stopped"
	touches []string // what no other fault may touch meanwhile
	hinders []string // nodes that cannot be expected to revoke in time themselves
	inject  func()
	heal    func()
}

// spell is a fault while it lasted.
type spell struct {
	fault
	from, to time.Time // to is zero while it lasts
}

const (
	mostAtOnce = 3
	// settle is what a node is given after its own trouble, to find its connections again.
	settle = time.Second
)

// faults are all that can be done to a site.
func (s *site) faults() (all []fault) {
	var relays links
	for _, n := range s.nodes {
		all = append(all, n.faults()...)
		relays = append(relays, n.nats...)
	}
	for _, v := range s.embedded {
		all = append(all, v.faults()...)
	}
	for _, b := range s.brokers {
		all = append(all, b.faults()...)
	}
	var natsLinks, names, databases []string
	for _, n := range s.nodes {
		natsLinks, names, databases = append(natsLinks, n.name+" nats"), append(names, n.name), append(databases, n.name+" postgres")
	}
	return append(all,
		// All of them, so nobody relays: the stream stands still.
		fault{"stop the relays", "relay stopped", natsLinks, nil, func() { relays.each((*link).cut) }, func() { relays.each((*link).heal) }},
		fault{"hold the relays", "relay stopped", natsLinks, nil, func() { relays.each((*link).hold) }, func() { relays.each((*link).heal) }},
		fault{"slow the relays", "relay lagging", natsLinks, nil, func() { relays.each(func(l *link) { l.delay(200) }) }, func() { relays.each((*link).heal) }},
		fault{"stop postgres", "postgres stopped", append([]string{"postgres"}, databases...), names, s.postgres.Pause, s.postgres.Resume},
	)
}

// ways are what can be done to a link.
var ways = []struct {
	name, kind string
	do         func(*link)
}{
	{"cut", "cut off", (*link).cut},
	{"hold", "held", (*link).hold},
	{"lose", "blackholed", (*link).lose},
	{"slow", "slowed", func(l *link) { l.delay(50) }},
}

func (n *node) faults() (all []fault) {
	process, database, broker := n.name+" process", n.name+" postgres", n.name+" nats"
	own := []string{n.name}
	add := func(what, kind string, touches, hinders []string, inject, heal func()) {
		all = append(all, fault{what + " " + n.name, kind, touches, hinders, inject, heal})
	}
	add("stop", "stopped", []string{process}, own, func() { n.process().Pause() }, func() { n.process().Resume() })
	// What starts must reach everything.
	add("kill", "killed", []string{process, database, broker}, own, func() { n.process().Kill() }, func() {
		n.launch()
		select {
		case <-n.process().Ready():
		case <-n.process().Ended():
		}
	})
	for _, way := range []struct {
		name, kind string
		do         func(*link)
	}{
		{"cut", "cut off", (*link).cut},
		{"hold", "held", (*link).hold},
		{"lose", "blackholed", (*link).lose},
		{"slow", "slowed", func(l *link) { l.delay(50) }},
	} {
		add(way.name+" the database of", way.kind+" from postgres", []string{database}, own, func() { way.do(n.database) }, n.database.heal)
		add(way.name+" the streams of", way.kind+" from nats", []string{broker}, nil, func() { n.nats.each(way.do) }, func() { n.nats.each((*link).heal) })
		if way.name != "slow" {
			add(way.name+" everything of", way.kind+" from all", []string{database, broker}, own, func() {
				way.do(n.database)
				n.nats.each(way.do)
			}, func() {
				n.nats.each((*link).heal)
				n.database.heal()
			})
		}
	}
	return all
}

func (v *embedded) faults() []fault {
	process, link := []string{v.name + " process"}, []string{v.name + " link"}
	all := []fault{
		{"stop " + v.name, "verifier stopped", process, nil, func() { v.process().Pause() }, func() { v.process().Resume() }},
		{"kill " + v.name, "verifier killed", process, nil, func() { v.process().Kill() }, v.launch},
	}
	for _, way := range ways {
		all = append(all, fault{way.name + " the servers of " + v.name, "verifier " + way.kind, link, nil, func() { way.do(v.link) }, v.link.heal})
	}
	return all
}

func (b *broker) faults() []fault {
	name := b.options.Name
	all := []fault{
		{"stop " + name, "nats server stopped", []string{"brokers"}, nil, func() { b.signal(syscall.SIGSTOP) }, func() { b.signal(syscall.SIGCONT) }},
		{"kill " + name, "nats server killed", []string{"brokers"}, nil, b.kill, b.start},
	}
	if len(b.routes) > 0 {
		all = append(all, fault{"part " + name + " from the others", "nats partitioned", []string{"brokers"}, nil, func() { b.routes.each((*link).hold) }, func() { b.routes.each((*link).heal) }})
	}
	return all
}

// chaos breaks a site at random.
type chaos struct {
	t      testing.TB
	faults []fault
	nodes  int
	draw   *rand.Rand

	mu     sync.Mutex
	spells []*spell
	active sync.WaitGroup
}

func newChaos(s *site) *chaos {
	seed := rand.Uint64()
	s.t.Logf("prove: faults are drawn with the seed %d", seed)
	return &chaos{t: s.t, faults: s.faults(), nodes: len(s.nodes), draw: rand.New(rand.NewPCG(seed, 0))}
}

// run breaks things until stop is closed, and returns when all is well again.
func (c *chaos) run(stop <-chan struct{}) {
	defer c.active.Wait()
	for {
		select {
		case <-stop:
			return
		case <-time.After(time.Duration(50+c.draw.IntN(700)) * time.Millisecond):
		}
		lasts := time.Duration(50+c.draw.IntN(1000)) * time.Millisecond
		if c.draw.IntN(3) == 0 {
			lasts += time.Duration(c.draw.IntN(3000)) * time.Millisecond // beyond every lease
		}
		f := c.faults[c.draw.IntN(len(c.faults))]
		if s := c.claim(f); s != nil {
			c.active.Go(func() { c.strike(s, lasts, stop) })
		}
	}
}

// claim begins a spell, unless the fault does not go with those that last.
func (c *chaos) claim(f fault) *spell {
	c.mu.Lock()
	defer c.mu.Unlock()
	lasting, hindered := 0, map[string]bool{}
	for _, s := range c.spells {
		if !s.to.IsZero() {
			continue
		}
		lasting++
		for _, name := range s.hinders {
			hindered[name] = true
		}
		if slices.ContainsFunc(f.touches, func(what string) bool { return slices.Contains(s.touches, what) }) {
			return nil
		}
	}
	for _, name := range f.hinders {
		hindered[name] = true
	}
	// Somebody must be able to revoke, but for the moments without a database.
	if lasting >= mostAtOnce || len(hindered) >= c.nodes && !slices.Contains(f.touches, "postgres") {
		return nil
	}
	s := &spell{fault: f, from: time.Now()}
	c.spells = append(c.spells, s)
	return s
}

func (c *chaos) strike(s *spell, lasts time.Duration, stop <-chan struct{}) {
	s.inject()
	select {
	case <-time.After(lasts):
	case <-stop:
	}
	s.heal()
	c.mu.Lock()
	defer c.mu.Unlock()
	s.to = time.Now()
}

// during calls back for the faults that touched a time.
func (c *chaos) during(from, to time.Time) (found []*spell) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.spells {
		if s.from.Before(to) && (s.to.IsZero() || s.to.Add(settle).After(from)) {
			found = append(found, s)
		}
	}
	return found
}

// hindered says whether a node had trouble of its own at a time.
func (c *chaos) hindered(name string, from, to time.Time) bool {
	return slices.ContainsFunc(c.during(from, to), func(s *spell) bool { return slices.Contains(s.hinders, name) })
}

// kinds counts what was done.
func (c *chaos) kinds() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	kinds := map[string]int{}
	for _, s := range c.spells {
		kinds[s.kind]++
	}
	return kinds
}

// timeline tells what was broken at a time.
func (c *chaos) timeline(clock, from, to time.Time) string {
	var text strings.Builder
	for _, s := range c.during(from, to) {
		end := "lasts"
		if !s.to.IsZero() {
			end = s.to.Sub(clock).Round(time.Millisecond).String()
		}
		fmt.Fprintf(&text, "    %s: %s to %s\n", s.name, s.from.Sub(clock).Round(time.Millisecond), end)
	}
	return text.String()
}
