package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"keyledger/domain"
	"keyledger/internal/backing"
	"keyledger/internal/firstkey"
	"keyledger/internal/probe"
)

// knownWithin bounds how long a command waits for the running server to know a
// new key.
const knownWithin = 15 * time.Second

func (p *program) bootstrap() *cobra.Command {
	cmd := &cobra.Command{
		Use: "bootstrap", Short: "Make an admin key",
		Long: `Make an admin key of an organization, or with --system a key of the service itself.
It works while a server runs, and returns when that server knows the key. The
plain key goes to standard output, once; it is stored nowhere.`,
		Example: `  keyledger bootstrap --organization org_abc123
  KEY=$(keyledger bootstrap --organization org_abc123 --name ci --rate-limit 0)
  keyledger bootstrap --system --json`,
	}
	return p.command(cmd, p.makeKey,
		[]string{"organization", "system", "user", "name", "scopes", "rate-limit", "json", "key-prefix", "default-rate-limit", "migrate"}, ledgerFlags)
}

func (p *program) makeKey(ctx context.Context) (err error) {
	c := p.config
	switch {
	case c.Organization == "" && !c.System:
		return need("organization", "KEYLEDGER_ORGANIZATION")
	case c.Organization != "" && c.System:
		return usageError{errors.New("--organization and --system exclude each other")}
	}
	limit := c.DefaultRateLimit
	if c.RateLimit != nil {
		limit = *c.RateLimit
	}
	draft, err := firstkey.Draw(firstkey.Wish{
		Organization: c.Organization, System: c.System, User: c.User, Name: c.Name, Scopes: c.Scopes, RateLimit: limit, Format: c.KeyPrefix,
	}, time.Now())
	if err != nil {
		return usageError{err}
	}
	l, err := p.openLedger(ctx, backing.Needs{Create: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.close(ctx)) }()
	made, err := firstkey.Make(ctx, l.store, draft)
	if err != nil {
		return err
	}
	if l.HTTP != "" {
		waiting, cancel := context.WithTimeoutCause(ctx, knownWithin, fmt.Errorf("it has not answered within %s", knownWithin))
		defer cancel()
		if err := probe.At(l.HTTP).AwaitPosition(waiting, made.Receipt.Token(), made.Secret); err != nil {
			p.say("The key is made, and the server at %s does not know it yet: %v", l.HTTP, err)
		}
	}
	return p.showKey(made)
}

// showKey prints the plain key, this one time.
func (p *program) showKey(made firstkey.Made) error {
	if p.config.JSON {
		return p.printJSON(struct {
			ID           string                `json:"id"`
			Organization domain.OrganizationID `json:"organizationId"`
			Key          string                `json:"key"`
		}{made.Key.ID.String(), made.Key.Organization, made.Secret.Reveal()})
	}
	p.say("%s of %s, with the scopes %s. The key is shown this once:", made.Key.ID, made.Key.Organization, strings.Join(made.Key.Scopes.Strings(), ", "))
	return p.print("%s\n", made.Secret.Reveal())
}
