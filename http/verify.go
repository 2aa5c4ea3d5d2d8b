package http

import (
	"crypto/sha256"
	"slices"
	"strconv"
	"time"

	"github.com/gofiber/fiber/v2"
	"github.com/gofiber/fiber/v2/utils"

	"keyledger/domain"
)

const verifyPath = "/api/v1/keys/verify"

// question is the body of a verification, and room for the answer. It belongs to
// a request and is used again with it.
type question struct {
	digest domain.Digest // of the key
	asked  bool          // there was a key
	scopes []string
	within string
	// durable asks that the use is in the log before the answer.
	durable bool
	answer  []byte

	// What the last question's scopes were parsed to: the same ones are asked for
	// again and again.
	known    []string
	required domain.Scopes
}

// verifyKey answers POST /api/v1/keys/verify: always 200 with a verdict. It runs a
// million times for each key that is created, hence the care for allocations.
func (s *Server) verifyKey(r *request) error {
	var caller domain.OrganizationID
	if s.options.VerifyAuth {
		var err error
		if caller, err = s.admitVerifier(r); err != nil {
			return err
		}
	}
	body, err := r.jsonBody()
	if err != nil {
		return err
	}
	q := &r.question
	v, err := q.read(body)
	if err != nil {
		return err
	}
	if err := restrict(&v, caller); err != nil {
		return err
	}
	minimum, err := s.awaitMinimum(r)
	if err != nil {
		return err
	}
	v.Now = r.arrived
	if minimum > 0 {
		v.Now = s.clock()
	}
	verdict, err := s.judge(r.ctx, v, q.durable)
	if err != nil {
		return err
	}
	r.verdict = labelOf(&verdict)
	if verdict.Outcome == domain.OutcomeNotFound {
		if err := s.unknown(r, 1); err != nil {
			return err
		}
	}
	q.answer = appendVerdict(q.answer[:0], &verdict)
	r.answerCopy(fiber.StatusOK, fiber.MIMEApplicationJSON, q.answer)
	return nil
}

// admitVerifier authenticates who asks about keys, when the deployment wants to
// know. The caller's own limit is left alone: a verification counts against the
// key that is verified.
func (s *Server) admitVerifier(r *request) (domain.OrganizationID, error) {
	c, err := r.credential()
	if err != nil {
		return "", err
	}
	if c.token != "" {
		return "", domain.Errorf(domain.CodeForbidden, "An API key with the scope %s is needed here", domain.ScopeVerify)
	}
	caller, err := s.authenticate(r, domain.Verification{Digest: c.digest, Required: domain.Scopes{domain.ScopeVerify}, Now: s.clock(), Free: true})
	if err != nil {
		return "", err
	}
	r.limit = domain.Limit{}
	return caller.Organization, nil
}

// read gives the question in a body. Bodies as clients write them are read by
// scan; whatever it does not understand is read, or refused, the slow way.
func (q *question) read(body []byte) (domain.Verification, error) {
	if !q.scan(body) {
		if err := q.decode(body); err != nil {
			return domain.Verification{}, err
		}
	}
	return q.verification()
}

func (q *question) verification() (domain.Verification, error) {
	if !q.asked {
		return domain.Verification{}, domain.Invalid("key", "is required")
	}
	var v domain.Verification
	var err error
	if len(q.scopes) > 0 {
		if !slices.Equal(q.scopes, q.known) {
			if q.required, err = domain.ParseScopes(q.scopes); err != nil {
				q.known = nil
				return domain.Verification{}, err
			}
			q.known = slices.Clone(q.scopes)
		}
		v.Required = q.required
	}
	if q.within != "" {
		if v.Within, err = domain.ParseOrganizationID(q.within); err != nil {
			return domain.Verification{}, err
		}
	}
	v.Digest = q.digest
	return v, nil
}

// digest takes a presented key's digest. What cannot be a key is a key that nobody
// has: the answer, and the work for it, are those for an unknown one. No key
// begins with NUL.
func digest(presented string) domain.Digest {
	if _, err := domain.ParseSecret(presented); err != nil {
		return sha256.Sum256([]byte("\x00" + presented[:min(len(presented), 64)]))
	}
	return sha256.Sum256(utils.UnsafeBytes(presented)) // domain.Secret.Digest, without its copy
}

func (q *question) reset() {
	q.asked, q.within, q.scopes, q.durable = false, "", q.scopes[:0], false
}

func (q *question) decode(body []byte) error {
	q.reset()
	return decodeObject(body, []string{"key", "scopes", "organizationId", "durable"}, func(d *decoder, name string) error {
		null, err := d.null()
		if null || err != nil {
			return err
		}
		switch name {
		case "key":
			var text string
			text, err = d.text(name)
			q.digest, q.asked = digest(text), true
		case "scopes":
			q.scopes, err = d.texts(name)
		case "durable":
			q.durable, err = d.flag(name)
		case "organizationId":
			if q.within, err = d.text(name); err == nil && q.within == "" {
				_, err = domain.ParseOrganizationID("")
			}
		}
		return err
	})
}

// scan reads the plain form of a question: the four members that there are, each
// at most once, in plain printable ASCII without escapes. It says no to
// everything else, right or wrong.
func (q *question) scan(body []byte) bool {
	q.reset()
	c := scanner{body: body}
	var scopes, within, durable bool
	if !c.take('{') {
		return false
	}
	for {
		name, ok := c.text()
		if !ok || !c.take(':') {
			return false
		}
		switch {
		case string(name) == "key" && !q.asked:
			text, ok := c.text()
			if !ok {
				return false
			}
			// Nothing of the key is kept, so it is not copied either.
			q.digest, q.asked = digest(utils.UnsafeString(text)), true
		case string(name) == "organizationId" && !within:
			text, ok := c.text()
			if !ok || len(text) == 0 {
				return false
			}
			q.within, within = string(text), true
		case string(name) == "scopes" && !scopes:
			if scopes = true; !c.texts(&q.scopes) {
				return false
			}
		case string(name) == "durable" && !durable:
			if durable = true; !c.flag(&q.durable) {
				return false
			}
		default:
			return false
		}
		if c.take(',') {
			continue
		}
		return c.take('}') && c.end()
	}
}

type scanner struct {
	body []byte
	at   int
}

func (c *scanner) space() {
	for c.at < len(c.body) {
		switch c.body[c.at] {
		case ' ', '\t', '\r', '\n':
			c.at++
		default:
			return
		}
	}
}

func (c *scanner) take(b byte) bool {
	c.space()
	if c.at < len(c.body) && c.body[c.at] == b {
		c.at++
		return true
	}
	return false
}

func (c *scanner) end() bool {
	c.space()
	return c.at == len(c.body)
}

func (c *scanner) text() ([]byte, bool) {
	if !c.take('"') {
		return nil, false
	}
	start := c.at
	for ; c.at < len(c.body); c.at++ {
		switch b := c.body[c.at]; {
		case b == '"':
			c.at++
			return c.body[start : c.at-1], true
		case b < ' ' || b > '~' || b == '\\':
			return nil, false
		}
	}
	return nil, false
}

func (c *scanner) texts(into *[]string) bool {
	if !c.take('[') {
		return false
	}
	if c.take(']') {
		return true
	}
	for {
		text, ok := c.text()
		if !ok {
			return false
		}
		*into = append(*into, scopeText(text))
		if c.take(',') {
			continue
		}
		return c.take(']')
	}
}

func (c *scanner) flag(into *bool) bool {
	c.space()
	for _, word := range [...]string{"true", "false"} {
		if rest := c.body[c.at:]; len(rest) >= len(word) && string(rest[:len(word)]) == word {
			c.at += len(word)
			*into = word == "true"
			return true
		}
	}
	return false
}

// scopeText copies a scope, but for those that everybody asks for.
func scopeText(text []byte) string {
	switch string(text) {
	case string(domain.ScopeRead):
		return string(domain.ScopeRead)
	case string(domain.ScopeWrite):
		return string(domain.ScopeWrite)
	case string(domain.ScopeAdmin):
		return string(domain.ScopeAdmin)
	}
	return string(text)
}

// appendVerdict appends the answer. Every member is always there, null where there
// is nothing to say, but for the quota, which is there for keys that have one.
func appendVerdict(dst []byte, v *domain.Verdict) []byte {
	if v.Outcome == domain.OutcomeValid {
		dst = append(dst, `{"valid":true,"code":"`...)
	} else {
		dst = append(dst, `{"valid":false,"code":"`...)
	}
	dst = append(dst, v.Outcome.String()...)
	if v.Key.IsZero() {
		dst = append(dst, `","keyId":null,"organizationId":null,"name":null,"scopes":null,"expiresAt":null,"rateLimit":null,"position":`...)
		return appendBasis(dst, v)
	}
	dst = append(dst, `","keyId":`...)
	dst = appendKeyID(dst, v.Key)
	dst = append(dst, `,"organizationId":`...)
	dst = appendText(dst, string(v.Organization))
	dst = append(dst, `,"name":`...)
	dst = appendTextOrNull(dst, v.Name)
	dst = append(dst, `,"scopes":`...)
	dst = appendScopes(dst, v.Scopes)
	dst = append(dst, `,"expiresAt":`...)
	dst = appendTime(dst, v.ExpiresAt)
	if v.Limit.PerMinute == 0 {
		dst = append(dst, `,"rateLimit":null`...)
	} else {
		dst = append(dst, `,"rateLimit":{"limit":`...)
		dst = strconv.AppendUint(dst, uint64(v.Limit.PerMinute), 10)
		dst = append(dst, `,"remaining":`...)
		dst = strconv.AppendUint(dst, uint64(v.Limit.Remaining), 10)
		dst = append(dst, `,"reset":`...)
		dst = strconv.AppendInt(dst, ceilUnix(v.Limit.Reset), 10)
		dst = append(dst, '}')
	}
	dst = appendQuota(dst, v.Quota.Quota, v.Quota)
	dst = append(dst, `,"position":`...)
	return appendBasis(dst, v)
}

// appendBasis appends what the verdict rests on, and ends it: the position, how old that is at
// most, and whether it is older than a lease.
func appendBasis(dst []byte, v *domain.Verdict) []byte {
	dst = strconv.AppendUint(dst, uint64(v.Position), 10)
	dst = append(dst, `,"ageMs":`...)
	dst = strconv.AppendInt(dst, int64((v.Age+time.Millisecond-1)/time.Millisecond), 10)
	if v.Stale {
		return append(dst, `,"stale":true}`...)
	}
	return append(dst, `,"stale":false}`...)
}
