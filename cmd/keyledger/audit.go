package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"keyledger/audit"
	"keyledger/eventstore"
	"keyledger/internal/backing"
	"keyledger/internal/datadir"
	"keyledger/projections/transparency"
)

func (p *program) audit() *cobra.Command {
	return p.family("audit", "Read, prove and verify what happened",
		p.auditVerify(), p.auditProve(), p.auditCheck(), p.auditKey(),
		p.auditState(), p.auditDiff(), p.auditHistory(), p.auditTail(), p.auditExport(), p.auditImport(),
	)
}

// argument lets a command take one argument, and gives where it will stand.
func argument(cmd *cobra.Command, what string) *string {
	var given string
	cmd.Use += " " + what
	cmd.Args = func(cmd *cobra.Command, arguments []string) error {
		if len(arguments) != 1 {
			return usageError{fmt.Errorf("%s takes one argument, %s (%s --help)", cmd.CommandPath(), what, cmd.CommandPath())}
		}
		given = arguments[0]
		return nil
	}
	return &given
}

// audited is a ledger that is looked at.
type audited struct {
	*backing.Found
	pool  *pgxpool.Pool
	store *eventstore.Store // nil: the master key is not here, so that nobody can read what is personal
}

// openAudited opens a ledger to read it. Without its master key much can still be
// said of it.
func (p *program) openAudited(ctx context.Context, needs backing.Needs) (_ *audited, err error) {
	a := &audited{}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.close(ctx))
		}
	}()
	if a.Found, err = backing.Find(ctx, p.config, needs, p.logger); err != nil {
		return nil, err
	}
	if a.Owned() {
		// Nobody else works on it, and an older program may have left it.
		if err := a.Database.Migrate(ctx, p.logger); err != nil {
			return nil, err
		}
	}
	if a.pool, err = eventstore.Connect(ctx, a.Database.URL, eventstore.ConnectOptions{MaxConns: 4}); err != nil {
		return nil, err
	}
	masterKey, _, err := backing.MasterKey(a.Dir, p.config, false)
	if err != nil {
		p.logger.Debug("what is personal cannot be read", "error", err)
		return a, nil
	}
	if a.store, err = eventstore.Open(ctx, eventstore.Options{Pool: a.pool, MasterKey: masterKey, Logger: p.logger}); err != nil {
		return nil, err
	}
	return a, nil
}

func (a *audited) close(ctx context.Context) error {
	if a.pool != nil {
		a.pool.Close()
	}
	if a.Found != nil {
		return a.Close(ctx)
	}
	return nil
}

// readable says that what is personal is needed, and cannot be had.
func (a *audited) readable() error {
	if a.store == nil {
		return errors.New("the master key of the ledger is needed: set KEYLEDGER_MASTER_KEY or KEYLEDGER_MASTER_KEY_FILE, " +
			"or name its server's data directory with --data-dir")
	}
	return nil
}

// publicKeys are those that may have signed: the ones that were named, else those
// of the private keys that are here.
func (p *program) publicKeys(found *backing.Found) (transparency.Keys, error) {
	var keys transparency.Keys
	for _, text := range p.config.Key {
		if content, err := os.ReadFile(text); err == nil {
			text = string(content)
		}
		key, err := transparency.ParsePublicKey(text)
		if err != nil {
			return nil, usageError{fmt.Errorf("--key (KEYLEDGER_KEY): %w", err)}
		}
		keys = append(keys, key)
	}
	if len(keys) > 0 || found == nil {
		return keys, nil
	}
	private, _, err := p.checkpointKeys(found.Dir, false)
	return transparency.Public(private), err
}

// witnesses are those whose cosignatures are demanded.
func (p *program) witnesses() ([]transparency.WitnessKey, error) {
	var keys []transparency.WitnessKey
	for _, text := range p.config.Witness {
		key, _, _ := strings.Cut(text, "=") // the URL is for those who ask the witness
		w, err := transparency.ParseWitnessKey(key)
		if err != nil {
			return nil, usageError{fmt.Errorf("--witness (KEYLEDGER_WITNESS): %w", err)}
		}
		keys = append(keys, w)
	}
	return keys, nil
}

// trusted reads the checkpoints that were kept outside the ledger.
func (p *program) trusted() ([]audit.Trusted, error) {
	var trusted []audit.Trusted
	for _, path := range p.config.Checkpoint {
		note, err := os.ReadFile(path)
		if err != nil {
			return nil, usageError{fmt.Errorf("--checkpoint (KEYLEDGER_CHECKPOINT): %w", err)}
		}
		trusted = append(trusted, audit.Trusted{Note: note, Source: path})
	}
	return trusted, nil
}

func (p *program) auditKey() *cobra.Command {
	return p.command(&cobra.Command{
		Use: "key", Short: "Print the public key of checkpoints",
		Long: `Print the public key that verifies this ledger's checkpoints. Keep it outside the
machine that runs the ledger. One key serves both lanes.`,
	}, func(context.Context) error {
		dir := backing.Found{Dir: datadir.At(p.config.DataDir)}
		keys, err := p.publicKeys(&dir)
		if err != nil {
			return err
		}
		if len(keys) == 0 {
			return errors.New("there is no checkpoint key: name the data directory of the ledger's server with --data-dir, or set KEYLEDGER_CHECKPOINT_KEY")
		}
		texts := make([]string, len(keys))
		for i, key := range keys {
			texts[i] = transparency.PublicKeyText(key)
		}
		if p.config.JSON {
			return p.printJSON(map[string][]string{"publicKeys": texts})
		}
		return p.print("%s\n", strings.Join(texts, "\n"))
	}, []string{"data-dir", "checkpoint-key", "json"})
}
