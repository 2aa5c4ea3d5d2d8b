package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"

	"keyledger/audit"
	"keyledger/domain"
	"keyledger/eventstore"
	"keyledger/internal/backing"
	"keyledger/projections"
	"keyledger/projections/usage"
	"keyledger/publisher"
)

func (p *program) usage() *cobra.Command {
	cmd := p.command(&cobra.Command{
		Use: "detach", Short: "Move old parts of the usage lane from the database to an archive",
		Long: `Write the oldest parts of the usage lane to a file, verify the file, and only then drop
them from the database. Parts are of 16,777,216 positions; those are taken that end
before --before. Counts of uses stay, and so does the tree over the lane, so that
keyledger audit verify --archive FILE still verifies every event; replay takes --archive as
well. Servers may run meanwhile. Keep the file: there is no other copy.`,
		Example: `  keyledger usage detach --before 8760h --output usage-2025.ndjson.zst --dry-run
  keyledger usage detach --before 8760h --output usage-2025.ndjson.zst --yes`,
	}, p.detachUsage, []string{"before", "output", "key", "dry-run", "yes", "json", "checkpoint-key"}, ledgerFlags, natsFlags)
	short(cmd, "output", "o")
	return p.family("usage", "Look after the usage lane", cmd)
}

// detached is what a detachment did, as --json prints it.
type detached struct {
	First    domain.Position `json:"first"` // 0: there is nothing to detach
	Last     domain.Position `json:"last"`
	Parts    int             `json:"parts"`
	File     string          `json:"file,omitempty"`
	Detached bool            `json:"detached"`
}

func (p *program) detachUsage(ctx context.Context) (err error) {
	c := p.config
	switch {
	case c.Before == "":
		return need("before", "KEYLEDGER_BEFORE")
	case c.Output == "":
		return need("output", "KEYLEDGER_OUTPUT")
	}
	a, err := p.openAudited(ctx, backing.Needs{NATS: c.NATSURL.IsSet() || !c.DatabaseURL.IsSet()})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.close(ctx)) }()
	if err := a.readable(); err != nil {
		return err
	}
	before, err := audit.ResolvePosition(ctx, a.store, domain.Usage, c.Before, time.Now())
	if err != nil {
		return err
	}
	head, err := a.store.Head(ctx, domain.Usage)
	if err != nil {
		return err
	}
	parts, err := audit.Detachable(ctx, a.pool, head.Position, before)
	if err != nil {
		return err
	}
	if len(parts) == 0 {
		p.say("There is nothing to detach: no part ends before position %d.", before)
		return p.sayDetached(detached{})
	}
	done := detached{First: parts[0].First, Last: parts[len(parts)-1].Last, Parts: len(parts), File: c.Output}
	if err := p.consumed(ctx, a, done.Last); err != nil {
		return err
	}
	if c.DryRun {
		p.say("Positions %d to %d, in %d parts, would be moved to %s. Nothing was changed.", done.First, done.Last, done.Parts, c.Output)
		return p.sayDetached(done)
	}
	if err := p.confirm(fmt.Sprintf("Positions %d to %d of usage are moved to %s and dropped from the database. Go on?", done.First, done.Last, c.Output)); err != nil {
		return err
	}
	if _, err := os.Stat(c.Output); err == nil {
		return usageError{fmt.Errorf("--output (KEYLEDGER_OUTPUT): %s exists already, and may be an archive", c.Output)}
	}
	keys, err := p.publicKeys(a.Found)
	if err != nil {
		return err
	}
	update, finish := p.progress("archive")
	progress := func(_ domain.Lane, done, total domain.Position) { update(done, total) }
	_, err = audit.Export(ctx, a.pool, audit.ExportOptions{
		Path: c.Output, Lanes: []audit.LaneRange{{Lane: domain.Usage, From: done.First, To: done.Last}}, Progress: progress,
	})
	finish()
	if err != nil {
		return err
	}
	admin, err := pgx.Connect(ctx, a.Database.AdminURL)
	if err != nil {
		return eventstore.Wrap(err, "connect to the database as its owner")
	}
	defer admin.Close(context.WithoutCancel(ctx)) //nolint:errcheck // nothing was left to do
	update, finish = p.progress("verify")
	err = audit.Detach(ctx, audit.DetachOptions{Admin: admin, Parts: parts, Path: c.Output, Options: audit.Options{Keys: keys, Progress: progress}})
	finish()
	if err != nil {
		return err
	}
	done.Detached = true
	p.say("Positions %d to %d of usage are in %s, which was verified, and no longer in the database.", done.First, done.Last, c.Output)
	return p.sayDetached(done)
}

func (p *program) sayDetached(d detached) error {
	if p.config.JSON {
		return p.printJSON(d)
	}
	return nil
}

// consumed says whether everybody who reads the lane has read up to a position: the
// counts, and the stream on NATS.
func (p *program) consumed(ctx context.Context, a *audited, last domain.Position) error {
	at, err := projections.ReadCheckpoint(ctx, a.pool, usage.Name)
	if err != nil {
		return err
	}
	if at.Position < last {
		return domain.Errorf(domain.CodeUnprocessable, "uses are counted up to position %d only: let a server run first", at.Position)
	}
	if a.NATS == nil {
		return nil
	}
	conn, err := a.NATS.Connect(p.logger)
	if err != nil {
		return err
	}
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		return fmt.Errorf("use JetStream: %w", err)
	}
	stream, err := js.Stream(ctx, publisher.StreamName(domain.Usage))
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil // it will begin behind what is there
	}
	if err != nil {
		return domain.Unavailable(err)
	}
	if published := stream.CachedInfo().State.LastSeq; published < uint64(last) {
		return domain.Errorf(domain.CodeUnprocessable, "the stream of usage has come to position %d only: let a server run first", published)
	}
	return nil
}
