package config_test

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"

	"keyledger/internal/config"
)

func load(t *testing.T, environ []string, arguments ...string) (config.Config, error) {
	t.Helper()
	flags := pflag.NewFlagSet("test", pflag.ContinueOnError)
	var names []string
	for _, s := range config.Settings() {
		names = append(names, s.Flag)
	}
	config.Register(flags, names...)
	if err := flags.Parse(arguments); err != nil {
		t.Fatal(err)
	}
	return config.Load(flags, environ)
}

func mustLoad(t *testing.T, environ []string, arguments ...string) config.Config {
	t.Helper()
	c, err := load(t, environ, arguments...)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestEverySettingHasAManualAVariableAndAFlag(t *testing.T) {
	t.Parallel()
	flags := map[string]bool{}
	for _, s := range config.Settings() {
		if s.Manual == "" || s.Variable == "" || s.Flag == "" {
			t.Errorf("%s: manual %q, variable %q, flag %q", s.Field, s.Manual, s.Variable, s.Flag)
		}
		if flags[s.Flag] {
			t.Errorf("%s: the flag --%s is there twice", s.Field, s.Flag)
		}
		flags[s.Flag] = true
	}
}

func TestAFlagGoesBeforeTheEnvironmentBeforeTheDefault(t *testing.T) {
	t.Parallel()
	if got := mustLoad(t, nil).Listen; got != "127.0.0.1:8080" {
		t.Errorf("by default it listens on %q", got)
	}
	environ := []string{"KEYLEDGER_LISTEN=127.0.0.1:1", "PORT=2"}
	if got := mustLoad(t, environ).Listen; got != "127.0.0.1:1" {
		t.Errorf("with a variable it listens on %q", got)
	}
	if got := mustLoad(t, environ, "--listen", "127.0.0.1:3").Listen; got != "127.0.0.1:3" {
		t.Errorf("with a flag it listens on %q", got)
	}
	if got := mustLoad(t, []string{"PORT=2", "KEYLEDGER_LISTEN="}).Listen; got != ":2" {
		t.Errorf("with PORT alone it listens on %q", got)
	}
}

func TestEveryKindOfSettingIsRead(t *testing.T) {
	t.Parallel()
	c := mustLoad(t, []string{
		"KEYLEDGER_FLUSH_INTERVAL=250ms", "KEYLEDGER_DEFAULT_RATE_LIMIT=7", "LOG_LEVEL=debug", "KEYLEDGER_JSON=true",
		"KEYLEDGER_TRUSTED_PROXIES=10.1.2.3/8, 192.0.2.1,2001:db8::/32", "KEYLEDGER_JWT_ROLES=owner,admin", "KEYLEDGER_LOG_FORMAT=text",
		"KEYLEDGER_ORGANIZATION=org_1", "KEYLEDGER_RATE_LIMIT=0", "KEYLEDGER_MIGRATE=false", "KEYLEDGER_VERIFY_AUTH=required",
	})
	networks := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("2001:db8::/32")}
	if diff := cmp.Diff(networks, []netip.Prefix(c.TrustedProxies), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
	if c.FlushInterval != 250*time.Millisecond || c.DefaultRateLimit != 7 || c.LogLevel != slog.LevelDebug || !c.JSON || c.LogFormat != config.LogText ||
		c.Organization != "org_1" || c.RateLimit == nil || *c.RateLimit != 0 || c.Migrate || c.VerifyAuth != config.VerifyAuthRequired {
		t.Errorf("read %+v", c)
	}
	if diff := cmp.Diff([]string{"owner", "admin"}, c.JWTRoles); diff != "" {
		t.Error(diff)
	}
	if c := mustLoad(t, nil); c.RateLimit != nil || !c.Migrate {
		t.Errorf("the defaults are %+v", c)
	}
}

func TestASwitchNeedsNoValue(t *testing.T) {
	t.Parallel()
	if c := mustLoad(t, nil, "--json", "--migrate=false"); !c.JSON || c.Migrate {
		t.Errorf("read json %v, migrate %v", c.JSON, c.Migrate)
	}
}

func TestASecretIsReadFromItsFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, []byte("from-the-file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"KEYLEDGER_JWT_SECRET", "KEYLEDGER_MASTER_KEY", "DATABASE_URL", "NATS_URL"} {
		c := mustLoad(t, []string{name + "_FILE=" + path})
		got := map[string]string{
			"KEYLEDGER_JWT_SECRET": c.JWTSecret.Reveal(), "KEYLEDGER_MASTER_KEY": c.MasterKey.Reveal(),
			"DATABASE_URL": c.DatabaseURL.Reveal(), "NATS_URL": c.NATSURL.Reveal(),
		}[name]
		if got != "from-the-file" {
			t.Errorf("%s_FILE gave %q", name, got)
		}
	}
	if c := mustLoad(t, []string{"KEYLEDGER_JWT_SECRET_FILE=" + path}, "--jwt-secret", "from-the-flag"); c.JWTSecret.Reveal() != "from-the-flag" {
		t.Error("the file went before the flag")
	}
}

func TestWhatCannotBeReadIsNamed(t *testing.T) {
	t.Parallel()
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, []byte("\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for environ, want := range map[string]string{
		"KEYLEDGER_LISTNE=1":                                      "KEYLEDGER_LISTNE is unknown: did you mean KEYLEDGER_LISTEN?",
		"KEYLEDGER_JWT_SECRT_FILE=/x":                             "KEYLEDGER_JWT_SECRT_FILE is unknown: did you mean KEYLEDGER_JWT_SECRET_FILE?",
		"KEYLEDGER_FOO=1":                                         "KEYLEDGER_FOO is unknown: keyledger serve --help",
		"KEYLEDGER_SOMETHING_ELSE_ALTOGETHER=1":                   "KEYLEDGER_SOMETHING_ELSE_ALTOGETHER is unknown: keyledger serve --help",
		"KEYLEDGER_SERVICE_HOST=10.0.0.1":                         "KEYLEDGER_SERVICE_HOST is unknown",
		"KEYLEDGER_FLUSH_INTERVAL=soon":                           "--flush-interval (KEYLEDGER_FLUSH_INTERVAL) must be a duration such as",
		"KEYLEDGER_DEFAULT_RATE_LIMIT=-1":                         "--default-rate-limit (KEYLEDGER_DEFAULT_RATE_LIMIT) must be a number",
		"KEYLEDGER_TRUSTED_PROXIES=10.0.0.0/99":                   "--trusted-proxies (KEYLEDGER_TRUSTED_PROXIES) must be networks such as",
		"KEYLEDGER_LOG_FORMAT=xml":                                "--log-format (KEYLEDGER_LOG_FORMAT) must be one of: auto, json, text",
		"KEYLEDGER_BOOTSTRAP=a b":                                 "--bootstrap (KEYLEDGER_BOOTSTRAP) must be 1 to 64 letters",
		"KEYLEDGER_BOOTSTRAP=system":                              "keyledger bootstrap --system",
		"KEYLEDGER_MIGRATE=perhaps":                               "--migrate (KEYLEDGER_MIGRATE) must be true or false",
		"KEYLEDGER_KEY_PREFIX=BSK":                                "--key-prefix (KEYLEDGER_KEY_PREFIX) must be 1 to 16",
		"KEYLEDGER_TLS_CERT=x":                                    "both --tls-cert and --tls-key",
		"PORT=http":                                               "PORT must be the number of a port",
		"KEYLEDGER_MASTER_KEY_FILE=/nowhere/at/all":               "KEYLEDGER_MASTER_KEY_FILE",
		"KEYLEDGER_MASTER_KEY_FILE=" + empty:                      "is empty",
		"DATABASE_URL=x\nDATABASE_URL_FILE=y":                     "DATABASE_URL and DATABASE_URL_FILE are both set",
		"KEYLEDGER_DATABASE_ADMIN_URL=postgres://owner@db/ledger": "--database-url (DATABASE_URL) is not",
		"NATS_CREDS=x":                                            "--nats-url (NATS_URL) is not",
		"KEYLEDGER_FLUSH_INTERVAL=0s":                             "must be more than 0",
	} {
		_, err := load(t, strings.Split(environ, "\n"))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want it to say %q", environ, err, want)
		}
	}
}

func TestAllThatIsWrongIsSaidAtOnce(t *testing.T) {
	t.Parallel()
	_, err := load(t, []string{"KEYLEDGER_ONE=1", "KEYLEDGER_TWO=2"})
	if err == nil || !strings.Contains(err.Error(), "KEYLEDGER_ONE") || !strings.Contains(err.Error(), "KEYLEDGER_TWO") {
		t.Error(err)
	}
	_, err = load(t, []string{"KEYLEDGER_TTL=x", "KEYLEDGER_MIGRATE=x"})
	if err == nil || !strings.Contains(err.Error(), "KEYLEDGER_TTL") || !strings.Contains(err.Error(), "KEYLEDGER_MIGRATE") {
		t.Error(err)
	}
}

func TestKubernetesServiceLinksAreNoSettings(t *testing.T) {
	t.Parallel()
	environ := []string{
		"KUBERNETES_SERVICE_HOST=10.0.0.1", "KEYLEDGER_SERVICE_HOST=10.0.0.2", "KEYLEDGER_SERVICE_PORT_HTTP=80",
		"KEYLEDGER_PORT=tcp://10.0.0.2:80", "KEYLEDGER_PORT_80_TCP_ADDR=10.0.0.2", "KEYLEDGER_HEADLESS_PORT_80_TCP=tcp://10.0.0.2:80",
	}
	mustLoad(t, environ)
	if _, err := load(t, append(environ, "KEYLEDGER_LISTNE=1")); err == nil {
		t.Error("a misspelt variable was accepted")
	}
}

func TestNoSecretIsEverShown(t *testing.T) {
	t.Parallel()
	const canary = "c4n4ry"
	c := mustLoad(t, []string{
		"KEYLEDGER_JWT_SECRET=" + canary, "KEYLEDGER_MASTER_KEY=" + canary,
		"DATABASE_URL=postgres://user:" + canary + "@db.example:5432/ledger?sslpassword=" + canary,
		"KEYLEDGER_DATABASE_ADMIN_URL=host=db user=owner password=" + canary,
		"NATS_URL=nats://user:" + canary + "@n1.example:4222,nats://" + canary + "@n2.example:4222",
	})
	var shown []string
	for _, attr := range c.Changed() {
		shown = append(shown, attr.String())
	}
	marshalled, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	all := strings.Join(append(shown, fmt.Sprintf("%v %+v %#v %s", c, c, c, marshalled)), "\n")
	if strings.Contains(all, canary) {
		t.Errorf("a secret is shown in\n%s", all)
	}
	for _, want := range []string{"jwt-secret=[redacted]", "database-url=postgres://user:xxxxx@db.example:5432/ledger", "nats-url=nats://user:xxxxx@n1.example:4222,nats://xxxxx@n2.example:4222"} {
		if !strings.Contains(all, want) {
			t.Errorf("%q is not shown in\n%s", want, strings.Join(shown, "\n"))
		}
	}
}

func TestOnlyWhatDiffersFromTheDefaultsIsShown(t *testing.T) {
	t.Parallel()
	if got := mustLoad(t, nil).Changed(); len(got) != 0 {
		t.Errorf("the defaults are shown as %v", got)
	}
	got := mustLoad(t, []string{"KEYLEDGER_BOOTSTRAP=org_1", "LOG_LEVEL=warn"}).Changed()
	if text := fmt.Sprint(got); !strings.Contains(text, "bootstrap=org_1") || !strings.Contains(text, "log-level=WARN") || len(got) != 2 {
		t.Errorf("shown are %v", got)
	}
}
