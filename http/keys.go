package http

import (
	"context"
	"crypto/rand"
	"errors"
	"net/url"
	"strconv"
	"time"

	"github.com/gofiber/fiber/v2"

	"keyledger/domain"
)

const (
	headerIdempotencyKey = "Idempotency-Key"
	headerReplayed       = "Idempotent-Replayed"
	headerPosition       = "X-Keyledger-Position"
	headerMinPosition    = "X-Keyledger-Min-Position"
	headerEpoch          = "X-Keyledger-Epoch"

	mostIdempotencyKey = 255
	mostPage           = 1000
	defaultPage        = 100

	// mostAuthorisations bounds how often one command is authorised anew.
	mostAuthorisations = 5
	// indexedWithin bounds the wait for this node's index after a write.
	indexedWithin = 2 * time.Second

	defaultWait = time.Second
	mostWait    = 10 * time.Second
)

// creation is what a client may say of a new key.
type creation struct {
	name      string
	scopes    domain.Scopes
	rateLimit uint32 // 0: none was named
	unlimited bool   // no limit is asked for, and not the usual one
	quota     domain.Quota
	expiresAt time.Time
	test      bool // it is for the test environment
}

// created is a new key, or, replayed, the one that an earlier request with the
// same idempotency key has made; then nobody knows its secret any more.
type created struct {
	key    domain.Key
	secret domain.Secret
}

// createAsked makes the key that a request asks for, in its dialect's words.
func (s *Server) createAsked(r *request, read func(body []byte) (creation, error)) (created, error) {
	p, err := s.admit(r, domain.ScopeAdmin, false)
	if err != nil {
		return created{}, err
	}
	body, err := r.jsonBody()
	if err != nil {
		return created{}, err
	}
	c, err := read(body)
	if err != nil {
		return created{}, err
	}
	return s.create(r, p, c)
}

// create makes a key in the organization of the path.
func (s *Server) create(r *request, p principal, c creation) (created, error) {
	now := s.now()
	id, err := domain.NewID(now, rand.Reader)
	if err != nil {
		return created{}, err
	}
	secret, err := domain.NewSecret(s.options.KeyFormat, c.test, rand.Reader)
	if err != nil {
		return created{}, err
	}
	limit := c.rateLimit
	if limit == 0 && !c.unlimited {
		limit = s.options.RateLimit
	}
	key, receipt, err := s.change(r, p, operation{"create", ""}, domain.KeyID(id), func(p principal) domain.KeyCommand {
		return domain.CreateKey{
			Now: now, Key: domain.KeyID(id), Organization: p.organization, Digest: secret.Digest(), Prefix: secret.VisiblePrefix(s.options.KeyFormat),
			Name: c.name, Scopes: c.scopes, RateLimit: limit, Quota: c.quota, ExpiresAt: c.expiresAt, Granter: p.scopes,
			// The user of a token. A key that creates keys is nobody's hand: who held it is
			// not known, and its own creator need not be the one. So there is no user then
			// (null to clients); the event's metadata names the key.
			CreatedBy: p.actor.User,
		}
	})
	if err != nil {
		return created{}, err
	}
	if err := s.waitFor(r.ctx, receipt.Position, indexedWithin); err != nil {
		// It exists, and its secret can be told only now. It verifies when the index
		// has caught up.
		s.logger.Warn("a key was created before the index knows it", "request_id", r.id(), "position", uint64(receipt.Position), "error", err)
	}
	if s.fence != nil {
		s.fence.Tell(r.ctx, receipt.Position)
	}
	if receipt.Replayed {
		return created{key: key}, nil
	}
	return created{key, secret}, nil
}

// revoke ends a key. When it returns, nobody accepts the key any more, or, where later
// is asked for, will not from a moment on that it names.
func (s *Server) revoke(r *request, p principal, id domain.KeyID, reason string, later bool) (revoked, error) {
	now := s.now()
	key, receipt, err := s.change(r, p, operation{"revoke", id.String()}, id, func(p principal) domain.KeyCommand {
		return domain.RevokeKey{Now: now, Organization: p.organization, Reason: reason}
	})
	if err != nil {
		return revoked{}, err
	}
	return s.hold(r, receipt, revoked{key: key, changed: receipt.Changed}, later)
}

// operation is what an idempotency key stands for, within an organization and an actor.
type operation struct {
	name   string
	target string // the key that it is done to, in one spelling
}

// change has the ledger decide a command, and authorises it anew when the stream
// that authorised it has moved meanwhile.
func (s *Server) change(r *request, p principal, o operation, id domain.KeyID, command func(principal) domain.KeyCommand) (domain.Key, domain.Receipt, error) {
	request, err := s.writeRequest(r, p, o)
	if err != nil {
		return domain.Key{}, domain.Receipt{}, err
	}
	for range mostAuthorisations {
		request.Guard = p.guard
		key, receipt, err := s.ledger.ChangeKey(r.ctx, request, id, command(p))
		var moved domain.GuardMoved
		switch {
		case err == nil:
			r.set(headerPosition, receipt.Token().String())
			if receipt.Replayed {
				r.set(headerReplayed, "true")
			}
			return key, receipt, nil
		case !errors.As(err, &moved):
			return domain.Key{}, domain.Receipt{}, err
		}
		// Whoever asks for this may have lost the right to it. The index must know what
		// has moved before it is asked again.
		if err := s.waitFor(r.ctx, moved.At, indexedWithin); err != nil {
			return domain.Key{}, domain.Receipt{}, domain.Unavailable(err)
		}
		need := domain.ScopeAdmin // every change needs it
		if p, err = s.admit(r, need, true); err != nil {
			return domain.Key{}, domain.Receipt{}, err
		}
	}
	return domain.Key{}, domain.Receipt{}, domain.Unavailable(domain.ErrGuardMoved)
}

// writeRequest names the command, by the client's idempotency key if it sent one.
func (s *Server) writeRequest(r *request, p principal, o operation) (domain.Request, error) {
	request := domain.Request{Metadata: r.metadata(p.actor)}
	chosen, err := r.idempotencyKey()
	if err != nil {
		return domain.Request{}, err
	}
	if chosen == "" {
		_, _ = rand.Read(request.ID[:]) // never fails
		return request, nil
	}
	request.ID = domain.CommandIDFor(p.organization, p.actor, o.name, chosen)
	request.Replayable = true
	request.Fingerprint = r.fingerprint(o.target)
	return request, nil
}

// idempotencyKey gives the client's name for this command; empty when it chose none.
func (r *request) idempotencyKey() (string, error) {
	text, err := r.header(headerIdempotencyKey)
	if err != nil {
		return "", err
	}
	for i := range len(text) {
		if c := text[i]; c < ' ' || c > '~' {
			return "", domain.Invalid(headerIdempotencyKey, "must be printable ASCII")
		}
	}
	if len(text) > mostIdempotencyKey {
		return "", domain.Invalid(headerIdempotencyKey, "must be at most %d characters", mostIdempotencyKey)
	}
	return text, nil
}

// page is what a client asks of a list.
type page struct {
	limit  int // 0: everything
	before domain.KeyID
}

// pageLimit reads how much a client wants on a page.
func pageLimit(text string) (int, error) {
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > mostPage || text[0] == '+' {
		return 0, domain.Invalid("limit", "must be an integer from 1 to %d", mostPage)
	}
	return n, nil
}

func (s *Server) page(r *request, organization domain.OrganizationID) (page, error) {
	var p page
	limit, given, err := r.query("limit")
	if err != nil {
		return page{}, err
	}
	if given {
		if p.limit, err = pageLimit(limit); err != nil {
			return page{}, err
		}
	}
	cursor, given, err := r.query("cursor")
	if err != nil {
		return page{}, err
	}
	if given {
		if p.before, err = s.cursors.read(organization, cursor); err != nil {
			return page{}, err
		}
		if p.limit == 0 {
			p.limit = defaultPage
		}
	}
	if p.limit == 0 && r.dialect == native {
		p.limit = defaultPage // the seeds' clients expect the whole list
	}
	return p, nil
}

// listing is a list's answer.
type listing struct {
	keys   []domain.KeyView // newest first
	moment time.Time        // that the list shows: now, or what ?at says
	limit  int              // 0: not paginated
	next   string           // the next page's cursor; empty when this is the last one
}

// list gives the keys of the organization of the path, revoked ones too.
func (s *Server) list(r *request) (listing, error) {
	p, err := s.admit(r, domain.ScopeRead, false)
	if err != nil {
		return listing{}, err
	}
	page, err := s.page(r, p.organization)
	if err != nil {
		return listing{}, err
	}
	atLeast, err := s.awaitMinimum(r)
	if err != nil {
		return listing{}, err
	}
	query := domain.KeyQuery{Organization: p.organization, Before: page.before, AtLeast: atLeast}
	if page.limit > 0 {
		query.Most = page.limit + 1 // one more tells whether there is a next page
	}
	keys, moment, err := s.keysAt(r, query)
	if err != nil {
		return listing{}, err
	}
	l := listing{keys: keys, moment: moment, limit: page.limit}
	if page.limit > 0 && len(keys) > page.limit {
		l.keys = keys[:page.limit]
		l.next = s.cursors.write(p.organization, l.keys[page.limit-1].ID)
		again := url.Values{"limit": {strconv.Itoa(page.limit)}, "cursor": {l.next}}
		if at, given, _ := r.query("at"); given {
			again.Set("at", at)
		}
		r.set(fiber.HeaderLink, "<"+r.path()+"?"+again.Encode()+`>; rel="next"`)
	}
	return l, nil
}

// get gives one key of the organization of the path.
func (s *Server) get(r *request) (domain.KeyView, error) {
	p, err := s.admit(r, domain.ScopeRead, false)
	if err != nil {
		return domain.KeyView{}, err
	}
	id, err := r.key()
	if err != nil {
		return domain.KeyView{}, err
	}
	atLeast, err := s.awaitMinimum(r)
	if err != nil {
		return domain.KeyView{}, err
	}
	return s.keys.Get(r.ctx, p.organization, id, atLeast)
}

// getAt is get for who may ask for the key as it stood when ?at says so, and gives which
// moment it shows. A key that did not exist then is not found.
func (s *Server) getAt(r *request) (view domain.KeyView, moment time.Time, err error) {
	if _, given, err := r.query("at"); err != nil || !given || s.options.Audit == nil {
		if err == nil {
			view, err = s.get(r)
		}
		return view, s.clock(), err
	}
	p, err := s.admit(r, domain.ScopeRead, false)
	if err != nil {
		return view, moment, err
	}
	id, err := r.key()
	if err != nil {
		return view, moment, err
	}
	views, moment, err := s.keysAt(r, domain.KeyQuery{Organization: p.organization})
	for i := range views {
		if views[i].ID == id {
			return views[i], moment, err
		}
	}
	if err == nil {
		err = domain.Errorf(domain.CodeNotFound, "no such key")
	}
	return view, moment, err
}

// key gives the key of the path. What cannot be an id is no key's.
func (r *request) key() (domain.KeyID, error) {
	id, err := domain.ParseKeyID(r.param("key"))
	if err != nil {
		return domain.KeyID{}, domain.Errorf(domain.CodeNotFound, "no such key")
	}
	return id, nil
}

// wait gives how long a minimum position may be waited for: ?wait=2s, or a number of seconds.
func (r *request) wait() (time.Duration, error) {
	text, given, err := r.query("wait")
	if err != nil || !given {
		return defaultWait, err
	}
	wait, err := time.ParseDuration(text)
	if err != nil {
		wait, err = time.ParseDuration(text + "s")
	}
	if err != nil || wait < 0 || wait > mostWait {
		return 0, domain.Invalid("wait", "must be a time of at most %s", mostWait)
	}
	return wait, nil
}

// waitFor waits until this node's index has reached a position; CodeStale when it
// does not within the time.
func (s *Server) waitFor(ctx context.Context, position domain.Position, most time.Duration) error {
	if s.verifier.Position() >= position {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	err := s.verifier.WaitFor(ctx, position)
	if err != nil && ctx.Err() != nil {
		return &domain.Error{Code: domain.CodeStale, Message: "is not here yet: try again", Err: err}
	}
	return err
}

// now is the time as events keep it.
func (s *Server) now() time.Time { return s.clock().UTC().Truncate(time.Microsecond) }
