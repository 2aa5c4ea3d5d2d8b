package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"keyledger/audit"
	"keyledger/domain"
	"keyledger/internal/backing"
)

func (p *program) auditProve() *cobra.Command {
	cmd := &cobra.Command{
		Use: "prove", Short: "Prove that an event is in the log",
		Long: `Write a proof that an event is in the log: the event, the way from it to a signed
checkpoint, and that checkpoint. Whoever has the public key verifies it without
the ledger (keyledger audit check).

EVENT is a position of the lifecycle lane (17), of a lane (usage:3), a position token as a
write returned it, or the id of an event.`,
		Example: "  keyledger audit prove 17 > proof.json",
	}
	var event *string
	cmd = p.command(cmd, func(ctx context.Context) error { return p.prove(ctx, *event) }, []string{"witness", "output"}, ledgerFlags)
	event = argument(cmd, "EVENT")
	return cmd
}

func (p *program) prove(ctx context.Context, event string) (err error) {
	witnesses, err := p.witnesses()
	if err != nil {
		return err
	}
	a, err := p.openAudited(ctx, backing.Needs{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.close(ctx)) }()
	lane, position, err := a.find(ctx, event)
	if err != nil {
		return err
	}
	proof, err := audit.Prove(ctx, a.pool, audit.NewLog(a.pool), lane, position, witnesses...)
	if err != nil {
		return err
	}
	text, err := json.MarshalIndent(proof, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the proof: %w", err)
	}
	if p.config.Output != "" {
		return os.WriteFile(p.config.Output, append(text, '\n'), 0o600)
	}
	return p.print("%s\n", text)
}

// find gives the place of an event, however it was named.
func (a *audited) find(ctx context.Context, event string) (domain.Lane, domain.Position, error) {
	if token, err := domain.ParseToken(event); err == nil {
		return token.Lane, token.Position, nil
	}
	lane, number := domain.Lifecycle, event
	if before, after, found := strings.Cut(event, ":"); found {
		lane, number = domain.Lane(before), after
	}
	if n, err := strconv.ParseUint(number, 10, 62); err == nil && n > 0 && (lane == domain.Lifecycle || lane == domain.Usage) {
		return lane, domain.Position(n), nil
	}
	id, err := domain.ParseID(event)
	if err != nil {
		return "", 0, usageError{fmt.Errorf("%q is not an event: it may be a position (17 or usage:3), a position token, or an event's id", event)}
	}
	return audit.FindID(ctx, a.pool, id)
}

func (p *program) auditCheck() *cobra.Command {
	cmd := &cobra.Command{
		Use: "check", Short: "Verify a proof without the ledger",
		Long: `Verify a proof that keyledger audit prove has written. It needs no ledger and no
network, only the public key (keyledger audit key, or its file). The exit code is 1 when it proves
nothing.`,
		Example: "  keyledger audit check proof.json --key 3v0Y...=",
	}
	var file *string
	cmd = p.command(cmd, func(context.Context) error { return p.checkProof(*file) }, []string{"key", "witness", "json"})
	file = argument(cmd, "FILE")
	return cmd
}

func (p *program) checkProof(file string) error {
	keys, err := p.publicKeys(nil)
	if err != nil {
		return err
	}
	if len(keys) == 0 {
		return need("key", "KEYLEDGER_KEY")
	}
	witnesses, err := p.witnesses()
	if err != nil {
		return err
	}
	var bundle []byte
	if file == "-" {
		bundle, err = io.ReadAll(p.stdin)
	} else {
		bundle, err = os.ReadFile(file)
	}
	if err != nil {
		return fmt.Errorf("read the proof: %w", err)
	}
	proven, err := audit.CheckProof(bundle, keys, witnesses...)
	if err != nil {
		if p.config.JSON {
			return errors.Join(p.printJSON(map[string]any{"ok": false, "error": err.Error()}), errSaid)
		}
		return fmt.Errorf("this proves nothing: %w", err)
	}
	e, c := proven.Event, proven.Checkpoint
	if p.config.JSON {
		return p.printJSON(struct {
			OK         bool            `json:"ok"`
			Origin     string          `json:"origin"`
			Size       domain.Position `json:"size"`
			Lane       domain.Lane     `json:"lane"`
			Position   domain.Position `json:"position"`
			ID         string          `json:"id"`
			Type       string          `json:"type"`
			RecordedAt string          `json:"recordedAt"`
			Data       json.RawMessage `json:"data"`
		}{true, c.Origin.String(), c.Size, e.Lane, e.Position, e.ID.UUID(), e.Type, e.RecordedAt.Format(timeLayout), e.Data})
	}
	return p.print("PROVEN: %s %d is a %s of %s, recorded at %s, in the log %s of size %d.\n%s\n",
		e.Lane, e.Position, e.Type, e.Organization, e.RecordedAt.Format(timeLayout), c.Origin, c.Size, e.Data)
}

const timeLayout = "2006-01-02T15:04:05.000000Z"
