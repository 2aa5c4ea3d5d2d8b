package http

import (
	"slices"

	"github.com/gofiber/fiber/v2"

	"keyledger/domain"
)

// bullseye is the dialect of /api/v1/organization/{id}/api-keys.
var bullseye = &dialect{
	problemType:  fiber.MIMEApplicationJSON,
	organization: domain.ParseOrganizationID,
	failure:      bullseyeFailure,
}

// bullseyeFailure is the whole mapping of errors to what Bullseye's clients know.
func bullseyeFailure(e *domain.Error) (int, []byte) {
	var status int
	var code string
	message := sentence(e)
	switch e.Code {
	case domain.CodeInvalid, domain.CodeMalformed:
		status, code = fiber.StatusBadRequest, "bad_request"
	case domain.CodeUnauthenticated:
		status, code, message = fiber.StatusUnauthorized, "unauthorized", "Invalid, missing, expired or revoked API key"
	case domain.CodeForbidden:
		status, code = fiber.StatusForbidden, "forbidden"
	case domain.CodeNotFound:
		status, code, message = fiber.StatusNotFound, "not_found", "Not found"
	case domain.CodeStale:
		status, code = fiber.StatusConflict, "conflict"
	case domain.CodeTooLarge:
		status, code = fiber.StatusRequestEntityTooLarge, "payload_too_large"
	case domain.CodeUnsupportedMediaType:
		status, code = fiber.StatusUnsupportedMediaType, "unsupported_media_type"
	case domain.CodeUnprocessable, domain.CodeIdempotencyReused:
		status, code = fiber.StatusUnprocessableEntity, "unprocessable"
	case domain.CodeRateLimited, domain.CodeQuotaExceeded:
		status, code = fiber.StatusTooManyRequests, "rate_limited"
	case domain.CodeUnavailable:
		status, code = fiber.StatusServiceUnavailable, "unavailable"
	default:
		status, code, message = fiber.StatusInternalServerError, "internal_error", "An unexpected error occurred"
	}
	body := append(make([]byte, 0, 128), `{"code":"`...)
	body = append(body, code...)
	body = append(body, `","message":`...)
	body = appendText(body, message)
	body = append(body, `,"details":{`...)
	if e.Field != "" {
		body = append(body, `"field":`...)
		body = appendText(body, e.Field)
	}
	return status, append(body, "}}"...)
}

func (s *Server) bullseyeList(r *request) error {
	l, err := s.list(r)
	if err != nil {
		return err
	}
	body := make([]byte, 0, 64+len(l.keys)*bullseyeKeyBytes)
	body = append(body, `{"apiKeys":[`...)
	for i := range l.keys {
		if i > 0 {
			body = append(body, ',')
		}
		body = appendBullseyeKey(body, &l.keys[i])
	}
	body = append(body, ']')
	if l.limit > 0 {
		body = append(body, `,"nextCursor":`...)
		body = appendTextOrNull(body, l.next)
	}
	r.answer(fiber.StatusOK, fiber.MIMEApplicationJSON, append(body, '}'))
	return nil
}

func (s *Server) bullseyeCreate(r *request) error {
	made, err := s.createAsked(r, readBullseyeCreation)
	if err != nil {
		return err
	}
	body := append(make([]byte, 0, 128+bullseyeKeyBytes), `{"apiKey":`...)
	body = appendBullseyeKey(body, &domain.KeyView{Key: made.key})
	body = append(body, `,"plainKey":`...)
	body = appendTextOrNull(body, made.secret.Reveal())
	r.answer(fiber.StatusCreated, fiber.MIMEApplicationJSON, append(body, '}'))
	return nil
}

func (s *Server) bullseyeRevoke(r *request) error {
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
	with := s.lastUse(r.ctx, id)
	done, err := s.revoke(r, p, id, "", false)
	if err != nil {
		return err
	}
	body := append(make([]byte, 0, 64+bullseyeKeyBytes), `{"success":true,"apiKey":`...)
	body = appendBullseyeKey(body, with(done.key))
	r.answer(fiber.StatusOK, fiber.MIMEApplicationJSON, append(body, '}'))
	return nil
}

// readBullseyeCreation reads what a client says of a new key. A limit of its own
// is not part of this dialect.
func readBullseyeCreation(body []byte) (creation, error) {
	f, err := readCreation(body, []string{"name", "scopes", "expiresAt"})
	if err != nil {
		return creation{}, err
	}
	if f.scopes == nil {
		f.scopes = []string{string(domain.ScopeRead), string(domain.ScopeWrite)}
	}
	return f.check()
}

// bullseyeKeyBytes is more than most keys take.
const bullseyeKeyBytes = 400

// appendBullseyeKey appends the ten fields, in the order of the contract.
func appendBullseyeKey(dst []byte, k *domain.KeyView) []byte {
	dst = slices.Grow(dst, bullseyeKeyBytes)
	dst = append(dst, `{"id":"`...)
	dst = append(dst, k.ID.UUID()...)
	dst = append(dst, `","organizationId":`...)
	dst = appendText(dst, string(k.Organization))
	dst = append(dst, `,"createdByUserId":`...)
	dst = appendTextOrNull(dst, string(k.CreatedBy))
	dst = append(dst, `,"name":`...)
	dst = appendTextOrNull(dst, k.Name) // null once it is erased
	dst = append(dst, `,"keyPrefix":`...)
	dst = appendText(dst, k.Prefix)
	dst = append(dst, `,"scopes":`...)
	dst = appendScopes(dst, k.Scopes)
	// An expired key keeps its status, as Bullseye's clients expect.
	if k.Revoked {
		dst = append(dst, `,"status":"revoked","expiresAt":`...)
	} else {
		dst = append(dst, `,"status":"active","expiresAt":`...)
	}
	dst = appendTime(dst, k.ExpiresAt)
	dst = append(dst, `,"lastUsedAt":`...)
	dst = appendTime(dst, k.LastUsedAt)
	dst = append(dst, `,"createdAt":`...)
	dst = appendTime(dst, k.CreatedAt)
	return append(dst, '}')
}
