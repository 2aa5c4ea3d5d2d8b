// Command keyledger is the service, and the commands to look after it.
//
// This package wires the others together and decides nothing by itself: one file
// for each command.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"keyledger/eventstore"
	"keyledger/internal/config"
)

// Exit codes.
const (
	exitFailure      = 1
	exitUsage        = 2   // flags or variables that make no sense
	exitEpochChanged = 3   // the ledger's history has changed: a supervisor starts the server again
	exitInterrupted  = 130 // a second signal ended it at once
)

func main() {
	p := &program{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, environ: os.Environ()}
	os.Exit(p.main(os.Args[1:]))
}

// program is one run of the command line.
type program struct {
	stdin   io.Reader
	stdout  io.Writer // data
	stderr  io.Writer // everything else
	environ []string

	config config.Config
	logger *slog.Logger
}

func (p *program) main(arguments []string) int {
	ctx, stop := p.untilSignal()
	defer stop()
	root := p.root()
	root.SetArgs(arguments)
	root.SetIn(p.stdin)
	root.SetOut(p.stdout)
	root.SetErr(p.stderr)
	err := root.ExecuteContext(ctx)
	var usage usageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &usage):
		p.say("keyledger: %v", err)
		return exitUsage
	case errors.Is(err, errSaid):
		return exitFailure
	case errors.Is(err, eventstore.ErrEpochChanged):
		p.say("keyledger: %v", err)
		p.say("The ledger was restored or failed over, so what this process knew may not be history any more. Start it again.")
		return exitEpochChanged
	}
	p.say("keyledger: %v", err)
	return exitFailure
}

// untilSignal gives a context that ends with the first SIGINT, SIGTERM or SIGHUP. The
// second one ends the process, whatever it is doing.
func (p *program) untilSignal() (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP) // SIGHUP: the terminal was closed
	done := make(chan struct{})
	go func() {
		for first := true; ; first = false {
			select {
			case s := <-signals:
				if !first {
					p.say("keyledger: a second signal: ending at once")
					os.Exit(exitInterrupted)
				}
				cancel(fmt.Errorf("stopped by the signal %q", s))
			case <-done:
				return
			}
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		close(done)
		cancel(nil)
	}
}

// usageError is a mistake in how the program was called.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

// errSaid ends a command that has already said what is wrong.
var errSaid = errors.New("it was said")

func (p *program) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "keyledger",
		Short: "An event-sourced API-key service",
		Long: `Keyledger keeps API keys as an append-only log in Postgres, publishes every
event on NATS, and verifies keys from memory.

  keyledger serve --bootstrap org_abc123

starts everything with nothing to install or configure. Every flag has an
environment variable, and secrets can stand in a file that NAME_FILE names; a flag goes
before its variable. All variables are accepted by all commands. Beside those
that --help shows, PORT, NO_COLOR and OTEL_EXPORTER_OTLP_ENDPOINT (with the other
variables of OpenTelemetry) are honoured.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          knownCommand,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetUsageTemplate(strings.ReplaceAll(root.UsageTemplate(), "Flags.FlagUsages ", "Flags.FlagUsagesWrapped 100 "))
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w (%s --help lists the flags)", err, cmd.CommandPath())}
	})
	root.AddCommand(
		p.serve(), p.bootstrap(), p.members(), p.token(), p.replay(), p.status(), p.migrate(), p.stream(), p.epoch(), p.erase(), p.usage(), p.audit(), p.healthcheck(), p.version(),
	)
	return root
}

// flags that several commands share.
var (
	logFlags    = []string{"log-format", "log-level"}
	ledgerFlags = []string{"data-dir", "database-url", "database-admin-url", "master-key", "postgres-bin", "postgres-mirror"}
	natsFlags   = []string{"nats-url", "nats-creds", "stream-replicas"}
)

// command completes a command: its flags, and that its settings are read before
// it runs.
func (p *program) command(cmd *cobra.Command, run func(ctx context.Context) error, flags ...[]string) *cobra.Command {
	cmd.Args = noArguments
	cmd.Flags().SortFlags = false
	for _, names := range append(flags, logFlags) {
		config.Register(cmd.Flags(), names...)
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var err error
		if p.config, err = config.Load(cmd.Flags(), p.environ); err != nil {
			return usageError{err}
		}
		p.logger = p.newLogger(cmd.Name() == "serve")
		return run(cmd.Context())
	}
	return cmd
}

// family is a command that has others below it and does nothing by itself.
func (p *program) family(use, short string, commands ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Args: knownCommand, RunE: func(cmd *cobra.Command, _ []string) error {
		return usageError{fmt.Errorf("%s needs one of its commands (%s --help lists them)", cmd.CommandPath(), cmd.CommandPath())}
	}}
	cmd.AddCommand(commands...)
	return cmd
}

// knownCommand refuses what none of a family's commands is called.
func knownCommand(cmd *cobra.Command, arguments []string) error {
	if len(arguments) == 0 {
		return nil
	}
	advice := cmd.CommandPath() + " --help lists the commands"
	cmd.SuggestionsMinimumDistance = 2
	if alike := cmd.SuggestionsFor(arguments[0]); len(alike) > 0 {
		advice = "did you mean " + strings.Join(alike, " or ") + "?"
	}
	return usageError{fmt.Errorf("%s has no command %q: %s", cmd.CommandPath(), arguments[0], advice)}
}

func noArguments(cmd *cobra.Command, arguments []string) error {
	if len(arguments) == 0 {
		return nil
	}
	return usageError{fmt.Errorf("%s takes no arguments, and there is %q (%s --help)", cmd.CommandPath(), arguments[0], cmd.CommandPath())}
}

// need is the error of a flag that a command cannot do without.
func need(flag, variable string) error {
	return usageError{fmt.Errorf("--%s (%s) is needed", flag, variable)}
}
