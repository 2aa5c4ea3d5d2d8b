package main

import (
	"context"
	"errors"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/spf13/cobra"

	"keyledger/domain"
	"keyledger/internal/backing"
	"keyledger/internal/datadir"
)

func (p *program) token() *cobra.Command {
	cmd := &cobra.Command{
		Use: "token", Short: "Make a JWT for a user",
		Long: `Make a JWT that the server accepts, signed with the configured secret, or with the
one that was drawn into the data directory. Without an organization, the
memberships that the ledger records decide what the user may do.`,
		Example: "  keyledger token --user user_1 --organization org_abc123 --ttl 1h",
	}
	return p.command(cmd, p.makeToken,
		[]string{"user", "organization", "role", "ttl", "json", "data-dir", "jwt-secret", "jwt-issuer", "jwt-audience"})
}

// tokenClaims are BunShip's, and the organization. sub and userId both name the user.
type tokenClaims struct {
	jwt.RegisteredClaims
	UserID           string `json:"userId"`
	Organization     string `json:"org_id,omitempty"`
	OrganizationRole string `json:"org_role,omitempty"`
}

func (p *program) makeToken(context.Context) error {
	c := p.config
	switch {
	case c.User == "":
		return need("user", "KEYLEDGER_USER")
	case c.TTL <= 0:
		return usageError{errors.New("--ttl (KEYLEDGER_TTL) must be more than 0")}
	}
	role, err := domain.ParseRole(c.Role)
	if err != nil {
		return usageError{err}
	}
	secret, origin, err := backing.JWTSecret(datadir.At(c.DataDir), c)
	switch {
	case err != nil:
		return err
	case secret == nil:
		return errors.New("tokens are signed by the owner of the JWKS here: set --jwt-secret (KEYLEDGER_JWT_SECRET), of the server as well, to make your own")
	case origin == backing.Drawn:
		p.say("A JWT secret was drawn into %s, since there was none: a server that runs on another directory does not know it.", datadir.At(c.DataDir).Path())
	}
	now := time.Now()
	claims := tokenClaims{
		RegisteredClaims: jwt.RegisteredClaims{
			Subject: string(c.User), Issuer: c.JWTIssuer, IssuedAt: jwt.NewNumericDate(now), ExpiresAt: jwt.NewNumericDate(now.Add(c.TTL)),
		},
		UserID: string(c.User), Organization: string(c.Organization),
	}
	if c.Organization != "" {
		claims.OrganizationRole = role
	}
	if c.JWTAudience != "" {
		claims.Audience = jwt.ClaimStrings{c.JWTAudience}
	}
	token, err := jwt.NewWithClaims(jwt.SigningMethodHS256, claims).SignedString(secret)
	if err != nil {
		return err
	}
	if c.JSON {
		return p.printJSON(map[string]string{"token": token, "expiresAt": claims.ExpiresAt.UTC().Format(time.RFC3339)})
	}
	return p.print("%s\n", token)
}
