package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"keyledger/audit"
	"keyledger/domain"
	"keyledger/internal/backing"
	"keyledger/projections"
)

func (p *program) auditVerify() *cobra.Command {
	cmd := &cobra.Command{
		Use: "verify", Short: "Hold the whole log against its rules and its checkpoints",
		Long: `Read the whole log and hold it against its own rules, against the tree over it, and
against every checkpoint: those that the database has, and those that --checkpoint
names, which are the ones that count, since they were kept elsewhere. Then hold
the projections against a fresh fold, and the streams on NATS against the log.
Servers may run meanwhile.

It ends in one line and in an exit code: 0 when everything is as it was signed, 1
when not. With --file it verifies an exported file alone.`,
		Example: `  keyledger audit verify --checkpoint kept-elsewhere.note
  DATABASE_URL=postgres://... keyledger audit verify --key 3v0Y...= --json`,
	}
	return p.command(cmd, p.verifyAll, []string{"checkpoint", "key", "file", "witness", "archive", "skew", "json", "checkpoint-key"}, ledgerFlags, natsFlags)
}

func (p *program) verifyAll(ctx context.Context) error {
	trusted, err := p.trusted()
	if err != nil {
		return err
	}
	verify := p.verifyLedger
	if p.config.File != "" {
		verify = p.verifyFile
	}
	report, err := verify(ctx, trusted)
	if err != nil {
		return err
	}
	return p.sayVerified(report)
}

// verifyFile verifies an exported file. It needs no ledger.
func (p *program) verifyFile(ctx context.Context, trusted []audit.Trusted) (*audit.Report, error) {
	keys, err := p.publicKeys(nil)
	if err != nil {
		return nil, err
	}
	witnesses, err := p.witnesses()
	if err != nil {
		return nil, err
	}
	file, err := os.Open(p.config.File)
	if err != nil {
		return nil, fmt.Errorf("--file (KEYLEDGER_FILE): %w", err)
	}
	defer file.Close() //nolint:errcheck // nothing was written
	update, finish := p.progress("verify")
	defer finish()
	return audit.VerifyFile(ctx, file, audit.Options{
		Keys: keys, Trusted: trusted, Witnesses: witnesses, Skew: p.config.Skew, Progress: func(_ domain.Lane, done, total domain.Position) { update(done, total) },
	})
}

func (p *program) verifyLedger(ctx context.Context, trusted []audit.Trusted) (report *audit.Report, err error) {
	// Of a database that was named alone, nobody knows where its streams are.
	a, err := p.openAudited(ctx, backing.Needs{NATS: p.config.NATSURL.IsSet() || !p.config.DatabaseURL.IsSet()})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, a.close(ctx)) }()
	keys, err := p.publicKeys(a.Found)
	if err != nil {
		return nil, err
	}
	witnesses, err := p.witnesses()
	if err != nil {
		return nil, err
	}
	update, finish := p.progress("verify")
	report, err = audit.VerifyDatabase(ctx, a.pool, audit.Options{
		Keys: keys, Trusted: trusted, Witnesses: witnesses, Archives: p.config.Archive, Skew: p.config.Skew, Progress: func(_ domain.Lane, done, total domain.Position) { update(done, total) },
	})
	finish()
	if err != nil {
		return nil, err
	}
	if err := p.verifyProjections(ctx, a, report); err != nil {
		return nil, err
	}
	return report, p.verifyStreams(ctx, a, report)
}

// verifyProjections folds the log again beside what stands in the database, and
// compares the two.
func (p *program) verifyProjections(ctx context.Context, a *audited, report *audit.Report) error {
	if a.store == nil {
		report.Skip("the projections: their personal fields need the master key")
		return nil
	}
	for _, projection := range rebuildable(a.pool) {
		log, lacks, err := p.wholeLog(ctx, a.pool, a.store, projection.Lane())
		if err != nil {
			return err
		}
		if lacks != "" {
			report.Skip("the projection " + projection.Name() + ": " + lacks)
			continue
		}
		progress, finish := p.progress("fold " + projection.Name())
		r, err := projections.Rebuild(ctx, projections.RebuildOptions{
			AdminURL: a.Database.AdminURL, Log: log, Projection: projection, Logger: p.logger, Progress: progress, CompareOnly: true,
		})
		finish()
		switch {
		case errors.Is(err, projections.ErrBroken), errors.Is(err, projections.ErrGap):
			report.Add(audit.Fault{Lane: projection.Lane(), Fault: fmt.Sprintf("the projection %s cannot be folded: %v", projection.Name(), err)})
			continue
		case err != nil && !report.OK:
			// A log with faults need not be readable for those who rely on it.
			report.Skip(fmt.Sprintf("the projection %s: %v", projection.Name(), err))
			continue
		case err != nil:
			return err
		case r.Comparison.Skipped != "":
			report.Skip(fmt.Sprintf("the projection %s: %s", projection.Name(), r.Comparison.Skipped))
			continue
		}
		if diverged := r.Comparison.Diverged; diverged > 0 {
			report.Add(audit.Fault{Lane: projection.Lane(), Position: diverged, Fault: fmt.Sprintf(
				"the projection %s was folded otherwise than the log says, between positions %d and %d", projection.Name(), since(diverged), diverged)})
		}
		for _, t := range r.Comparison.Tables {
			if t.OnlyLive+t.OnlyRebuilt+t.Different > 0 {
				report.Add(audit.Fault{Lane: projection.Lane(), Position: r.Comparison.Position, Fault: fmt.Sprintf(
					"%s is not what the log says: %d rows are missing, %d should not be there, %d say something else; among them %s",
					t.Table, t.OnlyRebuilt, t.OnlyLive, t.Different, strings.Join(t.Keys, ", "))})
			}
		}
	}
	return nil
}

// mostSaid bounds the faults that are told to a person.
const mostSaid = 50

// sayVerified ends a verification in one line and an exit code.
func (p *program) sayVerified(r *audit.Report) error {
	if p.config.JSON {
		if err := p.printJSON(r); err != nil {
			return err
		}
	} else {
		for i, f := range r.Faults {
			if i == mostSaid {
				p.say("... and %d more (--json lists them)", uint64(len(r.Faults)-mostSaid)+r.More)
				break
			}
			p.say("%s", f)
		}
		for _, s := range r.Skipped {
			p.say("not looked at: %s", s)
		}
		if r.Unsigned {
			p.say("not looked at: who signed the checkpoints (--key)")
		}
		var lanes []string
		for _, l := range r.Lanes {
			lanes = append(lanes, fmt.Sprintf("%s to position %d (signed to %d)", l.Lane, l.Through, l.Covered))
		}
		word := "OK"
		if !r.OK {
			word = fmt.Sprintf("NOT OK, %d faults", uint64(len(r.Faults))+r.More)
		}
		if err := p.print("%s: %s, in %.1f s\n", word, strings.Join(lanes, ", "), r.Seconds); err != nil {
			return err
		}
	}
	if !r.OK {
		return errSaid
	}
	return nil
}
