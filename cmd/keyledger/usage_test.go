package main_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"keyledger/internal/config"
	"keyledger/internal/servertest"
)

// command is a command that does something. What it needs as an argument, such as
// FILE, follows its name.
type command struct {
	args []string
	help servertest.Result
}

var found struct {
	once     sync.Once
	commands []command
}

// commands finds all commands by their --help.
func commands(t *testing.T) []command {
	t.Helper()
	found.once.Do(func() { found.commands = commandsOf(t) })
	return found.commands
}

func commandsOf(t *testing.T, family ...string) []command {
	t.Helper()
	help := servertest.Run(t, servertest.Command{Args: append(slices.Clone(family), "--help")})
	_, list, isFamily := strings.Cut(help.Stdout, "Available Commands:\n")
	if !isFamily {
		_, usage, _ := strings.Cut(help.Stdout, "Usage:\n  keyledger")
		usage, _, _ = strings.Cut(usage, "\n")
		for word := range strings.FieldsSeq(usage) {
			if strings.ToUpper(word) == word {
				family = append(family, word)
			}
		}
		return []command{{family, help}}
	}
	list, _, _ = strings.Cut(list, "\n\n")
	var all []command
	for line := range strings.Lines(list) {
		if name := strings.Fields(line)[0]; name != "completion" && name != "help" {
			all = append(all, commandsOf(t, append(slices.Clone(family), name)...)...)
		}
	}
	return all
}

func TestTheCommandsHaveTheirNames(t *testing.T) {
	t.Parallel()
	var names []string
	for _, c := range commands(t) {
		names = append(names, strings.Join(c.args, " "))
	}
	for _, name := range []string{
		"serve", "bootstrap", "members add", "members remove", "members list", "token", "replay", "status", "migrate",
		"stream rebuild", "epoch raise", "healthcheck", "version",
	} {
		if !slices.Contains(names, name) {
			t.Errorf("there is no command %s among %v", name, names)
		}
	}
}

func TestHelpShowsEveryFlagWithItsVariable(t *testing.T) {
	t.Parallel()
	var all strings.Builder
	for _, c := range commands(t) {
		if c.help.Code != 0 || c.help.Stderr != "" {
			t.Errorf("%v --help ended with %d: %s", c.args, c.help.Code, c.help.Stderr)
		}
		// A flag's manual may go over several lines: what lies between two flags is one.
		for i, flag := range strings.Split(c.help.Stdout, "\n      --") {
			flag, _, _ = strings.Cut(flag, "\n  -h, --help")
			if i > 0 && !strings.Contains(flag, "[$") {
				t.Errorf("%v: no variable is shown for --%s", c.args, flag)
			}
		}
		all.WriteString(strings.Join(strings.Fields(c.help.Stdout), " "))
	}
	for _, s := range config.Settings() {
		if !strings.Contains(all.String(), "--"+s.Flag+" ") || !strings.Contains(all.String(), "$"+s.Variable) {
			t.Errorf("no command has the flag --%s with the variable %s", s.Flag, s.Variable)
		}
	}
}

func TestAnUnknownVariableIsRefusedByEveryCommand(t *testing.T) {
	t.Parallel()
	for _, c := range commands(t) {
		result := servertest.Run(t, servertest.Command{Args: c.args, Env: []string{"KEYLEDGER_LISTNE=127.0.0.1:1"}})
		if result.Code != 2 || !strings.Contains(result.Stderr, "KEYLEDGER_LISTNE is unknown: did you mean KEYLEDGER_LISTEN?") {
			t.Errorf("%v ended with %d: %s", c.args, result.Code, result.Stderr)
		}
	}
}

func TestEveryKnownVariableIsAcceptedByEveryCommand(t *testing.T) {
	t.Parallel()
	var env []string
	for _, s := range config.Settings() {
		env = append(env, s.Variable+"="+map[string]string{
			"KEYLEDGER_TRUSTED_PROXIES": "10.0.0.0/8", "KEYLEDGER_BOOTSTRAP": "org_1", "KEYLEDGER_ORGANIZATION": "org_1", "KEYLEDGER_RATE_LIMIT": "1",
		}[s.Variable]+s.Default)
	}
	if result := servertest.Run(t, servertest.Command{Args: []string{"version"}, Env: env}); result.Code != 0 || !strings.HasPrefix(result.Stdout, "keyledger ") {
		t.Errorf("version ended with %d: %s", result.Code, result.Stderr)
	}
}

func TestWhatMakesNoSenseIsExplained(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		command string
		env     []string
		want    string
	}{
		{command: "serve --lisen :1", want: "unknown flag: --lisen (keyledger serve --help lists the flags)"},
		{command: "serve now", want: `takes no arguments, and there is "now"`},
		{command: "srve", want: `keyledger has no command "srve": did you mean serve?`},
		{command: "members ad", want: `keyledger members has no command "ad": did you mean add?`},
		{command: "members", want: "needs one of its commands"},
		{command: "bootstrap", want: "--organization (KEYLEDGER_ORGANIZATION) is needed"},
		{command: "bootstrap --system --organization org_1", want: "exclude each other"},
		{command: "bootstrap --organization system", want: "use --system"},
		{command: "bootstrap --organization org_1 --scopes system:audit", want: "need --system"},
		{command: "bootstrap --system --scopes read", want: "must all begin with system:"},
		{command: "bootstrap --organization org_1 --scopes re.ad", want: "scopes: must each be"},
		{command: "bootstrap --organization a.b", want: "--organization (KEYLEDGER_ORGANIZATION) must be 1 to 64 letters"},
		{command: "members add --organization org_1", want: "--user (KEYLEDGER_USER) is needed"},
		{command: "token", want: "--user (KEYLEDGER_USER) is needed"},
		{command: "token --user u --ttl 0s", want: "--ttl (KEYLEDGER_TTL) must be more than 0"},
		{command: "epoch raise", want: "--reason (KEYLEDGER_REASON) is needed"},
		{command: "serve", env: []string{"KEYLEDGER_FLUSH_INTERVAL=soon"}, want: "must be a duration such as"},
	} {
		result := servertest.Run(t, servertest.Command{Args: strings.Fields(test.command), Env: test.env})
		if result.Code != 2 || !strings.Contains(result.Stderr, test.want) || result.Stdout != "" {
			t.Errorf("%s ended with %d: %s\nwant %q", test.command, result.Code, result.Stderr, test.want)
		}
	}
}

func TestACommandWithoutALedgerSaysWhereItLooked(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "misspelt")
	for _, command := range []string{"status", "replay", "stream rebuild --yes", "epoch raise --reason x --yes", "members list --organization org_1"} {
		result := servertest.Run(t, servertest.Command{Args: append(strings.Fields(command), "--data-dir", dir)})
		if result.Code != 1 || !strings.Contains(result.Stderr, "there is no ledger in "+dir) {
			t.Errorf("%s ended with %d: %s", command, result.Code, result.Stderr)
		}
		if _, err := os.Stat(dir); err == nil {
			t.Fatalf("%s has made the directory", command)
		}
	}
}

func TestAHealthcheckWithoutAServerFails(t *testing.T) {
	t.Parallel()
	result := servertest.Run(t, servertest.Command{Args: []string{"healthcheck", "--listen", "127.0.0.1:1"}})
	if result.Code != 1 || !strings.Contains(result.Stderr, "http://127.0.0.1:1/readyz") {
		t.Errorf("it ended with %d: %s", result.Code, result.Stderr)
	}
}

func TestCompletionsAreThere(t *testing.T) {
	t.Parallel()
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if result := servertest.Run(t, servertest.Command{Args: []string{"completion", shell}}); result.Code != 0 || result.Stdout == "" {
			t.Errorf("completion %s ended with %d: %s", shell, result.Code, result.Stderr)
		}
	}
}
