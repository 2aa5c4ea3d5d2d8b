package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"

	"keyledger/audit"
	"keyledger/domain"
	"keyledger/eventstore"
	"keyledger/internal/backing"
	"keyledger/projections"
	"keyledger/projections/keylist"
	"keyledger/projections/organizations"
	"keyledger/projections/usage"
)

func (p *program) replay() *cobra.Command {
	cmd := &cobra.Command{
		Use: "replay", Short: "Rebuild the projections from the log",
		Long: `Fold the whole log again beside what stands in the database, compare the two row by
row, and put the new state in the place of the old. Servers may run meanwhile. The
exit code is 1 when what stood there was not what the log says.

The folds are compared by their states, too, which are kept at every thousandth
position, so that it can say where the live one went wrong. With --dry-run it
compares and leaves everything as it is.`,
	}
	return p.command(cmd, p.replayAll, []string{"archive", "dry-run", "json"}, ledgerFlags)
}

// rebuildable are the projections that live in Postgres.
func rebuildable(pool *pgxpool.Pool) []projections.Rebuildable {
	return []projections.Rebuildable{keylist.New(pool), usage.New(pool), organizations.New(pool)}
}

func (p *program) replayAll(ctx context.Context) (err error) {
	l, err := p.openLedger(ctx, backing.Needs{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.close(ctx)) }()
	var reports []replayReport
	for _, projection := range rebuildable(l.pool) {
		log, lacks, err := p.wholeLog(ctx, l.pool, l.store, projection.Lane())
		if err != nil {
			return err
		}
		if lacks != "" {
			p.say("%s: left as it is: %s.", projection.Name(), lacks)
			continue
		}
		progress, finish := p.progress("replay " + projection.Name())
		report, err := projections.Rebuild(ctx, projections.RebuildOptions{
			AdminURL: l.Database.AdminURL, Log: log, Projection: projection, Logger: p.logger, Progress: progress, CompareOnly: p.config.DryRun,
		})
		finish()
		if err != nil {
			return err
		}
		reports = append(reports, newReplayReport(report))
		p.sayReport(report)
	}
	if p.config.JSON {
		if err := p.printJSON(reports); err != nil {
			return err
		}
	}
	for _, r := range reports {
		if !r.Equal {
			return errSaid
		}
	}
	return nil
}

// replayReport is a rebuild as --json prints it.
type replayReport struct {
	Projection string          `json:"projection"`
	Position   domain.Position `json:"position"` // of the rebuilt state
	Equal      bool            `json:"equal"`    // to what stood there
	Compared   bool            `json:"compared"`
	Reason     string          `json:"reason,omitempty"` // why not
	Replaced   bool            `json:"replaced"`
	Seconds    float64         `json:"seconds"`
	States     uint64          `json:"states"`             // positions at which the states of both folds were compared
	Diverged   domain.Position `json:"diverged,omitempty"` // the first of these that differ: the fold went wrong in the thousand events before
	Tables     []replayTable   `json:"tables"`
}

type replayTable struct {
	Table      string   `json:"table"`
	Rows       uint64   `json:"rows"`
	Missing    uint64   `json:"missing"`
	Unexpected uint64   `json:"unexpected"`
	Different  uint64   `json:"different"`
	Keys       []string `json:"keys,omitempty"`
}

func newReplayReport(r projections.Report) replayReport {
	report := replayReport{
		Projection: r.Projection, Position: r.Position, Equal: r.Comparison.Equal(), Compared: r.Comparison.Skipped == "",
		Reason: r.Comparison.Skipped, Replaced: r.Swapped, Seconds: r.Took.Seconds(), States: r.Comparison.States, Diverged: r.Comparison.Diverged, Tables: []replayTable{},
	}
	for _, t := range r.Comparison.Tables {
		report.Tables = append(report.Tables, replayTable{t.Table, t.Rows, t.OnlyRebuilt, t.OnlyLive, t.Different, t.Keys})
	}
	return report
}

func (p *program) sayReport(r projections.Report) {
	rate := ""
	if s := r.Took.Seconds(); s > 0 && r.Position > 0 {
		rate = fmt.Sprintf(", %.0f events a second", float64(r.Position)/s)
	}
	p.say("%s: replayed to position %d in %s%s.", r.Projection, r.Position, r.Took.Round(time.Millisecond), rate)
	switch c := r.Comparison; {
	case c.Skipped != "":
		p.say("%s: what stood there was not compared: %s.", r.Projection, c.Skipped)
	case c.Equal():
		p.say("%s: the result equals what stood there, at position %d and at every thousandth before it that was kept (%d states).", r.Projection, c.Position, c.States)
	default:
		if c.Diverged > 0 {
			p.say("%s: the live fold went wrong between positions %d and %d.", r.Projection, since(c.Diverged), c.Diverged)
		}
		for _, t := range c.Tables {
			if t.OnlyLive+t.OnlyRebuilt+t.Different > 0 {
				p.say("%s: DIFFERENT in %s, at position %d: %d rows were missing, %d should not be there, %d say something else; among them %s.",
					r.Projection, t.Table, c.Position, t.OnlyRebuilt, t.OnlyLive, t.Different, strings.Join(t.Keys, ", "))
			}
		}
	}
	if r.Swapped {
		p.say("%s: the replayed state is in place.", r.Projection)
	}
}

// wholeLog gives the log as a fold from its beginning needs it, or says what of it is
// neither in the database nor in the archives that were named.
func (p *program) wholeLog(ctx context.Context, pool *pgxpool.Pool, store *eventstore.Store, lane domain.Lane) (log projections.Log, lacks string, err error) {
	if lane != domain.Usage {
		return store, "", nil
	}
	ledger, _ := store.Ledger()
	from, through, err := audit.Lacks(ctx, pool, ledger, p.config.Archive)
	if err != nil {
		return nil, "", err
	}
	if from > 0 {
		return nil, fmt.Sprintf("positions %d to %d of %s are in archives, and --archive does not name them", from, through, lane), nil
	}
	return &audit.Archived{Store: store, Paths: p.config.Archive}, "", nil
}

// since is the first position of the thousand that ends at another one.
func since(diverged domain.Position) domain.Position {
	return (diverged-1)/projections.StateEvery*projections.StateEvery + 1
}

const progressEvery = 2 * time.Second

// progress shows how far something has come: a bar on a terminal, a line now and
// then elsewhere.
func (p *program) progress(what string) (update func(done, total domain.Position), finish func()) {
	if isTerminal(p.stderr) {
		bar := progressbar.NewOptions64(1, progressbar.OptionSetWriter(p.stderr), progressbar.OptionSetDescription(what),
			progressbar.OptionShowCount(), progressbar.OptionShowIts(), progressbar.OptionSetItsString("events"),
			progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionClearOnFinish())
		return func(done, total domain.Position) {
			bar.ChangeMax64(int64(max(total, 1)))
			_ = bar.Set64(int64(done))
		}, func() { _ = bar.Finish() }
	}
	last := time.Now()
	return func(done, total domain.Position) {
		if time.Since(last) >= progressEvery {
			last = time.Now()
			p.say("%s: %d of %d events", what, done, total)
		}
	}, func() {}
}
