package config

import (
	"errors"
	"fmt"
	"os"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/caarlos0/env/v11"
	"github.com/spf13/pflag"

	"keyledger/domain"
)

const (
	ourPrefix  = "KEYLEDGER_"
	fileSuffix = "_FILE"
	listenName = "KEYLEDGER_LISTEN"
	portName   = "PORT"
)

// Load reads the settings: from the flags that were given, from the environment
// ("NAME=value" each), and else the defaults.
//
// The flags are laid over the environment, and the whole is read once, so that a
// value means the same wherever it came from.
func Load(flags *pflag.FlagSet, environ []string) (Config, error) {
	settings := Settings()
	values, err := environment(environ, settings)
	if err != nil {
		return Config{}, err
	}
	for _, s := range settings {
		if f := flags.Lookup(s.Flag); f != nil && f.Changed {
			values[s.Variable] = f.Value.String()
		}
	}
	if port, ok := values[portName]; ok && values[listenName] == "" {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return Config{}, fmt.Errorf("%s must be the number of a port", portName)
		}
		values[listenName] = ":" + port
	}
	var c Config
	err = env.ParseWithOptions(&c, env.Options{Environment: values, FuncMap: parsers()})
	if err != nil {
		return Config{}, explain(err, settings)
	}
	return c, c.check()
}

// environment gives the variables that count: those that are set to something,
// with secrets read from their files.
func environment(environ []string, settings []Setting) (map[string]string, error) {
	known := map[string]bool{}
	for _, s := range settings {
		known[s.Variable] = true
		if s.Secret {
			known[s.Variable+fileSuffix] = true
		}
	}
	values := map[string]string{}
	for _, pair := range environ {
		if name, value, ok := strings.Cut(pair, "="); ok && value != "" {
			values[name] = value
		}
	}
	var unknown []error
	_, inKubernetes := values["KUBERNETES_SERVICE_HOST"]
	for name := range values {
		if strings.HasPrefix(name, ourPrefix) && !known[name] && !(inKubernetes && serviceLink.MatchString(name)) {
			unknown = append(unknown, fmt.Errorf("the environment variable %s is unknown%s", name, suggestion(name, known)))
		}
	}
	if len(unknown) > 0 {
		return nil, errors.Join(sorted(unknown)...)
	}
	for _, s := range settings {
		path, ok := values[s.Variable+fileSuffix]
		if !s.Secret || !ok {
			continue
		}
		if values[s.Variable] != "" {
			return nil, fmt.Errorf("%s and %s are both set: set one of them", s.Variable, s.Variable+fileSuffix)
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.Variable+fileSuffix, err)
		}
		if values[s.Variable] = strings.TrimSpace(string(content)); values[s.Variable] == "" {
			return nil, fmt.Errorf("%s: %s is empty", s.Variable+fileSuffix, path)
		}
	}
	return values, nil
}

// serviceLink matches what Kubernetes puts into every container's environment
// for a Service whose name begins with keyledger.
var serviceLink = regexp.MustCompile(`^KEYLEDGER_([A-Z0-9_]+_)?(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_[0-9]+_(TCP|UDP|SCTP)(_[A-Z]+)?)?)$`)

// check holds settings against each other.
func (c Config) check() error {
	switch {
	case (c.TLSCert == "") != (c.TLSKey == ""):
		return errors.New("TLS needs both --tls-cert and --tls-key")
	case c.DatabaseAdminURL.IsSet() && !c.DatabaseURL.IsSet():
		return errors.New("--database-admin-url (KEYLEDGER_DATABASE_ADMIN_URL) is set and --database-url (DATABASE_URL) is not: the embedded Postgres needs neither")
	case c.NATSCreds != "" && !c.NATSURL.IsSet():
		return errors.New("--nats-creds (NATS_CREDS) is set and --nats-url (NATS_URL) is not: the embedded NATS needs neither")
	case c.DatabaseConnections < 2:
		return errors.New("--database-connections (KEYLEDGER_DATABASE_CONNECTIONS) must be at least 2")
	case c.StreamReplicas < 0 || c.StreamReplicas > 5:
		return errors.New("--stream-replicas (KEYLEDGER_STREAM_REPLICAS) must be 1 to 5")
	case c.Lease < 100*time.Millisecond || c.Lease > time.Minute:
		return errors.New("--lease (KEYLEDGER_LEASE) must be 100ms to 60s")
	case c.Stale == StaleServe && c.MaxStale < c.Lease:
		return errors.New("--max-stale (KEYLEDGER_MAX_STALE) must be at least the lease")
	case c.FlushInterval <= 0:
		return errors.New("--flush-interval (KEYLEDGER_FLUSH_INTERVAL) must be more than 0")
	case c.UnknownKeys == 0:
		return errors.New("--unknown-keys (KEYLEDGER_UNKNOWN_KEYS) must be more than 0")
	case c.DefaultRateLimit == 0 || c.DefaultRateLimit > domain.MostRateLimit:
		return fmt.Errorf("--default-rate-limit (KEYLEDGER_DEFAULT_RATE_LIMIT) must be 1 to %d", domain.MostRateLimit)
	case c.Bootstrap == domain.SystemOrganization:
		return fmt.Errorf("--bootstrap (KEYLEDGER_BOOTSTRAP): %s is the service's own organization: use keyledger bootstrap --system", c.Bootstrap)
	}
	return nil
}

// parsers read what is more than a text, and say what is wrong without
// repeating it.
func parsers() map[reflect.Type]env.ParserFunc {
	return map[reflect.Type]env.ParserFunc{
		reflect.TypeFor[domain.OrganizationID](): strictly(domain.ParseOrganizationID),
		reflect.TypeFor[domain.UserID]():         strictly(domain.ParseUserID),
		reflect.TypeFor[domain.KeyFormat]():      strictly(domain.ParseKeyFormat),
		reflect.TypeFor[time.Duration]():         strictly(parseDuration),
		reflect.TypeFor[bool]():                  strictly(parseBool),
		reflect.TypeFor[int]():                   strictly(parseNumber[int]),
		reflect.TypeFor[uint32]():                strictly(parseNumber[uint32]),
	}
}

func strictly[T any](parse func(string) (T, error)) env.ParserFunc {
	return func(text string) (any, error) {
		value, err := parse(text)
		var invalid *domain.Error
		if errors.As(err, &invalid) {
			err = errors.New(invalid.Message)
		}
		return value, err
	}
}

func parseDuration(text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		return 0, errors.New("must be a duration such as 500ms, 15s or 1h30m")
	}
	return d, nil
}

func parseBool(text string) (bool, error) {
	b, err := strconv.ParseBool(text)
	if err != nil {
		return false, errors.New("must be true or false")
	}
	return b, nil
}

func parseNumber[T int | uint32](text string) (T, error) {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 || n > 1<<31-1 {
		return 0, errors.New("must be a number from 0 on")
	}
	return T(n), nil
}

// explain names the flag and the variable of what cannot be read.
func explain(err error, settings []Setting) error {
	var all env.AggregateError
	if !errors.As(err, &all) {
		return err
	}
	var explained []error
	for _, err := range all.Errors {
		var parse env.ParseError
		if errors.As(err, &parse) {
			for _, s := range settings {
				if s.Field == parse.Name {
					err = fmt.Errorf("--%s (%s) %w", s.Flag, s.Variable, parse.Err)
				}
			}
		}
		explained = append(explained, err)
	}
	return errors.Join(sorted(explained)...)
}
