package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"keyledger/internal/backing"
	"keyledger/migrations"
)

func (p *program) migrate() *cobra.Command {
	cmd := &cobra.Command{
		Use: "migrate", Short: "Bring the database's schema up to date",
		Long: `Bring the database's schema up to date, as its owner. keyledger serve does the
same at its start unless --migrate is off. Any number may run at once.`,
	}
	return p.command(cmd, func(ctx context.Context) (err error) {
		found, err := backing.Find(ctx, p.config, backing.Needs{Create: true}, p.logger)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, found.Close(ctx)) }()
		if err := found.Database.Migrate(ctx, p.logger); err != nil {
			return err
		}
		current, _, err := migrations.Version(ctx, found.Database.AdminURL)
		if err != nil {
			return err
		}
		p.say("The database's schema is at version %d, which is what this program needs.", current)
		return nil
	}, ledgerFlags)
}
