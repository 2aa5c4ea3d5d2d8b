package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"keyledger/internal/backing"
)

func (p *program) epoch() *cobra.Command {
	return p.family("epoch", "Say that the log's history has changed",
		p.command(&cobra.Command{
			Use: "raise", Short: "Begin another epoch, after a restore or a failover that lost commits",
			Long: `Begin another epoch. A restored backup, or a standby that lacks the last commits,
will hand out positions again that others have already seen with other events. In
a new epoch nobody mistakes the ones for the others: position tokens of the old one are
refused, and running servers end with exit code 3, to be started again.

Afterwards run keyledger replay, and keyledger stream rebuild.`,
			Example: `  keyledger epoch raise --reason "restored the backup of 2026-01-15"`,
		}, p.raiseEpoch, []string{"reason", "yes", "json"}, ledgerFlags),
	)
}

func (p *program) raiseEpoch(ctx context.Context) (err error) {
	if p.config.Reason == "" {
		return need("reason", "KEYLEDGER_REASON")
	}
	found, err := backing.Find(ctx, p.config, backing.Needs{}, p.logger)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, found.Close(ctx)) }()
	if err := p.confirm("Running servers of this ledger will end, and position tokens that clients hold will be refused. Begin another epoch?"); err != nil {
		return err
	}
	conn, err := pgx.Connect(ctx, found.Database.AdminURL)
	if err != nil {
		return fmt.Errorf("connect to the database as its owner: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx)) //nolint:errcheck // nothing is left to do
	var epoch uint32
	if err := conn.QueryRow(ctx, `SELECT raise_epoch($1)`, p.config.Reason).Scan(&epoch); err != nil {
		return fmt.Errorf("raise the epoch: %w", err)
	}
	p.say("The ledger is in epoch %d now. What folds the log belongs to the epoch before: run keyledger replay, then keyledger stream rebuild.", epoch)
	if p.config.JSON {
		return p.printJSON(map[string]uint32{"epoch": epoch})
	}
	return nil
}
