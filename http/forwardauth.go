package http

import (
	"bytes"
	"net/url"
	"strconv"
	"strings"

	"github.com/gofiber/fiber/v2"
	"github.com/valyala/fasthttp"

	"keyledger/domain"
)

const (
	forwardAuthPath = "/forward-auth"

	headerKeyID        = "X-Keyledger-Key-Id"
	headerOrganization = "X-Keyledger-Organization-Id"
	headerScopes       = "X-Keyledger-Scopes"
	headerStatus       = "X-Keyledger-Status"

	challenge = `Bearer realm="keyledger"`
)

// isForwardAuth says whether a gateway asks. It looks at the request's target as it
// was sent: some gateways append the path that their client asked for, and nothing
// in that may lead to another route, or be resolved as "..".
func isForwardAuth(target []byte) bool {
	rest, ok := bytes.CutPrefix(target, []byte(forwardAuthPath))
	return ok && (len(rest) == 0 || rest[0] == '/' || rest[0] == '?')
}

// forwardAuthHandler answers every method, also those that Fiber does not know.
func (s *Server) forwardAuthHandler() fasthttp.RequestHandler {
	handle := s.serve(&route{pattern: forwardAuthPath, dialect: native, handle: s.forwardAuth, lean: true, meter: s.meter.route(forwardAuthPath)})
	return func(c *fasthttp.RequestCtx) {
		ctx := s.fiber.AcquireCtx(c)
		defer s.fiber.ReleaseCtx(ctx)
		_ = handle(ctx) // it has answered whatever failed
	}
}

// gate is what a gateway was configured to ask for.
type gate struct {
	required domain.Scopes
	within   domain.OrganizationID
	// masked: only 200, 401 and 403 are answered, since the gateway takes everything
	// else for a fault; the true status stands in a header.
	masked bool
	// durable: the request passes when the use is in the log.
	durable bool
}

// forwardAuth tells a gateway whether to let a request pass.
func (s *Server) forwardAuth(r *request) error {
	r.set(fiber.HeaderCacheControl, "no-store")
	g, err := readGate(r.target())
	if err == nil {
		err = s.pass(r, &g)
	}
	if err != nil {
		r.fail(err)
		r.deny(&g, known(err).Code)
	}
	return nil
}

func (s *Server) pass(r *request, g *gate) error {
	c, err := r.credential()
	if err != nil {
		return err
	}
	if c.token != "" { // gateways ask about keys; a token is a key that nobody has
		c.digest = digest(c.token)
	}
	verdict, err := s.authenticateDurably(r, domain.Verification{Digest: c.digest, Required: g.required, Within: g.within, Now: r.arrived}, g.durable)
	if err != nil {
		return err
	}
	r.organization = verdict.Organization
	r.set(headerKeyID, verdict.Key.String())
	r.set(headerOrganization, string(verdict.Organization))
	r.set(headerScopes, strings.Join(verdict.Scopes.Strings(), " "))
	r.answer(fiber.StatusOK, "", nil)
	return nil
}

// deny completes a refusal: what a client can do about it (RFC 6750), and what nginx
// needs.
func (r *request) deny(g *gate, code domain.Code) {
	switch code {
	case domain.CodeUnauthenticated:
		if r.verdict != verdictNone { // a key was presented
			r.set(fiber.HeaderWWWAuthenticate, challenge+`, error="invalid_token"`)
		}
	case domain.CodeForbidden:
		r.set(fiber.HeaderWWWAuthenticate, challenge+`, error="insufficient_scope", scope="`+strings.Join(g.required.Strings(), " ")+`"`)
	default:
	}
	if !g.masked {
		return
	}
	status := r.status()
	r.set(headerStatus, strconv.Itoa(status))
	if status != fiber.StatusUnauthorized && status != fiber.StatusForbidden {
		r.setStatus(fiber.StatusForbidden)
	}
}

// readGate reads what a gateway asks for. It stands where the gateway's client cannot
// write:
//
//	/forward-auth?scope=read&organization=org_1        gateways that ask for one fixed address
//	/forward-auth/scope=read/organization=org_1/-/...  gateways that append what their client asked for
//
// Under /forward-auth/ the query is the client's and is not looked at, and what
// follows the hyphen is the client's path. Should a gateway be configured so that its client can
// add to either, then what it adds can only be refused, or ask for more: scopes
// add up, everything else is given once, and what is not known is an error.
func readGate(target string) (gate, error) {
	path, query, _ := strings.Cut(target[len(forwardAuthPath):], "?")
	if path == "" {
		return readGateQuery(query)
	}
	var g gate
	var scopes []string
	segments := strings.Split(path[1:], "/")
	for i, segment := range segments {
		if segment == "-" {
			return g, g.require(scopes)
		}
		name, value, found := strings.Cut(segment, "=")
		if !found || !isGateName(name) {
			if i == 0 { // the client's path begins here: nothing was configured
				return g, nil
			}
			break
		}
		value, err := url.PathUnescape(value)
		if err != nil {
			return g, errGate(name, "is not well encoded")
		}
		if err := g.add(&scopes, name, value); err != nil {
			return g, err
		}
	}
	return g, errGate("path", `must end what the gateway asks for with "/-"`)
}

func readGateQuery(query string) (gate, error) {
	var g gate
	values, err := url.ParseQuery(query)
	if err != nil {
		return g, errGate("query", "is not well encoded")
	}
	var scopes []string
	// What shapes the answer comes first, for the answers to mistakes in the rest.
	for _, name := range []string{"deny", "organization", "durable", "scope"} {
		for _, value := range values[name] {
			if err := g.add(&scopes, name, value); err != nil {
				return g, err
			}
		}
		delete(values, name)
	}
	if len(values) > 0 {
		return g, errGate("query", "must have the parameters scope, organization, durable and deny alone: a gateway must not pass its client's query on")
	}
	return g, g.require(scopes)
}

func isGateName(name string) bool {
	return name == "scope" || name == "organization" || name == "deny" || name == "durable"
}

func (g *gate) add(scopes *[]string, name, value string) (err error) {
	switch name {
	case "scope":
		*scopes = append(*scopes, value)
	case "organization":
		if g.within != "" {
			return errGate(name, "must be given once")
		}
		g.within, err = domain.ParseOrganizationID(value)
	case "deny":
		if g.masked || value != "403" {
			return errGate(name, "must be 403, and given once")
		}
		g.masked = true
	case "durable":
		if g.durable || value != "true" {
			return errGate(name, "must be true, and given once")
		}
		g.durable = true
	}
	return err
}

func (g *gate) require(scopes []string) (err error) {
	if len(scopes) > 0 {
		g.required, err = domain.ParseScopes(scopes)
	}
	return err
}

func errGate(field, message string) error { return domain.Invalid(field, "%s", message) }

// lacking says which scopes were asked for.
func lacking(required domain.Scopes) error {
	if len(required) == 1 {
		return domain.Errorf(domain.CodeForbidden, "The API key lacks the scope %s", required[0])
	}
	return domain.Errorf(domain.CodeForbidden, "The API key lacks one of the scopes %s", strings.Join(required.Strings(), ", "))
}
