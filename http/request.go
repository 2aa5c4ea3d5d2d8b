package http

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/gofiber/fiber/v2"
	"github.com/gofiber/fiber/v2/utils"
	"github.com/valyala/fasthttp"

	"keyledger/domain"
)

// request is one request on its way through. Fiber's strings point into buffers
// that the next request overwrites, so every method here that returns a string
// returns a copy; jsonBody alone does not, and what is decoded from it is copied
// by the decoder.
type request struct {
	http    *fasthttp.RequestCtx // nobody but this file, observe.go and trace.go looks at these two
	fiber   *fiber.Ctx           // nil where the path needed no router
	server  *Server
	route   *route
	dialect *dialect
	ctx     context.Context
	arrived time.Time
	givenID string   // the id that the client chose, or else
	drawnID [32]byte // ours
	trace   string   // W3C trace id; empty when there is none

	// What the handlers find out about it, for headers, metrics and the access log.
	limit        domain.Limit
	verdict      verdictLabel
	organization domain.OrganizationID
	failure      error
	retryAfter   time.Duration    // of a refusal that is not the key's limit
	end          func(status int) // ends the span, when there is one
	question     question
}

// param gives a part of the path, unescaped.
func (r *request) param(name string) string {
	text := utils.CopyString(r.fiber.Params(name))
	if strings.IndexByte(text, '%') >= 0 {
		if plain, err := url.PathUnescape(text); err == nil {
			return plain
		}
	}
	return text
}

// query gives a query parameter, and whether there is one.
func (r *request) query(name string) (string, bool, error) {
	values := r.http.QueryArgs().PeekMulti(name)
	switch len(values) {
	case 0:
		return "", false, nil
	case 1:
		return string(values[0]), true, nil
	}
	return "", false, domain.Invalid(name, "must be given once")
}

// header gives a header field. The same value twice is one value; two values are
// an error, since nobody can say which one an intermediary looked at.
func (r *request) header(name string) (string, error) {
	values := r.http.Request.Header.PeekAll(name)
	if len(values) == 0 {
		return "", nil
	}
	for _, v := range values[1:] {
		if !bytes.Equal(v, values[0]) {
			return "", domain.Invalid(name, "must be given once")
		}
	}
	return string(values[0]), nil
}

// target gives the request's target as it was sent, with the query.
func (r *request) target() string { return string(r.http.Request.Header.RequestURI()) }

// path gives the path as it was sent, without the query.
func (r *request) path() string { return string(r.http.URI().PathOriginal()) }

func errBodyTooLarge(most int) error {
	return domain.Errorf(domain.CodeTooLarge, "the body must be at most %d bytes", most)
}

// jsonBody gives the bytes of a JSON body, valid until the handler returns; none
// when there is no body, whatever content type was named.
func (r *request) jsonBody() ([]byte, error) { return r.jsonBodyWithin(mostBodyBytes) }

func (r *request) jsonBodyWithin(most int) ([]byte, error) {
	body := r.http.Request.Body()
	if len(body) == 0 {
		return nil, nil
	}
	if len(body) > most {
		return nil, errBodyTooLarge(most)
	}
	header := &r.http.Request.Header
	if encoding := header.Peek(fiber.HeaderContentEncoding); len(encoding) > 0 && !bytes.EqualFold(encoding, []byte("identity")) {
		return nil, &domain.Error{Code: domain.CodeUnsupportedMediaType, Field: fiber.HeaderContentEncoding, Message: "must be identity"}
	}
	if media := header.ContentType(); string(media) != fiber.MIMEApplicationJSON && !isJSON(media) {
		return nil, &domain.Error{Code: domain.CodeUnsupportedMediaType, Field: fiber.HeaderContentType, Message: "must be application/json"}
	}
	return body, nil
}

// bodyOf gives the bytes of a body that must have a media type of ours, valid until the
// handler returns.
func (r *request) bodyOf(media string, most int) ([]byte, error) {
	body := r.http.Request.Body()
	if len(body) > most {
		return nil, errBodyTooLarge(most)
	}
	header := &r.http.Request.Header
	if encoding := header.Peek(fiber.HeaderContentEncoding); len(encoding) > 0 && !bytes.EqualFold(encoding, []byte("identity")) {
		return nil, &domain.Error{Code: domain.CodeUnsupportedMediaType, Field: fiber.HeaderContentEncoding, Message: "must be identity"}
	}
	if string(header.ContentType()) != media {
		return nil, &domain.Error{Code: domain.CodeUnsupportedMediaType, Field: fiber.HeaderContentType, Message: "must be " + media}
	}
	return body, nil
}

// isJSON ignores a content type's parameters: JSON is always UTF-8.
func isJSON(contentType []byte) bool {
	media, _, _ := bytes.Cut(contentType, []byte(";"))
	return bytes.EqualFold(bytes.TrimSpace(media), []byte(fiber.MIMEApplicationJSON))
}

// fingerprint tells a repetition from another request: the operation in its
// dialect, the key that it is done to, and the body. Lengths keep the parts apart.
// The organization is part of the command's id already.
func (r *request) fingerprint(target string) [sha256.Size]byte {
	h := sha256.New()
	for _, part := range [][]byte{[]byte(r.route.method), []byte(r.route.pattern), []byte(target), r.http.Request.Body()} {
		var length [8]byte
		binary.BigEndian.PutUint64(length[:], uint64(len(part)))
		h.Write(length[:])
		h.Write(part)
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// source is the client's address, through trusted proxies only.
func (r *request) source() netip.Addr {
	remote, err := netip.ParseAddrPort(r.http.RemoteAddr().String())
	if err != nil {
		return netip.Addr{}
	}
	trusted := r.server.options.TrustedProxies
	if len(trusted) == 0 {
		return remote.Addr().Unmap()
	}
	var forwarded []string
	for _, v := range r.http.Request.Header.PeekAll(fiber.HeaderXForwardedFor) {
		forwarded = append(forwarded, strings.Split(string(v), ",")...)
	}
	return clientAddress(remote.Addr().Unmap(), forwarded, trusted)
}

// status gives the answer's status, and setStatus changes it.
func (r *request) status() int          { return r.http.Response.StatusCode() }
func (r *request) setStatus(status int) { r.http.Response.SetStatusCode(status) }

// set sets a header field of the answer.
func (r *request) set(name, value string) { r.http.Response.Header.Set(name, value) }

func (r *request) setBytes(name string, value []byte) {
	r.http.Response.Header.SetBytesV(name, value)
}

// answer gives the body away: it must not be changed afterwards.
func (r *request) answer(status int, contentType string, body []byte) {
	response := &r.http.Response
	response.SetStatusCode(status)
	if contentType != "" {
		response.Header.SetContentType(contentType)
	}
	response.SetBodyRaw(body)
}

// answerCopy is answer for a body in a buffer that is used again.
func (r *request) answerCopy(status int, contentType string, body []byte) {
	response := &r.http.Response
	response.SetStatusCode(status)
	response.Header.SetContentType(contentType)
	response.SetBody(body)
}

// delegate lets a handler of fasthttp's answer.
func (r *request) delegate(handler fasthttp.RequestHandler) { handler(r.http) }

// fail answers with an error, in the dialect of the path. Header fields that the
// handler has set, such as a write's position, stay.
func (r *request) fail(err error) {
	r.failure = err
	e := known(err)
	status, body := r.dialect.failure(e)
	switch e.Code {
	case domain.CodeUnauthenticated:
		r.set(fiber.HeaderWWWAuthenticate, challenge)
	case domain.CodeUnavailable:
		r.set(fiber.HeaderRetryAfter, "1")
	case domain.CodeRateLimited:
		wait := r.retryAfter
		if wait == 0 {
			wait = r.limit.Next.Sub(r.server.clock())
		}
		r.set(fiber.HeaderRetryAfter, seconds(wait))
	case domain.CodeQuotaExceeded:
		if r.retryAfter > 0 { // otherwise it never gets better
			r.set(fiber.HeaderRetryAfter, seconds(r.retryAfter))
		}
	default:
	}
	r.answer(status, r.dialect.problemType, body)
}
