package http

import (
	"errors"
	"strconv"

	"github.com/gofiber/fiber/v2"
	"github.com/valyala/fasthttp"

	"keyledger/domain"
)

// native is our own dialect: everything that neither seed has.
var native = &dialect{
	problemType:  "application/problem+json",
	organization: domain.ParseOrganizationID,
	failure:      nativeFailure,
}

// nativeFailure maps errors to problem details (RFC 9457). code is for programs,
// detail for people.
func nativeFailure(e *domain.Error) (int, []byte) {
	var status int
	detail := sentence(e)
	switch e.Code {
	case domain.CodeInvalid, domain.CodeMalformed:
		status = fiber.StatusBadRequest
	case domain.CodeUnauthenticated:
		status = fiber.StatusUnauthorized
	case domain.CodeForbidden:
		status = fiber.StatusForbidden
	case domain.CodeNotFound:
		status = fiber.StatusNotFound
	case domain.CodeStale:
		status = fiber.StatusConflict
	case domain.CodeTooLarge:
		status = fiber.StatusRequestEntityTooLarge
	case domain.CodeUnsupportedMediaType:
		status = fiber.StatusUnsupportedMediaType
	case domain.CodeUnprocessable, domain.CodeIdempotencyReused:
		status = fiber.StatusUnprocessableEntity
	case domain.CodeRateLimited, domain.CodeQuotaExceeded:
		status = fiber.StatusTooManyRequests
	case domain.CodeUnavailable:
		status = fiber.StatusServiceUnavailable
	default:
		status, detail = fiber.StatusInternalServerError, "an unexpected error occurred"
	}
	body := append(make([]byte, 0, 192), `{"type":"about:blank","title":`...)
	body = appendText(body, fasthttp.StatusMessage(status))
	body = append(body, `,"status":`...)
	body = strconv.AppendInt(body, int64(status), 10)
	body = append(body, `,"detail":`...)
	body = appendText(body, detail)
	body = append(body, `,"code":"`...)
	body = append(body, e.Code...)
	body = append(body, '"')
	if e.Field != "" {
		body = append(body, `,"field":`...)
		body = appendText(body, e.Field)
	}
	return status, append(body, '}')
}

// awaitMinimum waits for the minimum position that a request asks for, and gives
// it; 0 when it asks for none.
func (s *Server) awaitMinimum(r *request) (domain.Position, error) {
	text, err := r.header(headerMinPosition)
	if text == "" || err != nil {
		return 0, err
	}
	wait, err := r.wait()
	if err != nil {
		return 0, err
	}
	token, err := domain.ParseToken(text)
	switch {
	case err != nil || token.Lane != domain.Lifecycle:
		return 0, domain.Invalid(headerMinPosition, "must be a position token as a write returned it")
	case token.Epoch != s.options.Epoch:
		// Waiting would never end: the position was of a history that was given up.
		r.set(headerEpoch, strconv.FormatUint(uint64(s.options.Epoch), 10))
		return 0, &domain.Error{
			Code: domain.CodeStale, Field: headerMinPosition,
			Message: "is of another epoch of the ledger, which was restored since: forget it, read anew and use the positions of new writes",
		}
	}
	if err := s.waitFor(r.ctx, token.Position, wait); err != nil {
		var e *domain.Error
		if errors.As(err, &e) && e.Code == domain.CodeStale {
			e.Field = headerMinPosition
		}
		return 0, err
	}
	return token.Position, nil
}
