package audit

import (
	"crypto/ed25519"
	"fmt"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"keyledger/domain"
	"keyledger/projections/transparency"
)

// Fault is something that is not as it was signed, or not as it must be.
type Fault struct {
	Lane     domain.Lane     `json:"lane"`
	Position domain.Position `json:"position"` // 0: the lane as a whole
	Fault    string          `json:"fault"`
}

func (f Fault) String() string {
	if f.Position == 0 {
		return fmt.Sprintf("%s: %s", f.Lane, f.Fault)
	}
	return fmt.Sprintf("%s %d: %s", f.Lane, f.Position, f.Fault)
}

// LaneReport is what was verified of one lane.
type LaneReport struct {
	Lane        domain.Lane     `json:"lane"`
	Events      uint64          `json:"events"`
	Through     domain.Position `json:"through"`            // the last position
	Covered     domain.Position `json:"covered"`            // by a checkpoint: what is behind it was only held against the rules
	Checkpoints int             `json:"checkpoints"`        // how many the tree was compared with
	Cosigned    domain.Position `json:"cosigned,omitempty"` // the size up to which every witness that was named has cosigned
}

// Report is what an audit found.
type Report struct {
	OK     bool         `json:"ok"`
	Faults []Fault      `json:"faults"`
	More   uint64       `json:"more,omitempty"` // faults beyond those that are listed
	Ledger string       `json:"ledger"`
	Epoch  uint32       `json:"epoch"`
	Lanes  []LaneReport `json:"lanes"`
	// Unsigned says that no key was known: checkpoints were compared, and nobody
	// knows who signed them.
	Unsigned bool     `json:"unsigned,omitempty"`
	Skipped  []string `json:"skipped,omitempty"` // what was not looked at, and why
	Seconds  float64  `json:"seconds"`
}

// mostFaults bounds what a report lists.
const mostFaults = 10_000

func (r *Report) add(f Fault) {
	if len(r.Faults) == mostFaults {
		r.More++
		return
	}
	r.Faults = append(r.Faults, f)
}

// Add adds what was found elsewhere.
func (r *Report) Add(f Fault) {
	r.add(f)
	r.OK = false
}

// Skip notes what was not looked at.
func (r *Report) Skip(what string) { r.Skipped = append(r.Skipped, what) }

// Options are what an audit is told.
type Options struct {
	// Keys are those that may have signed checkpoints. Without any, signatures are
	// not looked at.
	Keys []ed25519.PublicKey
	// Trusted are checkpoints that were kept outside the ledger: signed notes.
	Trusted []Trusted
	// Witnesses must have cosigned a checkpoint of each lane.
	Witnesses []transparency.WitnessKey
	// Skew is how far the clocks of verifiers are believed to differ; 0: DefaultSkew.
	Skew time.Duration
	// Archives are the files to which parts of the usage lane were detached.
	Archives []string
	// Progress is told how far it has come. It may be nil.
	Progress func(lane domain.Lane, done, total domain.Position)
}

// Trusted is a checkpoint that was kept outside the ledger.
type Trusted struct {
	Note   []byte
	Source string // where it comes from, for the report
}

func newReport() *Report {
	return &Report{Faults: []Fault{}, Lanes: []LaneReport{}}
}

// finish gives the report's last word.
func (r *Report) finish(started time.Time) {
	r.OK = len(r.Faults) == 0
	r.Seconds = time.Since(started).Seconds()
}

// open reads a checkpoint, and looks at its signature where keys are known.
func (o Options) open(signed []byte) (transparency.Checkpoint, error) {
	if len(o.Keys) == 0 {
		return transparency.Read(signed)
	}
	return transparency.Open(signed, o.Keys)
}

// trust has the lanes compare the checkpoints that were kept elsewhere. One that
// belongs to another ledger is an error, not a fault: it says nothing of this one.
func (o Options) trust(ledger domain.ID, expect func(domain.Lane, expectation)) error {
	for _, t := range o.Trusted {
		c, err := o.open(t.Note)
		if err != nil {
			return fmt.Errorf("%s: %w", t.Source, err)
		}
		if c.Ledger != ledger {
			return fmt.Errorf("%s is a checkpoint of ledger %s, and this is ledger %s", t.Source, c.Ledger.UUID(), ledger.UUID())
		}
		expect(c.Lane, expectation{uint64(c.Size), c.Root, "the checkpoint in " + t.Source})
	}
	return nil
}

// emptyRoot is that of a tree without leaves.
func emptyRoot() tlog.Hash {
	root, _ := tlog.TreeHash(0, nil)
	return root
}
