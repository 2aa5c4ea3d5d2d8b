package prove_test

import (
	"testing"

	"keyledger/internal/servertest"
)

// planted is Keyledger with bugs that KEYLEDGER_PLANTED chooses from. Without the
// build tag there are none.
var planted = servertest.Program{Package: servertest.Keyledger.Package, Tags: "planted"}

// A node hears nothing from NATS, and Postgres's answers reach it late: it can renew its
// lease, and learns of a revocation only after everybody else has waited for it. A correct
// node says yes in the rest of each lease, and never too late.
//
// Each bug takes one of the reasons away why that is so.
func TestPlantedBugsAreFound(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		bug  string
		want bool
	}{
		{"", false},
		{"lease-from-reply", true},
		{"lease-from-stream", true},
		{"failed-confirmation", true},
		{"second-revoke", true},
	} {
		name := test.bug
		if name == "" {
			name = "none"
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := startSite(t, size{nodes: 2, brokers: 1, program: planted, env: []string{"KEYLEDGER_PLANTED=" + test.bug}})
			slow := s.nodes[1]
			p := newProver(s, nil)
			p.through = s.nodes[:1]
			p.breaks = func() func() {
				slow.nats.each((*link).hold)
				slow.database.delayReplies(int(lease.Milliseconds()) * 7 / 10)
				return func() {
					slow.database.heal()
					slow.nats.each((*link).heal)
				}
			}
			const most = 6
			for p.trials = 0; p.trials < most && len(p.violations) == 0; {
				p.trial(nil)
				p.judging.Wait()
				if !test.want && p.trials == most/2 {
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
