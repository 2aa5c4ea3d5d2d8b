package prove_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

const (
	// folderVariable is where the report and the plot are written.
	folderVariable = "KEYLEDGER_PROVE_REPORT"
	// bound is what a revoke may take where the node that is asked for it had no
	// trouble of its own.
	bound = lease*101/100 + 250*time.Millisecond
)

// report is what a run has shown. Times are in milliseconds.
type report struct {
	Seconds     float64        `json:"seconds"`
	Revocations int            `json:"revocations"` // keys
	Calls       int            `json:"calls"`       // that returned that a key is revoked
	Faults      map[string]int `json:"faults"`
	Before      int            `json:"acceptedBefore"`
	Refused     int            `json:"refusedAfter"`
	Silent      int            `json:"unavailableAfter"`
	Late        int            `json:"answeredLateAfter"`
	Violations  int            `json:"acceptedAfter"`
	Unknowing   int            `json:"doorsThatNeverKnew"`
	Healthy     latencies      `json:"healthy"`
	Faulty      latencies      `json:"underFaults"` // the revoking node had no trouble of its own
	Hindered    latencies      `json:"hindered"`    // it had
	Bound       float64        `json:"bound"`
	Beyond      int            `json:"beyondBound"` // of Healthy and Faulty

	slow []string
}

// latencies are how long revoke calls took.
type latencies struct {
	N    int     `json:"n"`
	P50  float64 `json:"p50"`
	P90  float64 `json:"p90"`
	P99  float64 `json:"p99"`
	P999 float64 `json:"p999"`
	Max  float64 `json:"max"`

	sorted []time.Duration
}

func (p *prover) report(lasted time.Duration) report {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := report{
		Seconds: lasted.Seconds(), Revocations: p.trials, Calls: len(p.revokes), Before: p.before,
		Refused: p.after[refused] + p.after[revoked], Silent: p.after[silent], Late: p.late, Violations: len(p.violations), Unknowing: p.unknowing,
		Bound: milliseconds(bound),
	}
	if p.chaos != nil {
		r.Faults = p.chaos.kinds()
	}
	var healthy, faulty, hindered []time.Duration
	for _, c := range p.revokes {
		took := c.to.Sub(c.from)
		switch {
		case p.chaos == nil || len(p.chaos.during(c.from, c.to)) == 0:
			healthy = append(healthy, took)
		case p.chaos.hindered(c.node, c.from, c.to):
			hindered = append(hindered, took)
			continue
		default:
			faulty = append(faulty, took)
		}
		if took > bound {
			r.Beyond++
			text := fmt.Sprintf("the %s revoke through %s from %s to %s took %s, of which %s for the fence (0: it is not said)", c.how, c.node, p.since(c.from), p.since(c.to), took, c.waited)
			if p.chaos != nil {
				text += "\n" + p.chaos.timeline(p.clock, c.from, c.to)
			}
			r.slow = append(r.slow, text)
		}
	}
	r.Healthy, r.Faulty, r.Hindered = summarize(healthy), summarize(faulty), summarize(hindered)
	return r
}

func summarize(all []time.Duration) latencies {
	if len(all) == 0 {
		return latencies{}
	}
	slices.Sort(all)
	at := func(share float64) float64 { return milliseconds(all[min(int(share*float64(len(all))), len(all)-1)]) }
	return latencies{N: len(all), P50: at(0.5), P90: at(0.9), P99: at(0.99), P999: at(0.999), Max: milliseconds(all[len(all)-1]), sorted: all}
}

func milliseconds(d time.Duration) float64 { return float64(d.Round(10*time.Microsecond)) / 1e6 }

func (l latencies) String() string {
	return fmt.Sprintf("%d, p50 %.1f ms, p90 %.1f ms, p99 %.1f ms, p99.9 %.1f ms, most %.1f ms", l.N, l.P50, l.P90, l.P99, l.P999, l.Max)
}

func (r report) String() string {
	var kinds []string
	for kind, n := range r.Faults {
		kinds = append(kinds, fmt.Sprintf("%d %s", n, kind))
	}
	slices.Sort(kinds)
	return fmt.Sprintf(`%d keys were revoked in %.0f s, %d calls said so
  faults: %s
  verifications that started after a revoke had returned: %d accepted, %d refused (%d of them answered late), %d unanswered or unavailable
  verifications accepted before: %d; doors that did not know a key in time: %d
  revokes while nothing was broken: %s
  revokes under faults, through a node without trouble of its own: %s
  revokes through a node that was itself paused, killed or cut off: %s
  beyond %.0f ms (1.01 leases + 250 ms): %d`,
		r.Revocations, r.Seconds, r.Calls, strings.Join(kinds, ", "), r.Violations, r.Refused, r.Late, r.Silent, r.Before, r.Unknowing,
		r.Healthy, r.Faulty, r.Hindered, r.Bound, r.Beyond)
}

// check holds the figures against what is promised.
func (r report) check(t *testing.T) {
	t.Helper()
	for _, text := range r.slow {
		t.Error(text)
	}
	if least := int(2000 * r.Seconds / 600); r.Revocations < least {
		t.Errorf("%d keys were revoked, want at least %d", r.Revocations, least)
	}
}

// write leaves the figures and the plot.
func (r report) write(t *testing.T) {
	t.Helper()
	if folder, ok := os.LookupEnv(folderVariable); ok {
		r.plot(t, folder)
		writeJSON(t, filepath.Join(folder, "revocation.json"), r)
	}
}

// writeQuick leaves the figures of revokes while nothing is broken.
func (r report) writeQuick(t *testing.T) {
	t.Helper()
	if folder, ok := os.LookupEnv(folderVariable); ok {
		writeJSON(t, filepath.Join(folder, "revocation-half-load.json"), r.Healthy)
	}
}

func writeJSON(t *testing.T, path string, what any) {
	t.Helper()
	text, err := json.MarshalIndent(what, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, append(text, '\n'), 0o644); err != nil {
		t.Fatal(err)
	}
}
