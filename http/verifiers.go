package http

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"iter"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/gofiber/fiber/v2"

	"keyledger/domain"
	"keyledger/index/wire"
)

// Verifiers is where those who verify keys in other processes hold their leases.
type Verifiers interface {
	// Join registers an embedded verifier; from now on revocations wait for it.
	Join(ctx context.Context, name string) (id domain.ID, lease time.Duration, err error)
	// Rejoin registers one again that was reaped.
	Rejoin(ctx context.Context, id domain.ID, name string) error
	// Renew renews a lease and says where the log ended. CodeNotFound: rejoin.
	Renew(ctx context.Context, id domain.ID) (domain.Position, error)
	// Observe renews the lease of all observers.
	Observe(ctx context.Context) (domain.Position, error)
	// Confirm says that a verifier has applied the log up to a position, for good.
	Confirm(id domain.ID, position domain.Position)
	// Leave ends a verifier that says yes no more.
	Leave(ctx context.Context, id domain.ID) error
	// Asked is the highest position that is to be confirmed. The channel is closed when it grows.
	Asked() (domain.Position, <-chan struct{})
	// Lease is how long leases last.
	Lease() time.Duration
}

// KeyFeed is what embedded verifiers learn the keys from, in frames of the package wire, and
// where their uses go.
type KeyFeed interface {
	// Snapshot gives all keys, part by part until io.EOF, compressed with zstd, from where a cursor
	// stands. stop is called in the end. CodeNotFound: begin anew.
	Snapshot(cursor string) (next func(context.Context) ([]byte, error), stop func(), err error)
	// Changes gives a header, and then what changes behind a position, for ever.
	Changes(ctx context.Context, after domain.Position) iter.Seq2[[]byte, error]
	// Record records what a verifier has counted. The same report counts once.
	Record(ctx context.Context, verifier domain.ID, report wire.Report) (version uint64, err error)
	// History is what positions belong to.
	History() (ledger domain.ID, epoch uint32)
}

const (
	verifiersPath = "/api/v1/verifiers"
	usesSuffix    = "/uses"

	mostReportBytes  = wire.MostFrame + 64
	mostVerifierName = 100
)

func (s *Server) verifierRoutes() []*route {
	if s.options.Verifiers == nil || s.options.KeyFeed == nil {
		return nil
	}
	const (
		get, post, del = fiber.MethodGet, fiber.MethodPost, fiber.MethodDelete
		one            = verifiersPath + "/:verifier"
	)
	return []*route{
		{method: post, pattern: verifiersPath, dialect: native, handle: s.joinVerifier},
		{method: get, pattern: verifiersPath + "/snapshot", dialect: native, handle: s.verifierSnapshot},
		{method: get, pattern: verifiersPath + "/changes", dialect: native, handle: s.verifierChanges},
		{method: post, pattern: one + "/lease", dialect: native, handle: quiet(s.renewVerifier), lean: true},
		{method: post, pattern: one + "/confirmation", dialect: native, handle: quiet(s.confirmVerifier), lean: true},
		{method: post, pattern: one + usesSuffix, dialect: native, handle: quiet(s.verifierUses), lean: true},
		{method: del, pattern: one, dialect: native, handle: s.leaveVerifier},
	}
}

// quiet is for what every verifier asks all the time: it is not logged as other requests
// are, and ends in time like them.
func quiet(handle func(*request) error) func(*request) error {
	return func(r *request) error {
		ctx, cancel := context.WithTimeout(r.ctx, requestTimeout)
		defer cancel()
		r.ctx = ctx
		return handle(r)
	}
}

// admitVerifying lets a key of the service itself in that may run verifiers. What verifiers
// ask costs none of its limit: they ask several times a second, so that they can answer.
func (s *Server) admitVerifying(r *request) (credential, error) {
	c, err := r.credential()
	if err != nil {
		return c, err
	}
	if c.token != "" {
		return c, domain.Errorf(domain.CodeForbidden, "An API key with the scope %s is needed here", domain.ScopeSystemVerify)
	}
	verdict, err := s.authenticate(r, domain.Verification{Digest: c.digest, Required: domain.Scopes{domain.ScopeSystemVerify}, Now: s.clock(), Free: true})
	if err == nil && verdict.Organization != domain.SystemOrganization {
		return c, domain.Errorf(domain.CodeForbidden, "A key of the service itself is needed here")
	}
	return c, err
}

// ticket is what a verifier is known by: its kind and its id, authenticated, so that
// every node knows who has joined, and nobody reports uses who has not.
type ticket struct {
	observer bool
	id       domain.ID
}

const (
	ticketMAC   = 16
	ticketBytes = 1 + 16 + ticketMAC
)

func (s *Server) ticketMAC(raw []byte) []byte {
	h := hmac.New(sha256.New, s.cursors.key)
	h.Write([]byte("keyledger verifier"))
	h.Write(raw)
	return h.Sum(nil)[:ticketMAC]
}

func (s *Server) writeTicket(t ticket) string {
	raw := append(make([]byte, 0, ticketBytes), 'e')
	if t.observer {
		raw[0] = 'o'
	}
	raw = append(raw, t.id[:]...)
	return base64.RawURLEncoding.EncodeToString(append(raw, s.ticketMAC(raw)...))
}

func (s *Server) readTicket(text string) (t ticket, err error) {
	raw, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(raw) != ticketBytes || !hmac.Equal(raw[ticketBytes-ticketMAC:], s.ticketMAC(raw[:ticketBytes-ticketMAC])) {
		return t, domain.Errorf(domain.CodeNotFound, "no such verifier: join")
	}
	t.observer = raw[0] == 'o'
	copy(t.id[:], raw[1:])
	return t, nil
}

// verifierOf gives the verifier of the path.
func (s *Server) verifierOf(r *request) (ticket, error) {
	if _, err := s.admitVerifying(r); err != nil {
		return ticket{}, err
	}
	return s.readTicket(r.param("verifier"))
}

// joinVerifier answers POST /api/v1/verifiers.
func (s *Server) joinVerifier(r *request) error {
	if _, err := s.admitVerifying(r); err != nil {
		return err
	}
	body, err := r.jsonBody()
	if err != nil {
		return err
	}
	var kind, name, before string
	err = decodeObject(body, []string{"kind", "name", "verifier"}, func(d *decoder, member string) (err error) {
		switch member {
		case "kind":
			kind, err = d.text(member)
		case "name":
			name, err = d.text(member)
		case "verifier":
			before, err = d.text(member)
		}
		return err
	})
	if err != nil {
		return err
	}
	if name == "" || utf8.RuneCountInString(name) > mostVerifierName {
		return domain.Invalid("name", "must be 1 to %d characters", mostVerifierName)
	}
	if kind != "embedded" && kind != "observer" {
		return domain.Invalid("kind", "must be embedded or observer")
	}
	t := ticket{observer: kind == "observer"}
	lease := s.options.Verifiers.Lease()
	if before != "" {
		if t, err = s.readTicket(before); err != nil {
			return err
		}
		if t.observer != (kind == "observer") {
			return domain.Invalid("kind", "must be what the verifier was")
		}
	}
	switch {
	case t.observer && before == "":
		// It is registered nowhere. The id is the name under which it reports uses.
		t.id, err = domain.NewID(s.clock(), rand.Reader)
	case t.observer:
	case before == "":
		t.id, lease, err = s.options.Verifiers.Join(r.ctx, name)
	default:
		err = s.options.Verifiers.Rejoin(r.ctx, t.id, name)
	}
	if err != nil {
		return err
	}
	ledger, epoch := s.options.KeyFeed.History()
	answer := fmt.Appendf(nil, `{"verifier":%q,"id":%q,"kind":%q,"leaseMs":%d,"ledger":%q,"epoch":%d}`,
		s.writeTicket(t), t.id.UUID(), kind, lease.Milliseconds(), ledger.UUID(), epoch)
	r.answer(fiber.StatusCreated, fiber.MIMEApplicationJSON, answer)
	return nil
}

// renewVerifier answers POST /api/v1/verifiers/{verifier}/lease: where the log ended
// after the question came. The verifier has read its clock before it asked.
func (s *Server) renewVerifier(r *request) error {
	t, err := s.verifierOf(r)
	if err != nil {
		return err
	}
	// Later than that, the answer would be worth nothing.
	ctx, cancel := context.WithTimeout(r.ctx, s.options.Verifiers.Lease())
	defer cancel()
	var head domain.Position
	if t.observer {
		head, err = s.options.Verifiers.Observe(ctx)
	} else {
		head, err = s.options.Verifiers.Renew(ctx, t.id)
	}
	if err != nil {
		return err
	}
	_, epoch := s.options.KeyFeed.History()
	token := domain.Token{Epoch: epoch, Lane: domain.Lifecycle, Position: head}
	r.answer(fiber.StatusOK, fiber.MIMEApplicationJSON, fmt.Appendf(nil, `{"head":%q,"leaseMs":%d}`, token, s.options.Verifiers.Lease().Milliseconds()))
	return nil
}

// confirmVerifier answers POST /api/v1/verifiers/{verifier}/confirmation.
func (s *Server) confirmVerifier(r *request) error {
	t, err := s.verifierOf(r)
	if err != nil {
		return err
	}
	if t.observer {
		return domain.Errorf(domain.CodeUnprocessable, "observers confirm nothing")
	}
	body, err := r.jsonBody()
	if err != nil {
		return err
	}
	var text string
	err = decodeObject(body, []string{"position"}, func(d *decoder, member string) (err error) {
		text, err = d.text(member)
		return err
	})
	if err != nil {
		return err
	}
	token, err := domain.ParseToken(text)
	_, epoch := s.options.KeyFeed.History()
	if err != nil || token.Lane != domain.Lifecycle || token.Epoch != epoch || token.Position == 0 {
		return domain.Invalid("position", "must be a token of the lifecycle lane in this epoch")
	}
	s.options.Verifiers.Confirm(t.id, token.Position)
	r.answer(fiber.StatusNoContent, "", nil)
	return nil
}

// leaveVerifier answers DELETE /api/v1/verifiers/{verifier}.
func (s *Server) leaveVerifier(r *request) error {
	t, err := s.verifierOf(r)
	if err != nil {
		return err
	}
	if !t.observer {
		if err := s.options.Verifiers.Leave(r.ctx, t.id); err != nil {
			return err
		}
	}
	r.answer(fiber.StatusNoContent, "", nil)
	return nil
}

// verifierUses answers POST /api/v1/verifiers/{verifier}/uses.
func (s *Server) verifierUses(r *request) error {
	t, err := s.verifierOf(r)
	if err != nil {
		return err
	}
	body, err := r.bodyOf(wire.MediaType, mostReportBytes)
	if err != nil {
		return err
	}
	report, err := wire.ReadReport(bytes.NewReader(body))
	if err != nil {
		return &domain.Error{Code: domain.CodeMalformed, Message: "the report of uses is malformed", Err: err}
	}
	version, err := s.options.KeyFeed.Record(r.ctx, t.id, report)
	if err != nil {
		return err
	}
	r.answer(fiber.StatusOK, fiber.MIMEApplicationJSON, append(strconv.AppendUint([]byte(`{"version":`), version, 10), '}'))
	return nil
}
