package client

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// The kinds of failure. Every error of the service is one of them by errors.Is.
var (
	// ErrInvalid: the request is malformed, or against a rule; [Error.Field] names what.
	ErrInvalid = errors.New("the request is not valid")
	// ErrUnauthenticated: the credential that the client itself uses is not good.
	ErrUnauthenticated = errors.New("the client's own credential is not good")
	// ErrForbidden: a good credential, and not for this.
	ErrForbidden = errors.New("the client's own credential does not allow this")
	// ErrNotFound: no such thing, or not for this credential to see.
	ErrNotFound = errors.New("not found")
	// ErrStale: the position that was asked for has not been reached in time, or is of
	// another epoch; then forget it.
	ErrStale = errors.New("the minimum position was not reached")
	// ErrIdempotencyReused: the idempotency key stands for another request.
	ErrIdempotencyReused = errors.New("the idempotency key stands for another request")
	// ErrRateLimited: try again after [Error.RetryAfter].
	ErrRateLimited = errors.New("rate limit exceeded")
	// ErrQuotaExceeded: the quota of the client's own key is used up. [Error.RetryAfter] is when it is
	// refilled, 0 when it never is.
	ErrQuotaExceeded = errors.New("quota exceeded")
	// ErrUnavailable: nothing is known. The service cannot be reached, or knows too
	// little to answer. It never says anything about a key; and of a write it is not
	// known whether it happened.
	ErrUnavailable = errors.New("keyledger is unavailable")
	// ErrInternal: a fault of the service, or an answer that makes no sense.
	ErrInternal = errors.New("keyledger failed")
	// ErrAnotherHistory: the ledger was restored or replaced, and events that were
	// handled may never have happened.
	ErrAnotherHistory = errors.New("the ledger was restored or replaced, and the same positions may stand for other events now")
)

// Error is a failure as the service told it, or one on the way to it.
type Error struct {
	Status     int    // of the answer; 0 when there was none
	Code       string // for programs, such as not_found
	Message    string // for people
	Field      string // the field of the request at fault; empty when there is none
	RetryAfter time.Duration
	RequestID  string // what the service's logs have
	Err        error  // what happened on the way
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString("keyledger: ")
	switch {
	case e.Message != "":
		b.WriteString(e.Message)
	case e.Status != 0:
		fmt.Fprintf(&b, "%d %s", e.Status, http.StatusText(e.Status))
	default:
		b.WriteString(e.kind().Error())
	}
	if e.Err != nil {
		b.WriteString(": ")
		b.WriteString(e.Err.Error())
	}
	if e.RequestID != "" {
		fmt.Fprintf(&b, " (request %s)", e.RequestID)
	}
	return b.String()
}

// Unwrap gives the kind of the failure, and what happened on the way.
func (e *Error) Unwrap() []error {
	if e.Err != nil {
		return []error{e.kind(), e.Err}
	}
	return []error{e.kind()}
}

// kind maps codes, and where there is none, statuses. It is the only place that does.
func (e *Error) kind() error {
	switch e.Code {
	case "invalid", "malformed", "too_large", "unsupported_media_type", "unprocessable":
		return ErrInvalid
	case "unauthenticated":
		return ErrUnauthenticated
	case "forbidden":
		return ErrForbidden
	case "not_found":
		return ErrNotFound
	case "stale":
		return ErrStale
	case "idempotency_reused":
		return ErrIdempotencyReused
	case "rate_limited":
		return ErrRateLimited
	case "quota_exceeded":
		return ErrQuotaExceeded
	case "unavailable":
		return ErrUnavailable
	case "internal":
		return ErrInternal
	}
	switch e.Status {
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType, http.StatusUnprocessableEntity:
		return ErrInvalid
	case http.StatusUnauthorized:
		return ErrUnauthenticated
	case http.StatusForbidden:
		return ErrForbidden
	case http.StatusNotFound:
		return ErrNotFound
	case http.StatusConflict:
		return ErrStale
	case http.StatusTooManyRequests:
		return ErrRateLimited
	case 0, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return ErrUnavailable
	}
	return ErrInternal
}
