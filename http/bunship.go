package http

import (
	"slices"
	"strconv"
	"time"

	"github.com/gofiber/fiber/v2"

	"keyledger/domain"
)

const bunshipJSON = fiber.MIMEApplicationJSONCharsetUTF8

// bunship is the dialect of /api/v1/organizations/{orgId}/api-keys.
var bunship = &dialect{
	problemType:  bunshipJSON,
	organization: bunshipOrganization,
	failure:      bunshipFailure,
}

// bunshipOrganization lets an id that is merely too long be an organization that
// does not exist.
func bunshipOrganization(text string) (domain.OrganizationID, error) {
	id, err := domain.ParseOrganizationID(text)
	if err == nil {
		return id, nil
	}
	const most = 64
	for part := range slices.Chunk([]byte(text), most) {
		if _, err := domain.ParseOrganizationID(string(part)); err != nil {
			return "", domain.Invalid("orgId", "must be 1 to %d letters, digits, underscores or hyphens", most)
		}
	}
	return "", errNotMember()
}

// bunshipFailure is the whole mapping of errors to what BunShip's clients know.
func bunshipFailure(e *domain.Error) (int, []byte) {
	var status int
	var code string
	message := sentence(e)
	switch e.Code {
	case domain.CodeInvalid:
		status, code, message = fiber.StatusBadRequest, "VALIDATION_ERROR", "Validation failed"
	case domain.CodeMalformed:
		status, code, message = fiber.StatusBadRequest, "PARSE_ERROR", "Invalid request body"
	case domain.CodeUnauthenticated:
		status, code = fiber.StatusUnauthorized, "AUTHENTICATION_ERROR"
	case domain.CodeForbidden:
		status, code = fiber.StatusForbidden, "AUTHORIZATION_ERROR"
	case domain.CodeNotFound:
		status, code, message = fiber.StatusNotFound, "NOT_FOUND", "Resource not found"
	case domain.CodeStale:
		status, code = fiber.StatusConflict, "CONFLICT"
	case domain.CodeTooLarge:
		status, code = fiber.StatusRequestEntityTooLarge, "PAYLOAD_TOO_LARGE"
	case domain.CodeUnsupportedMediaType:
		status, code = fiber.StatusUnsupportedMediaType, "UNSUPPORTED_MEDIA_TYPE"
	case domain.CodeIdempotencyReused:
		status, code = fiber.StatusUnprocessableEntity, "IDEMPOTENCY_KEY_REUSED"
	case domain.CodeUnprocessable:
		status, code = fiber.StatusUnprocessableEntity, "UNPROCESSABLE_ENTITY"
	case domain.CodeRateLimited, domain.CodeQuotaExceeded:
		status, code = fiber.StatusTooManyRequests, "RATE_LIMITED"
	case domain.CodeUnavailable:
		status, code = fiber.StatusServiceUnavailable, "SERVICE_UNAVAILABLE"
	default:
		status, code, message = fiber.StatusInternalServerError, "INTERNAL_ERROR", "An unexpected error occurred"
	}
	body := append(make([]byte, 0, 160), `{"success":false,"error":{"code":"`...)
	body = append(body, code...)
	body = append(body, `","message":`...)
	body = appendText(body, message)
	body = append(body, `,"details":{`...)
	if e.Field != "" {
		body = append(body, `"field":`...)
		body = appendText(body, e.Field)
		body = append(body, ',')
	}
	switch e.Code {
	case domain.CodeInvalid, domain.CodeMalformed:
		body = append(body, `"message":`...)
		body = appendText(body, e.Message)
	default:
		body = trimComma(body)
	}
	return status, append(body, "}}}"...)
}

func (s *Server) bunshipList(r *request) error {
	l, err := s.list(r)
	if err != nil {
		return err
	}
	now := l.moment
	body := make([]byte, 0, 256+len(l.keys)*bunshipKeyBytes)
	body = append(body, `{"success":true,"data":[`...)
	for i := range l.keys {
		if i > 0 {
			body = append(body, ',')
		}
		body = appendBunshipKey(body, &l.keys[i], now)
	}
	body = append(body, ']')
	if l.limit > 0 {
		body = append(body, `,"pagination":{"limit":`...)
		body = strconv.AppendInt(body, int64(l.limit), 10)
		body = append(body, `,"hasMore":`...)
		body = strconv.AppendBool(body, l.next != "")
		body = append(body, `,"nextCursor":`...)
		body = appendTextOrNull(body, l.next)
		body = append(body, '}')
	}
	r.answer(fiber.StatusOK, bunshipJSON, append(body, '}'))
	return nil
}

func (s *Server) bunshipCreate(r *request) error {
	made, err := s.createAsked(r, readBunshipCreation)
	if err != nil {
		return err
	}
	k := &made.key
	body := append(make([]byte, 0, 512), `{"success":true,"data":{"id":`...)
	body = appendKeyID(body, k.ID)
	body = append(body, `,"name":`...)
	body = appendTextOrNull(body, k.Name)
	body = append(body, `,"key":`...)
	body = appendTextOrNull(body, made.secret.Reveal())
	body = append(body, `,"prefix":`...)
	body = appendText(body, k.Prefix)
	body = append(body, `,"scopes":`...)
	body = appendBunshipScopes(body, k.Scopes)
	body = append(body, `,"rateLimit":`...)
	body = appendLimit(body, k.RateLimit)
	body = append(body, `,"expiresAt":`...)
	body = appendTime(body, k.ExpiresAt)
	body = append(body, `,"createdAt":`...)
	body = appendTime(body, k.CreatedAt)
	if made.secret.IsZero() {
		body = append(body, `},"message":"This request was answered before. The key was shown then and cannot be shown again."}`...)
	} else {
		body = append(body, `},"message":"API key created. Save the key now: it will not be shown again."}`...)
	}
	r.answer(fiber.StatusOK, bunshipJSON, body)
	return nil
}

func (s *Server) bunshipGet(r *request) error {
	view, moment, err := s.getAt(r)
	if err != nil {
		return err
	}
	body := append(make([]byte, 0, 64+bunshipKeyBytes), `{"success":true,"data":`...)
	body = appendBunshipKey(body, &view, moment)
	r.answer(fiber.StatusOK, bunshipJSON, append(body, '}'))
	return nil
}

func (s *Server) bunshipRevoke(r *request) error {
	p, err := s.admit(r, domain.ScopeAdmin, false)
	if err != nil {
		return err
	}
	id, err := r.key()
	if err != nil {
		return err
	}
	if _, err := r.jsonBody(); err != nil { // nothing in it matters
		return err
	}
	done, err := s.revoke(r, p, id, "", false)
	if err != nil {
		return err
	}
	if !done.changed {
		return domain.Errorf(domain.CodeNotFound, "the key is revoked already")
	}
	r.answer(fiber.StatusOK, bunshipJSON, []byte(`{"success":true,"message":"API key revoked successfully"}`))
	return nil
}

func (s *Server) bunshipUsage(r *request) error {
	k, err := s.get(r)
	if err != nil {
		return err
	}
	body := append(make([]byte, 0, 512), `{"success":true,"data":{"keyId":`...)
	body = appendKeyID(body, k.ID)
	body = append(body, `,"name":`...)
	body = appendTextOrNull(body, k.Name)
	body = append(body, `,"prefix":`...)
	body = appendText(body, k.Prefix)
	body = append(body, `,"lastUsedAt":`...)
	body = appendTime(body, k.LastUsedAt)
	body = append(body, `,"createdAt":`...)
	body = appendTime(body, k.CreatedAt)
	body = append(body, `,"usage":{"requests":`...)
	body = strconv.AppendUint(body, k.Uses, 10)
	body = append(body, `,"rateLimit":`...)
	body = appendLimit(body, k.RateLimit)
	r.answer(fiber.StatusOK, bunshipJSON, append(body, "}}}"...))
	return nil
}

// readBunshipCreation reads what a client says of a new key. No scopes, or none
// named, means all of the organization's resources here.
func readBunshipCreation(body []byte) (creation, error) {
	f, err := readCreation(body, []string{"name", "scopes", "rateLimit", "expiresAt"})
	if err != nil {
		return creation{}, err
	}
	if len(f.scopes) == 0 {
		f.scopes = []string{string(domain.ScopeAll)}
	}
	return f.check()
}

// bunshipKeyBytes is more than most keys take.
const bunshipKeyBytes = 320

// appendBunshipKey appends the nine fields, in the order of the contract.
func appendBunshipKey(dst []byte, k *domain.KeyView, now time.Time) []byte {
	dst = slices.Grow(dst, bunshipKeyBytes)
	dst = append(dst, `{"id":`...)
	dst = appendKeyID(dst, k.ID)
	dst = append(dst, `,"name":`...)
	dst = appendTextOrNull(dst, k.Name) // null once it is erased
	dst = append(dst, `,"prefix":`...)
	dst = appendText(dst, k.Prefix)
	dst = append(dst, `,"scopes":`...)
	dst = appendBunshipScopes(dst, k.Scopes)
	dst = append(dst, `,"rateLimit":`...)
	dst = appendLimit(dst, k.RateLimit)
	dst = append(dst, `,"lastUsedAt":`...)
	dst = appendTime(dst, k.LastUsedAt)
	dst = append(dst, `,"expiresAt":`...)
	dst = appendTime(dst, k.ExpiresAt)
	dst = append(dst, `,"isActive":`...)
	dst = strconv.AppendBool(dst, !k.Revoked && !k.Disabled && !k.Expired(now))
	dst = append(dst, `,"createdAt":`...)
	dst = appendTime(dst, k.CreatedAt)
	return append(dst, '}')
}

// appendBunshipScopes shows full access, which is the scope * within, as no scopes.
func appendBunshipScopes(dst []byte, scopes domain.Scopes) []byte {
	if len(scopes) == 1 && scopes[0] == domain.ScopeAll {
		return append(dst, "[]"...)
	}
	return appendScopes(dst, scopes)
}
