package http

import (
	"context"
	"strings"
	"time"

	"github.com/gofiber/fiber/v2"

	"keyledger/domain"
)

const (
	headerAPIKey = "X-Api-Key" // as HTTP libraries spell X-API-Key
	// headerStale says that the key was judged without a lease.
	headerStale = "X-Keyledger-Stale"
)

// The two things that BunShip says of a credential; Bullseye says one for both.
func errNoCredential() error {
	return domain.Errorf(domain.CodeUnauthenticated, "Missing or invalid authorization header")
}

func errBadCredential() error {
	return domain.Errorf(domain.CodeUnauthenticated, "Invalid or expired token")
}

func errNotMember() error {
	return domain.Errorf(domain.CodeForbidden, "Not a member of this organization")
}

// credential is what a request presented: a key, or a token when that is not empty.
type credential struct {
	digest domain.Digest
	token  string
}

// credential reads X-API-Key and Authorization. Two that differ are refused:
// whichever were taken, somebody would have meant the other one.
func (r *request) credential() (credential, error) {
	key, err := r.header(headerAPIKey)
	if err != nil {
		return credential{}, domain.Invalid("X-API-Key", "must not name two credentials")
	}
	authorization, err := r.header(fiber.HeaderAuthorization)
	if err != nil {
		return credential{}, domain.Invalid(fiber.HeaderAuthorization, "must not name two credentials")
	}
	scheme, bearer, _ := strings.Cut(authorization, " ")
	bearer = strings.TrimSpace(bearer)
	if key != "" && authorization != "" && (key != bearer || !strings.EqualFold(scheme, "bearer")) {
		return credential{}, domain.Invalid(fiber.HeaderAuthorization, "must not name another credential than X-API-Key")
	}
	switch {
	case key != "":
		return credential{digest: digest(key)}, nil
	case !strings.EqualFold(scheme, "bearer") || bearer == "":
		return credential{}, errNoCredential()
	case looksLikeToken(bearer):
		return credential{token: bearer}, nil
	}
	return credential{digest: digest(bearer)}, nil
}

// looksLikeToken tells the compact form of a JWT, three dot-separated base64url
// parts, from a key. The signature may be missing; it is refused later.
func looksLikeToken(text string) bool {
	dots := 0
	for i := range len(text) {
		switch c := text[i]; {
		case c == '.':
			dots++
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_':
		default:
			return false
		}
	}
	return dots == 2
}

// principal is who asks, and what stands behind it.
type principal struct {
	actor        domain.Actor
	organization domain.OrganizationID
	scopes       domain.Scopes // what it may hand on to a new key
	guard        domain.Guard  // the stream that authorised it, at its version
}

// admit says who asks, and whether they may do what needs a scope in the
// organization of the path. again says that this very request was admitted
// before, and is not to be charged a second time.
func (s *Server) admit(r *request, need domain.Scope, again bool) (principal, error) {
	c, err := r.credential()
	if err != nil {
		return principal{}, err
	}
	if c.token != "" {
		return s.admitUser(r, c.token)
	}
	verdict, err := s.authenticate(r, domain.Verification{Digest: c.digest, Required: domain.Scopes{need}, Now: s.clock(), Free: again})
	if err != nil {
		return principal{}, err
	}
	organization, err := r.dialect.organization(r.param("organization"))
	if err != nil {
		return principal{}, err
	}
	if verdict.Organization != organization {
		return principal{}, errNotMember()
	}
	r.organization = organization
	return principal{
		actor:        domain.Actor{Kind: domain.ActorKey, Key: verdict.Key},
		organization: organization,
		scopes:       verdict.Scopes,
		guard:        domain.Guard{Key: verdict.Key, Version: verdict.Version},
	}, nil
}

// admitSystem lets a key of the service itself in that has a scope, and gives what
// it was presented as.
func (s *Server) admitSystem(r *request, need domain.Scope) (credential, error) {
	c, err := r.credential()
	if err != nil {
		return c, err
	}
	if c.token != "" {
		return c, domain.Errorf(domain.CodeForbidden, "An API key with the scope %s is needed here", need)
	}
	verdict, err := s.authenticate(r, domain.Verification{Digest: c.digest, Required: domain.Scopes{need}, Now: s.clock()})
	if err == nil && verdict.Organization != domain.SystemOrganization {
		return c, domain.Errorf(domain.CodeForbidden, "A key of the service itself is needed here")
	}
	return c, err
}

// authenticate asks the index about the key that a request presents as its own.
func (s *Server) authenticate(r *request, v domain.Verification) (domain.Verdict, error) {
	return s.authenticateDurably(r, v, false)
}

func (s *Server) authenticateDurably(r *request, v domain.Verification, durable bool) (domain.Verdict, error) {
	verdict, err := s.judge(r.ctx, v, durable)
	if err != nil {
		return domain.Verdict{}, err
	}
	r.verdict = labelOf(&verdict)
	if verdict.Stale {
		r.set(headerStale, "true")
	}
	switch verdict.Outcome {
	case domain.OutcomeValid:
		r.limit = verdict.Limit
		return verdict, nil
	case domain.OutcomeInsufficientScope:
		r.limit = verdict.Limit
		return domain.Verdict{}, lacking(v.Required)
	case domain.OutcomeRateLimited:
		r.limit = verdict.Limit
		return domain.Verdict{}, domain.Errorf(domain.CodeRateLimited, "Rate limit exceeded")
	case domain.OutcomeQuotaExceeded:
		r.limit = verdict.Limit
		if next := verdict.Quota.Reset; !next.IsZero() {
			r.retryAfter = max(next.Sub(s.clock()), time.Second)
		}
		return domain.Verdict{}, domain.Errorf(domain.CodeQuotaExceeded, "The key's quota is used up")
	case domain.OutcomeNotFound:
		if err := s.unknown(r, 1); err != nil {
			return domain.Verdict{}, err
		}
		return domain.Verdict{}, errBadCredential()
	default: // revoked, disabled, expired: like an unknown one
		return domain.Verdict{}, errBadCredential()
	}
}

// admitUser admits a member of the organization with a token.
func (s *Server) admitUser(r *request, text string) (principal, error) {
	token, err := s.tokens.verify(r.ctx, text)
	if err != nil {
		return principal{}, err
	}
	r.verdict = verdictUser
	organization, err := r.dialect.organization(r.param("organization"))
	if err != nil {
		return principal{}, err
	}
	p, err := s.memberBy(r.ctx, token, organization)
	if err == nil {
		r.organization = organization
	}
	return p, err
}

// member says what a token may do in an organization now.
func (s *Server) member(ctx context.Context, text string, organization domain.OrganizationID) (principal, error) {
	token, err := s.tokens.verify(ctx, text)
	if err != nil {
		return principal{}, err
	}
	return s.memberBy(ctx, token, organization)
}

// memberBy lets a member do everything there, unless the deployment asks for roles.
func (s *Server) memberBy(ctx context.Context, token token, organization domain.OrganizationID) (principal, error) {
	p := principal{
		actor:        domain.Actor{Kind: domain.ActorUser, User: token.user},
		organization: organization,
		scopes:       domain.Scopes{domain.ScopeAll},
	}
	role, member := token.roles[organization]
	if token.roles == nil { // it carries no organizations: the ledger knows
		members, version, err := s.ledger.Organization(ctx, organization)
		if err != nil {
			return principal{}, err
		}
		m, ok := members.Members[token.user]
		role, member = m.Role, ok
		p.guard = domain.Guard{Organization: organization, Version: version}
	}
	switch {
	case !member || organization == domain.SystemOrganization: // nobody is a member of that
		return principal{}, errNotMember()
	case !s.tokens.acceptsRole(role):
		return principal{}, domain.Errorf(domain.CodeForbidden, "Your role in this organization does not allow this")
	}
	return p, nil
}

// metadata is what a write's event tells about its request.
func (r *request) metadata(actor domain.Actor) domain.Metadata {
	return domain.Metadata{Actor: actor, RequestID: r.id(), TraceID: r.trace, Source: r.source()}
}
