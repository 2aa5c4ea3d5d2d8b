package backing

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"keyledger/domain"
	"keyledger/eventstore"
	"keyledger/internal/config"
	"keyledger/internal/datadir"
	"keyledger/internal/postgres"
	"keyledger/migrations"
)

// Database is a Postgres.
type Database struct {
	URL      string // the service's login, the shortest way
	Endpoint string // the same for other programs
	AdminURL string // the owner
	Embedded bool

	server *postgres.Server // nil unless it was started here
}

// StartDatabase starts the embedded Postgres of a locked data directory, or
// waits for the one that is configured.
func StartDatabase(ctx context.Context, dir *datadir.Dir, c config.Config, logger *slog.Logger) (*Database, error) {
	if c.DatabaseURL.IsSet() {
		d := configured(c)
		return d, d.await(ctx, c.DatabaseWait, logger)
	}
	server, err := postgres.Start(ctx, postgres.Options{
		Dir: dir.Path("postgres"), Logger: logger, Binaries: c.PostgresBin, Mirror: c.PostgresMirror,
	})
	if err != nil {
		return nil, err
	}
	return &Database{
		URL: server.SocketURL(), Endpoint: server.URL(), AdminURL: server.AdminURL(), Embedded: true, server: server,
	}, nil
}

func configured(c config.Config) *Database {
	d := &Database{URL: c.DatabaseURL.Reveal(), Endpoint: c.DatabaseURL.Reveal(), AdminURL: c.DatabaseAdminURL.Reveal()}
	if d.AdminURL == "" {
		d.AdminURL = d.URL
	}
	return d
}

// Gone is closed when an embedded Postgres has ended for good, and never
// otherwise: one that crashes is started again.
func (d *Database) Gone() <-chan struct{} {
	if d.server == nil {
		return nil
	}
	return d.server.Done()
}

// Err says why Gone is closed.
func (d *Database) Err() error { return d.server.Err() }

// Stop ends what StartDatabase has started.
func (d *Database) Stop(ctx context.Context) error {
	if d == nil || d.server == nil {
		return nil
	}
	return d.server.Stop(ctx)
}

// Migrate applies what the database lacks, and lets the service's login in.
func (d *Database) Migrate(ctx context.Context, logger *slog.Logger) error {
	if err := migrations.Apply(ctx, d.AdminURL, logger); err != nil {
		if refused := (*pgconn.PgError)(nil); errors.As(err, &refused) && refused.Code == insufficientPrivilege {
			return fmt.Errorf("bring the database up to date: this login is not its owner: name the owner's with --database-admin-url (KEYLEDGER_DATABASE_ADMIN_URL), "+
				"or run keyledger migrate with it and start with --migrate=false: %w", plain(err))
		}
		return eventstore.Wrap(err, "bring the database up to date as its owner")
	}
	if d.AdminURL == d.URL || d.Embedded {
		return nil
	}
	return d.admit(ctx)
}

const insufficientPrivilege = "42501"

// admit makes the service's login a member of the role that may append to the log.
func (d *Database) admit(ctx context.Context) error {
	login, err := pgx.ParseConfig(d.URL)
	if err != nil {
		return fmt.Errorf("parse the database URL: %w", err)
	}
	conn, err := pgx.Connect(ctx, d.AdminURL)
	if err != nil {
		return eventstore.Wrap(err, "connect to the database as its owner")
	}
	defer conn.Close(context.WithoutCancel(ctx)) //nolint:errcheck // nothing was left to do
	var member bool
	err = conn.QueryRow(ctx, `SELECT pg_has_role($1, 'keyledger_service', 'MEMBER')`, login.User).Scan(&member)
	if err == nil && !member {
		_, err = conn.Exec(ctx, `GRANT keyledger_service TO `+pgx.Identifier{login.User}.Sanitize())
	}
	if err != nil {
		return fmt.Errorf("let the login %s in: as a superuser, GRANT keyledger_service TO it: %w", login.User, err)
	}
	return nil
}

const (
	firstPause    = 100 * time.Millisecond
	longestPause  = 2 * time.Second
	attemptWithin = 5 * time.Second
)

// await returns when the database lets its owner in. What a longer wait cannot
// mend, such as a wrong password, is an error at once.
func (d *Database) await(ctx context.Context, patience time.Duration, logger *slog.Logger) error {
	url := config.NewURL(d.AdminURL)
	started := time.Now()
	for pause, said := firstPause, false; ; pause = min(2*pause, longestPause) {
		err := attempt(ctx, d.AdminURL)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if !passes(err) {
			return fmt.Errorf("the database %s does not let us in: %w", url, plain(err))
		}
		waited := time.Since(started)
		if waited+pause > patience {
			return fmt.Errorf("the database %s cannot be reached after %s (--database-wait): is it running, and is the URL right? %w",
				url, waited.Round(time.Second), plain(err))
		}
		if !said {
			logger.Warn("the database cannot be reached yet: trying again", "database", url.String(), "for", patience, "error", plain(err))
			said = true
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func attempt(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, attemptWithin)
	defer cancel()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	return conn.Close(ctx)
}

// passes says whether an error may pass by itself.
func passes(err error) bool {
	var refused *pgconn.PgError
	var malformed *pgconn.ParseConfigError
	if errors.As(err, &malformed) {
		return false
	}
	if errors.As(err, &refused) {
		return domain.CodeOf(eventstore.Wrap(refused, "")) == domain.CodeUnavailable
	}
	return true
}

// plain is the last line of pgx's text: of several addresses that were tried,
// one tells enough.
func plain(err error) error {
	var refused *pgconn.PgError
	if errors.As(err, &refused) {
		return errors.New(refused.Message)
	}
	lines := strings.Split(strings.TrimSpace(err.Error()), "\n")
	return errors.New(strings.TrimSpace(lines[len(lines)-1]))
}
