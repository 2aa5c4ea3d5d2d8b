package prove_test

import (
	"strings"
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
		name          string
		bug, embedded string // of the servers, and of the verifier that knows the slow one
		off           bool   // nothing comes from Postgres
		want          string // a door that accepts too late
	}{
		{"none", "", "", false, ""},
		{"lease from the reply", "lease-from-reply", "", false, "node1"},
		{"lease from the stream", "lease-from-stream", "", false, "node1"},
		{"lease from the reply in a verifier", "", "lease-from-reply", false, "verifier0"},
		{"lease from the stream in a verifier", "", "lease-from-stream", false, "verifier0"},
		{"failed confirmation", "failed-confirmation", "", true, "node1"},
		{"second revoke", "second-revoke", "", true, "node1"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := startSite(t, size{
				nodes: 2, brokers: 1, verifiers: 1, program: planted,
				env: []string{"PLANTED=" + test.bug}, verifierEnv: []string{"PLANTED=" + test.embedded},
			})
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
			const most = 12
			found := func() (found *violation) {
				for i, v := range p.violations {
					if strings.HasPrefix(v.door, test.want) {
						found = &p.violations[i]
					}
				}
				return found
			}
			trials := most
			if test.want == "" {
				trials = most / 6
			}
			for p.trials < trials && found() == nil {
				p.trial(nil)
				p.judging.Wait()
			}
			switch v := found(); {
			case test.want == "":
				p.mustHold(t)
			case v == nil:
				t.Errorf("%d trials have not found the bug", p.trials)
			default:
				t.Logf("found after %d trials: %s", p.trials, p.describe(*v))
			}
			for _, text := range p.wrong {
				t.Error(text)
			}
		})
	}
}
