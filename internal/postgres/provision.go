package postgres

import (
	"context"
	"fmt"
	"net/url"
	"strings"

	"github.com/jackc/pgx/v5"
)

const (
	database    = "keyledger"
	adminRole   = "keyledger_admin"
	serviceRole = "keyledger"
	groupRole   = "keyledger_service"
)

// provision creates the database and the roles that are missing. Every start
// does it, so a start that was interrupted half-way is completed by the next.
func (s *Server) provision(ctx context.Context) error {
	conn, err := connect(ctx, s.AdminURL(), "postgres")
	if err != nil {
		return fmt.Errorf("connect to the new database server: %w", err)
	}
	defer func() { _ = conn.Close(ctx) }()
	var roles, databases, members int
	err = conn.QueryRow(ctx, `
		SELECT (SELECT count(*) FROM pg_roles WHERE rolname IN ($1, $2)),
		       (SELECT count(*) FROM pg_database WHERE datname = $3),
		       (SELECT count(*) FROM pg_auth_members m
		          JOIN pg_roles g ON g.oid = m.roleid JOIN pg_roles r ON r.oid = m.member
		         WHERE g.rolname = $2 AND r.rolname = $1)`,
		serviceRole, groupRole, database).Scan(&roles, &databases, &members)
	if err != nil {
		return fmt.Errorf("look for the database and its roles: %w", err)
	}
	if roles < 2 || members < 1 {
		// The names are constants and the password is hexadecimal: nothing to quote.
		_, err := conn.Exec(ctx, strings.NewReplacer("SERVICE", serviceRole, "GROUP", groupRole, "PASSWORD_", s.passwords.service).Replace(`
			DO $$ BEGIN
				IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'SERVICE') THEN
					CREATE ROLE SERVICE LOGIN NOINHERIT;
				END IF;
				IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'GROUP') THEN
					CREATE ROLE GROUP NOLOGIN;
				END IF;
				ALTER ROLE SERVICE PASSWORD 'PASSWORD_';
				GRANT GROUP TO SERVICE;
			END $$`))
		if err != nil {
			return fmt.Errorf("create the service's roles: %w", err)
		}
	}
	if databases == 0 {
		if _, err := conn.Exec(ctx, "CREATE DATABASE "+database+" OWNER "+adminRole); err != nil {
			return fmt.Errorf("create the database: %w", err)
		}
	}
	return nil
}

func connect(ctx context.Context, address, name string) (*pgx.Conn, error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, fmt.Errorf("parse a database URL: %w", err)
	}
	u.Path = "/" + name
	return pgx.Connect(ctx, u.String())
}
