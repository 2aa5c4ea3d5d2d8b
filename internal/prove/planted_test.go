package prove_test

import (
	"testing"
	"time"

	"keyledger/internal/servertest"
)

// planted is Keyledger with bugs that PLANTED chooses from. Without the
// build tag there are none.
var planted = servertest.Program{Package: servertest.Keyledger.Package, Tags: "planted"}

// A node hears nothing from NATS, and Postgres's answers reach it late, or not at all: it
// learns of a revocation after everybody else has waited for it, if ever. Where they are late it can
// renew its lease nevertheless. A correct node says yes in what is left of each lease, and never
// too late.
//
// Each bug takes one of the reasons away why that is so.
func TestPlantedBugsAreFound(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		bug  string
		off  bool // nothing comes from Postgres
		want bool
	}{
		{"", false, false},
		{"lease-from-reply", false, true},
		{"lease-from-stream", false, true},
		{"failed-confirmation", true, true},
		{"second-revoke", true, true},
	} {
		name := test.bug
		if name == "" {
			name = "none"
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := startSite(t, size{nodes: 2, brokers: 1, program: planted, env: []string{"PLANTED=" + test.bug}})
			slow := s.nodes[1]
			p := newProver(s, nil)
			p.through = s.nodes[:1]
			p.breaks = func() func() {
				slow.nats.each((*link).hold)
				if test.off {
					slow.database.hold()
				} else {
					slow.database.delayReplies(int(lease.Milliseconds()) * 7 / 10)
					<-time.After(lease) // until an answer is always under way
				}
				return func() {
					slow.database.heal()
					slow.nats.each((*link).heal)
				}
			}
			const most = 8
			for p.trials = 0; p.trials < most && len(p.violations) == 0; {
				p.trial(nil)
				p.judging.Wait()
				if !test.want && p.trials == most/4 {
					break
				}
			}
			found := len(p.violations) > 0
			switch {
			case found && !test.want:
				p.mustHold(t)
			case !found && test.want:
				t.Errorf("%d trials have not found the bug %s", p.trials, test.bug)
			case found:
				t.Logf("found after %d trials: %s", p.trials, p.describe(p.violations[0]))
			}
			for _, text := range p.wrong {
				t.Error(text)
			}
		})
	}
}
