package http

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gofiber/fiber/v2"

	"keyledger/domain"
)

// Our own dialect for keys: what both seeds have, and what neither says.

const nativeKeysPath = "/api/v1/organizations/:organization/keys"

func (s *Server) nativeKeyRoutes() []*route {
	const get, post, del = fiber.MethodGet, fiber.MethodPost, fiber.MethodDelete
	return []*route{
		{method: get, pattern: nativeKeysPath, dialect: native, handle: s.nativeList},
		{method: post, pattern: nativeKeysPath, dialect: native, handle: s.nativeCreate},
		{method: get, pattern: nativeKeysPath + "/:key", dialect: native, handle: s.nativeGet},
		{method: del, pattern: nativeKeysPath + "/:key", dialect: native, handle: s.nativeRevoke},
	}
}

// nativeList answers a page, of 100 keys when nothing else is asked for.
func (s *Server) nativeList(r *request) error {
	l, err := s.list(r)
	if err != nil {
		return err
	}
	body := append(make([]byte, 0, 64+len(l.keys)*nativeKeyBytes), `{"keys":[`...)
	for i := range l.keys {
		if i > 0 {
			body = append(body, ',')
		}
		s.stand(r, &l.keys[i], l.moment)
		body = appendNativeKey(body, &l.keys[i], l.moment)
	}
	body = append(body, `],"hasMore":`...)
	body = strconv.AppendBool(body, l.next != "")
	body = append(body, `,"nextCursor":`...)
	body = appendTextOrNull(body, l.next)
	r.answer(fiber.StatusOK, fiber.MIMEApplicationJSON, append(body, '}'))
	return nil
}

func (s *Server) nativeCreate(r *request) error {
	made, err := s.createAsked(r, readNativeCreation)
	if err != nil {
		return err
	}
	body := append(make([]byte, 0, 128+nativeKeyBytes), `{"key":`...)
	view := domain.KeyView{Key: made.key}
	s.stand(r, &view, s.clock())
	body = appendNativeKey(body, &view, s.clock())
	body = append(body, `,"secret":`...)
	body = appendTextOrNull(body, made.secret.Reveal())
	r.set(fiber.HeaderLocation, strings.TrimSuffix(r.path(), "/")+"/"+made.key.ID.String())
	r.answer(fiber.StatusCreated, fiber.MIMEApplicationJSON, append(body, '}'))
	return nil
}

func (s *Server) nativeGet(r *request) error {
	view, moment, err := s.getAt(r)
	if err != nil {
		return err
	}
	body := append(make([]byte, 0, 16+nativeKeyBytes), `{"key":`...)
	s.stand(r, &view, moment)
	body = appendNativeKey(body, &view, moment)
	r.answer(fiber.StatusOK, fiber.MIMEApplicationJSON, append(body, '}'))
	return nil
}

func (s *Server) nativeRevoke(r *request) error {
	p, err := s.admit(r, domain.ScopeAdmin, false)
	if err != nil {
		return err
	}
	id, err := r.key()
	if err != nil {
		return err
	}
	body, err := r.jsonBody()
	if err != nil {
		return err
	}
	reason, err := readReason(body)
	if err != nil {
		return err
	}
	later, err := r.prefersAsync()
	if err != nil {
		return err
	}
	with := s.lastUse(r.ctx, id)
	done, err := s.revoke(r, p, id, reason, later)
	if err != nil {
		return err
	}
	body = append(make([]byte, 0, 128+nativeKeyBytes), `{"key":`...)
	view := with(done.key)
	s.stand(r, view, s.clock())
	body = appendNativeKey(body, view, s.clock())
	body = append(body, `,"changed":`...)
	body = strconv.AppendBool(body, done.changed)
	body = appendFence(body, &done)
	r.answer(done.status(), fiber.MIMEApplicationJSON, append(body, '}'))
	return nil
}

// stand adds to a key how much of its quota is left, when the key is shown as it is now.
func (s *Server) stand(r *request, view *domain.KeyView, moment time.Time) {
	if s.options.Quotas != nil && view.Quota.Given() && !moment.Before(r.arrived) {
		view.Standing, _ = s.options.Quotas.Quota(view.ID, moment)
	}
}

// appendFence tells whether the revocation holds everywhere, and what it took.
func appendFence(dst []byte, done *revoked) []byte {
	if !done.by.IsZero() {
		dst = append(dst, `,"fenced":false,"fenceBy":"`...)
		// Rounded up: it holds by then.
		return append(done.by.UTC().Add(time.Millisecond-1).AppendFormat(dst, "2006-01-02T15:04:05.000Z07:00"), '"')
	}
	dst = append(dst, `,"fenced":true,"waitedMs":`...)
	dst = strconv.AppendInt(dst, done.fenced.Waited.Milliseconds(), 10)
	dst = append(dst, `,"confirmed":`...)
	dst = strconv.AppendInt(dst, int64(len(done.fenced.Confirmed)), 10)
	dst = append(dst, `,"expired":`...)
	return strconv.AppendInt(dst, int64(len(done.fenced.Expired)), 10)
}

// lastUse asks for what the list alone knows of a key, its uses, while the ledger is
// busy with it. What was done stands whether or not the list can be asked now.
func (s *Server) lastUse(ctx context.Context, id domain.KeyID) (with func(domain.Key) *domain.KeyView) {
	found := make(chan domain.KeyView, 1)
	go func() {
		var view domain.KeyView
		view.Uses, view.LastUsedAt, _ = s.keys.Used(ctx, id)
		found <- view
	}()
	return func(key domain.Key) *domain.KeyView {
		var view domain.KeyView
		timer := time.NewTimer(s.lastUseWithin)
		defer timer.Stop()
		select {
		case view = <-found:
		case <-timer.C:
		}
		view.Key = key
		return &view
	}
}

// lastUseWithin is how much longer than for all else an answer waits for a key's uses.
const lastUseWithin = 20 * time.Millisecond

// readNativeCreation reads what a client says of a new key. Nothing is given away
// by leaving it out: scopes must be named. A limit of null or 0 is none.
func readNativeCreation(body []byte) (creation, error) {
	var c creation
	f := creationFields{}
	err := decodeObject(body, []string{"name", "scopes", "rateLimit", "quota", "expiresAt", "environment"}, func(d *decoder, name string) error {
		null, err := d.null()
		switch {
		case err != nil:
			return err
		case name == "rateLimit" && null:
			c.unlimited = true
			return nil
		case null:
			return nil
		}
		switch name {
		case "rateLimit":
			f.rateLimit, err = d.number(name, domain.MostRateLimit)
			c.unlimited = f.rateLimit == 0
			return err
		case "quota":
			c.quota, err = d.quota(name)
			return err
		case "environment":
			c.test, err = d.environment(name)
			return err
		}
		return f.read(d, name)
	})
	if err != nil {
		return creation{}, err
	}
	checked, err := f.check()
	if err != nil {
		return creation{}, err
	}
	checked.unlimited, checked.test, checked.quota = c.unlimited, c.test, c.quota
	return checked, nil
}

// environment says whether keys for tests are meant.
func (d *decoder) environment(field string) (test bool, err error) {
	text, err := d.text(field)
	if err == nil && text != environmentLive && text != environmentTest {
		err = domain.Invalid(field, "must be %s or %s", environmentLive, environmentTest)
	}
	return text == environmentTest, err
}

// readReason reads why a key is revoked. There need be none, and no body either.
func readReason(body []byte) (reason string, err error) {
	if len(body) == 0 {
		return "", nil
	}
	err = decodeObject(body, []string{"reason"}, func(d *decoder, name string) error {
		null, err := d.null()
		if null || err != nil {
			return err
		}
		text, err := d.text(name)
		if err != nil {
			return err
		}
		reason, err = domain.ParseReason(text)
		return err
	})
	return reason, err
}

const (
	environmentLive = "live"
	environmentTest = "test"

	// nativeKeyBytes is more than most keys take.
	nativeKeyBytes = 480
)

// appendNativeKey appends a key as it stands at a moment. Every member is always
// there, null where there is nothing to say, but for the quota, which few have.
func appendNativeKey(dst []byte, k *domain.KeyView, now time.Time) []byte {
	dst = slices.Grow(dst, nativeKeyBytes)
	dst = append(dst, `{"id":`...)
	dst = appendKeyID(dst, k.ID)
	dst = append(dst, `,"organizationId":`...)
	dst = appendText(dst, string(k.Organization))
	dst = append(dst, `,"name":`...)
	dst = appendText(dst, k.Name)
	dst = append(dst, `,"prefix":`...)
	dst = appendText(dst, k.Prefix)
	dst = append(dst, `,"environment":`...)
	dst = appendTextOrNull(dst, environmentOf(k.Prefix))
	dst = append(dst, `,"scopes":`...)
	dst = appendScopes(dst, k.Scopes)
	dst = append(dst, `,"rateLimit":`...)
	dst = appendLimit(dst, k.RateLimit)
	dst = appendQuota(dst, k.Quota, k.Standing)
	dst = append(dst, `,"status":"`...)
	dst = append(dst, nativeStatus(&k.Key, now)...)
	dst = append(dst, `","createdAt":`...)
	dst = appendTime(dst, k.CreatedAt)
	dst = append(dst, `,"createdByUserId":`...)
	dst = appendTextOrNull(dst, string(k.CreatedBy))
	dst = append(dst, `,"expiresAt":`...)
	dst = appendTime(dst, k.ExpiresAt)
	dst = append(dst, `,"revokedAt":`...)
	dst = appendTime(dst, k.RevokedAt)
	dst = append(dst, `,"lastUsedAt":`...)
	dst = appendTime(dst, k.LastUsedAt)
	dst = append(dst, `,"uses":`...)
	dst = strconv.AppendUint(dst, k.Uses, 10)
	return append(dst, '}')
}

// appendQuota appends a quota, for a key that has one, and where the key stands against it:
// null where that is not known.
func appendQuota(dst []byte, q domain.Quota, s domain.QuotaStanding) []byte {
	if !q.Given() {
		return dst
	}
	dst = append(dst, `,"quota":{"limit":`...)
	dst = strconv.AppendUint(dst, q.Limit, 10)
	if s.Given() {
		dst = append(dst, `,"remaining":`...)
		dst = strconv.AppendUint(dst, s.Remaining, 10)
	} else {
		dst = append(dst, `,"remaining":null`...)
	}
	dst = append(dst, `,"refill":"`...)
	dst = append(dst, q.Refill...)
	dst = append(dst, `","resetsAt":`...)
	return append(appendTime(dst, s.Reset), '}')
}

// nativeStatus is in one word why a key is refused, or that it is not. The order is
// that of verdicts.
func nativeStatus(k *domain.Key, now time.Time) string {
	switch {
	case k.Revoked:
		return "revoked"
	case k.Disabled:
		return "disabled"
	case k.Expired(now):
		return "expired"
	}
	return "active"
}

// environmentOf reads the environment from what is shown of a key. A key that was
// made elsewhere may have none.
func environmentOf(prefix string) string {
	_, rest, _ := strings.Cut(prefix, "_")
	switch word, _, found := strings.Cut(rest, "_"); {
	case found && word == environmentLive:
		return environmentLive
	case found && word == environmentTest:
		return environmentTest
	}
	return ""
}
