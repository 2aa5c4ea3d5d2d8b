package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"keyledger/audit"
	"keyledger/domain"
	"keyledger/internal/backing"
)

func (p *program) auditExport() *cobra.Command {
	cmd := p.command(&cobra.Command{
		Use: "export", Short: "Write the log, or a part of it, to a file that proves itself",
		Long: `Write the log to a file: lines of JSON, compressed with zstd. The file carries a
checkpoint, and keyledger audit verify --file accepts it alone, whichever part of
the log it is: of events that were not asked for it holds the hash alone. What no
checkpoint covers yet, which is about the last second, is not exported. An export
that was broken off goes on where it ended when it is called again.`,
		Example: `  keyledger audit export --output log.ndjson.zst
  keyledger audit export --organization org_abc123 --from 720h --output january.ndjson.zst`,
	}, p.exportLog, []string{"output", "lane", "from", "to", "organization", "types", "data-keys", "json"}, ledgerFlags)
	short(cmd, "output", "o")
	return cmd
}

// short gives a flag a letter beside its name.
func short(cmd *cobra.Command, name, letter string) {
	f := cmd.Flags().Lookup(name)
	cmd.Flags().VarP(f.Value, name+"-"+letter, letter, f.Usage)
	alias := cmd.Flags().Lookup(name + "-" + letter)
	alias.Hidden = true
	before := cmd.PreRun
	cmd.PreRun = func(cmd *cobra.Command, arguments []string) {
		f.Changed = f.Changed || alias.Changed
		if before != nil {
			before(cmd, arguments)
		}
	}
}

func (p *program) exportLog(ctx context.Context) (err error) {
	c := p.config
	if c.Output == "" {
		return need("output", "KEYLEDGER_OUTPUT")
	}
	a, err := p.openAudited(ctx, backing.Needs{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.close(ctx)) }()
	o := audit.ExportOptions{Path: c.Output, Organization: c.Organization, Types: c.Types, DataKeys: c.DataKeys}
	if o.Lanes, err = p.ranges(ctx, a); err != nil {
		return err
	}
	update, finish := p.progress("export")
	o.Progress = func(_ domain.Lane, done, total domain.Position) { update(done, total) }
	written, err := audit.Export(ctx, a.pool, o)
	finish()
	if err != nil {
		return err
	}
	if c.JSON {
		return p.printJSON(map[string]any{"file": c.Output, "events": written})
	}
	p.say("%s: %d events. Verify it with keyledger audit verify --file %s --key PUBLIC", c.Output, written, c.Output)
	return nil
}

// ranges are the parts of the lanes that --lane, --from and --to name.
func (p *program) ranges(ctx context.Context, a *audited) ([]audit.LaneRange, error) {
	lanes := domain.Lanes()
	if p.config.Lane != "" {
		lane, err := p.lane("")
		if err != nil {
			return nil, err
		}
		lanes = []domain.Lane{lane}
	}
	var ranges []audit.LaneRange
	for _, lane := range lanes {
		part := audit.LaneRange{Lane: lane}
		if (p.config.From != "" || p.config.To != "") && a.store == nil {
			return nil, a.readable()
		}
		if p.config.From != "" {
			after, err := p.behind(ctx, a, lane)
			if err != nil {
				return nil, err
			}
			part.From = after + 1
		}
		if p.config.To != "" {
			to, err := audit.ResolvePosition(ctx, a.store, lane, p.config.To, time.Now())
			if err != nil {
				return nil, err
			}
			part.To = to
		}
		ranges = append(ranges, part)
	}
	return ranges, nil
}

func (p *program) auditImport() *cobra.Command {
	cmd := &cobra.Command{
		Use: "import", Short: "Load an exported ledger into an empty one",
		Long: `Load a whole ledger that was exported with --data-keys into an empty one, with the
same positions, in one transaction. The file is verified first. The master key must be that of
the exported ledger. Stop the servers of the empty ledger before, and start them
afterwards.`,
		Example: "  keyledger audit import log.ndjson.zst --data-dir new",
	}
	var file *string
	cmd = p.command(cmd, func(ctx context.Context) error { return p.importLog(ctx, *file) }, []string{"key", "checkpoint", "json", "migrate"}, ledgerFlags)
	file = argument(cmd, "FILE")
	return cmd
}

func (p *program) importLog(ctx context.Context, path string) (err error) {
	trusted, err := p.trusted()
	if err != nil {
		return err
	}
	p.config.File = path
	report, err := p.verifyFile(ctx, trusted)
	if err != nil {
		return err
	}
	if !report.OK {
		return p.sayVerified(report)
	}
	found, err := backing.Find(ctx, p.config, backing.Needs{Create: true}, p.logger)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, found.Close(ctx)) }()
	if p.config.Migrate && found.HTTP == "" {
		if err := found.Database.Migrate(ctx, p.logger); err != nil {
			return err
		}
	}
	conn, err := pgx.Connect(ctx, found.Database.AdminURL)
	if err != nil {
		return fmt.Errorf("connect to the database as its owner: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx)) //nolint:errcheck // nothing is left to do
	file, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("read the exported file: %w", err)
	}
	defer file.Close() //nolint:errcheck // nothing was written
	update, finish := p.progress("import")
	err = audit.Import(ctx, conn, file, func(_ domain.Lane, done, total domain.Position) { update(done, total) })
	finish()
	if err != nil {
		return err
	}
	p.say("The ledger %s is imported. Its projections and its tree are made when a server starts.", report.Ledger)
	if p.config.JSON {
		return p.printJSON(map[string]any{"ledger": report.Ledger, "lanes": report.Lanes})
	}
	return nil
}
