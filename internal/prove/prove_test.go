package prove_test

import (
	"math"
	"os"
	"testing"
	"time"

	"keyledger/internal/audit"
)

const (
	// durationVariable asks for the long version.
	durationVariable = "KEYLEDGER_PROVE"

	workers = 14
)

// No verification that starts after a revoke call has returned is accepted, whatever
// breaks meanwhile.
func TestARevocationHoldsEverywhere(t *testing.T) {
	t.Parallel()
	lasts, of := 15*time.Second, size{nodes: 2, brokers: 1, verifiers: 1}
	long := false
	if text, ok := os.LookupEnv(durationVariable); ok {
		var err error
		if lasts, err = time.ParseDuration(text); err != nil {
			t.Fatalf("%s is no duration: %v", durationVariable, err)
		}
		long, of = true, size{nodes: 3, brokers: 3, verifiers: 2}
	}
	s := startSite(t, of)
	c := newChaos(s)
	p := newProver(s, c)
	stop, calm := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(calm)
		if long { // how long a revoke takes while nothing is broken
			<-time.After(lasts / 10)
		}
		c.run(stop)
	}()
	time.AfterFunc(lasts, func() { close(stop) })
	p.run(workers, math.MaxInt, stop)
	<-calm
	r := p.report(lasts)
	t.Log(r.String())
	p.mustHold(t)
	s.audit()
	if long {
		r.check(t)
		r.write(t)
	}
}

// mustHold fails the test for everything that was found.
func (p *prover) mustHold(t *testing.T) {
	t.Helper()
	const shown = 5
	for i, v := range p.violations {
		if i == shown {
			t.Errorf("and %d more", len(p.violations)-shown)
			break
		}
		t.Error(p.describe(v))
	}
	for i, text := range p.wrong {
		if i == shown {
			t.Errorf("and %d more", len(p.wrong)-shown)
			break
		}
		t.Error(text)
	}
}

// audit waits for the streams and audits what all that has left.
func (s *site) audit() {
	s.t.Helper()
	report, err := audit.Run(s.t.Context(), audit.Ledger{DatabaseURL: s.postgres.AdminURL()})
	if err != nil {
		s.t.Fatal(err)
	}
	for _, fault := range report.Faults {
		s.t.Error(fault)
	}
	s.awaitStream(uint64(report.Events["lifecycle"]))
	report, err = audit.Run(s.t.Context(), audit.Ledger{DatabaseURL: s.postgres.AdminURL(), NATSURL: s.brokers[0].url()})
	if err != nil {
		s.t.Fatal(err)
	}
	for _, fault := range report.Faults {
		if fault.Lane == "lifecycle" { // uses are still being flushed
			s.t.Error(fault)
		}
	}
	for _, n := range s.nodes {
		s.await(n.name+" is ready", func() bool {
			status, _, _ := s.call(s.t.Context(), "GET", n.url+"/readyz", "", nil)
			return status == 200
		})
	}
	if result := s.nodes[0].process().Run("audit", "verify"); result.Code != 0 {
		s.t.Errorf("keyledger audit verify:\n%s%s", result.Stdout, result.Stderr)
	}
	if result := s.nodes[0].process().Run("replay"); result.Code != 0 {
		s.t.Errorf("the projections differ from a fresh replay:\n%s%s", result.Stdout, result.Stderr)
	}
}
