package http

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	nethttp "net/http"
	"slices"
	"time"

	"github.com/MicahParks/jwkset"
	"github.com/MicahParks/keyfunc/v3"
	"github.com/golang-jwt/jwt/v5"

	"keyledger/domain"
)

// TokenOptions say whose JWTs are believed. With neither a secret nor a JWKS, none is.
type TokenOptions struct {
	Secret   []byte // HS256
	JWKSURL  string // RS256, ES256, EdDSA
	Issuer   string // checked when not empty
	Audience string // checked when not empty
	// Roles lets only members with one of these roles in. Empty: every member.
	Roles  []string
	Client *nethttp.Client // fetches the JWKS; nil: one of our own with a time limit
}

const (
	algHS256 = "HS256"
	algRS256 = "RS256"
	algES256 = "ES256"
	algEdDSA = "EdDSA"

	// leastSecretBytes is what RFC 7518, section 3.2 asks of a key for HS256.
	leastSecretBytes = 32
)

// tokens verifies JWTs.
type tokens struct {
	options TokenOptions
	parser  *jwt.Parser
	public  keyfunc.Keyfunc // nil without a JWKS
}

// token is what a verified JWT says.
type token struct {
	user domain.UserID
	// roles are the memberships that it carries; nil when it carries none, and the
	// ledger is to be asked.
	roles map[domain.OrganizationID]string
}

func newTokens(o TokenOptions, clock func() time.Time, logger *slog.Logger) (*tokens, error) {
	t := &tokens{options: o}
	var algorithms []string
	if len(o.Secret) > 0 {
		algorithms = append(algorithms, algHS256)
		if len(o.Secret) < leastSecretBytes {
			logger.Warn("the JWT secret is short: anybody who holds one token can try to guess it", "bytes", len(o.Secret), "least", leastSecretBytes)
		}
	}
	if o.JWKSURL != "" {
		algorithms = append(algorithms, algRS256, algES256, algEdDSA)
		store, err := newJWKS(o.JWKSURL, o.Client, clock)
		if err != nil {
			return nil, err
		}
		if t.public, err = keyfunc.New(keyfunc.Options{Storage: store, UseWhitelist: []jwkset.USE{jwkset.UseSig, ""}}); err != nil {
			return nil, fmt.Errorf("use the JWKS: %w", err)
		}
	}
	parser := []jwt.ParserOption{
		jwt.WithValidMethods(algorithms), jwt.WithExpirationRequired(), jwt.WithStrictDecoding(), jwt.WithTimeFunc(clock),
	}
	if o.Issuer != "" {
		parser = append(parser, jwt.WithIssuer(o.Issuer))
	}
	if o.Audience != "" {
		parser = append(parser, jwt.WithAudience(o.Audience))
	}
	if len(algorithms) > 0 {
		t.parser = jwt.NewParser(parser...)
	}
	return t, nil
}

// verify gives what a token says, errBadCredential when it proves nothing, and
// CodeUnavailable when its key could not be fetched.
func (t *tokens) verify(ctx context.Context, text string) (token, error) {
	if t.parser == nil {
		return token{}, errBadCredential()
	}
	var c claims
	_, err := t.parser.ParseWithClaims(text, &c, func(unverified *jwt.Token) (any, error) { return t.key(ctx, unverified) })
	if err != nil {
		if e := (*domain.Error)(nil); errors.As(err, &e) && e.Code == domain.CodeUnavailable {
			return token{}, e
		}
		return token{}, errBadCredential()
	}
	return c.token()
}

// key gives the key for a token's algorithm. Which kind of key that is follows
// from our configuration: a public key is never a secret for HS256, whatever the
// token's header says.
func (t *tokens) key(ctx context.Context, unverified *jwt.Token) (any, error) {
	if _, ok := unverified.Header["crit"]; ok {
		return nil, errors.New("the token has critical extensions, and we know none")
	}
	switch unverified.Method.Alg() {
	case algHS256:
		return t.options.Secret, nil
	case algRS256, algES256, algEdDSA:
		return t.public.KeyfuncCtx(ctx)(unverified)
	}
	return nil, errors.New("the token's algorithm is not allowed")
}

func (t *tokens) acceptsRole(role string) bool {
	return len(t.options.Roles) == 0 || slices.Contains(t.options.Roles, role)
}

// claims are those of a JWT that mean something here.
type claims struct {
	jwt.RegisteredClaims
	UserID           string          `json:"userId"`
	Organization     string          `json:"org_id"`
	OrganizationRole string          `json:"org_role"`
	Organizations    json.RawMessage `json:"organizations"`
}

// token reads the user and the memberships. sub goes before userId, since it is
// the one that issuers vouch for by standard. A token that carries memberships
// is confined to them: it may have been made for one organization on purpose.
func (c claims) token() (token, error) {
	name := c.Subject
	if name == "" {
		name = c.UserID
	}
	user, err := domain.ParseUserID(name)
	if err != nil {
		return token{}, errBadCredential()
	}
	t := token{user: user}
	add := func(organization, role string) {
		if t.roles == nil {
			t.roles = map[domain.OrganizationID]string{}
		}
		if role == "" {
			role = domain.DefaultRole
		}
		// A malformed id is nobody's, and still says that the token carries memberships.
		t.roles[domain.OrganizationID(organization)] = role
	}
	var list []string
	var roles map[string]string
	switch {
	case len(c.Organizations) == 0 || string(c.Organizations) == "null":
	case json.Unmarshal(c.Organizations, &list) == nil:
		t.roles = map[domain.OrganizationID]string{}
		for _, organization := range list {
			add(organization, "")
		}
	case json.Unmarshal(c.Organizations, &roles) == nil:
		t.roles = map[domain.OrganizationID]string{}
		for organization, role := range roles {
			add(organization, role)
		}
	default:
		t.roles = map[domain.OrganizationID]string{} // what cannot be read gives nothing
	}
	if c.Organization != "" {
		add(c.Organization, c.OrganizationRole)
	}
	return t, nil
}
