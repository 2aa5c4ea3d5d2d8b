package prove_test

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// isolated is something that verifies and can be cut off from what it knows by.
type isolated struct {
	door  door
	links links
}

// isolations is how often each verifier is cut off.
func isolations(t *testing.T) int {
	t.Helper()
	if n, ok := soak(t); ok {
		return n
	}
	return 3
}

// leastWord is the part of a lease that must be left, more often than not, of one that was just
// renewed in time: a verifier that never says yes would pass otherwise.
const leastWord = lease / 4

// isolate cuts a verifier off again and again and gives how long after that it was asked what
// it last said yes to; 0: to nothing.
func (s *site) isolate(v isolated, rounds int) (last []time.Duration) {
	s.t.Helper()
	ways := []func(*link){(*link).hold, (*link).cut, (*link).lose}
	for range rounds {
		s.await(v.door.name+" says yes", func() bool { return v.door.ask(s.t.Context(), s.key) == accepted })
		<-time.After(rand.N(lease / 2)) // anywhere between two renewals
		v.links.each(ways[rand.IntN(len(ways))])
		off := time.Now() // nothing goes through any more
		var yes time.Duration
		for time.Since(off) < lease+lease/2 {
			// The clock is read when the question has arrived, however late the answer comes.
			asked := time.Since(off)
			if v.door.ask(s.t.Context(), s.key) == accepted {
				yes = asked
			}
			<-time.After(time.Millisecond)
		}
		v.links.each((*link).heal)
		last = append(last, yes)
	}
	return last
}

// A verifier that is cut off from what it knows by goes on saying yes until its lease
// ends, and no longer.
func TestAnIsolatedVerifierSaysYesNoLongerThanItsLease(t *testing.T) {
	t.Parallel()
	s := startSite(t, size{nodes: 2, brokers: 1, verifiers: 1})
	n, v := s.nodes[0], s.embedded[0] // which knows the other node
	for _, which := range []isolated{
		{s.doorOf(n.name + " verify"), append(links{n.database}, n.nats...)},
		{s.doorOf(v.name), links{v.link}},
	} {
		t.Run(which.door.name, func(t *testing.T) {
			t.Parallel()
			last := s.isolate(which, isolations(t))
			slices.Sort(last)
			t.Logf("cut off %d times, it said its last yes %s to %s later, the median is %s", len(last), last[0], last[len(last)-1], last[len(last)/2])
			if most := last[len(last)-1]; most > lease {
				t.Errorf("it says yes to what is asked %s after it was cut off, want at most %s", most, lease)
			}
			if median := last[len(last)/2]; median < leastWord {
				t.Errorf("it says yes only for %s after it was cut off", median)
			}
		})
	}
}

func (s *site) doorOf(name string) door {
	s.t.Helper()
	for _, d := range s.doors() {
		if d.name == name {
			return d
		}
	}
	s.t.Fatalf("prove: there is no door %s", name)
	return door{}
}
