package main

import (
	"context"
	"errors"
	"os"
	"time"

	"keyledger/internal/firstkey"
)

// firstKey makes the first admin key of the organization that --bootstrap names,
// if it has none that is active.
func (n *node) firstKey(ctx context.Context) error {
	organization := n.config.Bootstrap
	if organization == "" {
		return nil
	}
	made, err := firstkey.Once(ctx, n.pool, n.list, organization, time.Now(), func() error {
		draft, err := firstkey.Draw(firstkey.Wish{
			Organization: organization, Name: n.config.Name, User: n.config.User, RateLimit: n.config.DefaultRateLimit, Format: n.config.KeyPrefix,
		}, time.Now())
		if err != nil {
			return err
		}
		if isTerminal(n.stdout) {
			made, err := firstkey.Make(ctx, n.store, draft)
			if err != nil {
				return err
			}
			return n.showKey(made)
		}
		// The file first: after a crash in between it holds a key that does not exist,
		// and the next start makes another. The other way round, a key would be lost.
		name := "bootstrap-" + string(organization) + ".key"
		if err := n.dir.WriteFile(name, []byte(draft.Secret().Reveal()+"\n")); err != nil {
			return err
		}
		if _, err := firstkey.Make(ctx, n.store, draft); err != nil {
			return errors.Join(err, os.Remove(n.dir.Path(name)))
		}
		n.logger.Info("the first admin key was written to a file: take it from there and remove the file", "organization", organization, "file", n.dir.Path(name))
		return nil
	})
	if err == nil && !made {
		n.logger.Info("no first key is needed: the organization has an active admin key", "organization", organization)
	}
	return err
}
