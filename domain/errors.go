package domain

import (
	"errors"
	"fmt"
)

// Code says what kind of failure an [Error] is. Each border (SQLSTATE inwards,
// HTTP dialects outwards) maps codes in exactly one place.
type Code string

const (
	CodeInvalid              Code = "invalid"                // a field is malformed; Field names it
	CodeMalformed            Code = "malformed"              // the input as a whole cannot be read
	CodeUnauthenticated      Code = "unauthenticated"        // no credential, or one that proves nothing
	CodeForbidden            Code = "forbidden"              // a good credential without the right
	CodeNotFound             Code = "not_found"              // no such thing, or not for this caller to see
	CodeTooLarge             Code = "too_large"              // the input is over a limit
	CodeUnsupportedMediaType Code = "unsupported_media_type" // the input is of another content type
	CodeUnprocessable        Code = "unprocessable"          // well-formed, and against a rule
	CodeIdempotencyReused    Code = "idempotency_reused"     // a command id that stands for another command
	CodeRateLimited          Code = "rate_limited"           // over the key's limit
	CodeQuotaExceeded        Code = "quota_exceeded"         // the key's quota is used up
	CodeStale                Code = "stale"                  // a position that was asked for is not here yet
	CodeUnavailable          Code = "unavailable"            // the ledger cannot be reached: try again, nothing is known
	CodeInternal             Code = "internal"               // a fault of ours
)

// Error is the one error that borders translate. Message is for the caller and
// never holds a secret or an echo of what was sent; Err is for our logs.
type Error struct {
	Code    Code
	Message string
	Field   string // the input field at fault, in the caller's spelling; empty when there is none
	Err     error
}

func (e *Error) Error() string {
	text := e.Message
	if e.Field != "" {
		text = e.Field + ": " + text
	}
	if e.Err != nil {
		text += ": " + e.Err.Error()
	}
	return text
}

func (e *Error) Unwrap() error { return e.Err }

// Errorf makes an [Error] without a field.
func Errorf(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// Invalid says that a field of the input is malformed.
func Invalid(field, format string, args ...any) *Error {
	return &Error{Code: CodeInvalid, Field: field, Message: fmt.Sprintf(format, args...)}
}

// Unavailable says that the ledger could not be asked. It is never an answer
// about a key.
func Unavailable(err error) *Error {
	return &Error{Code: CodeUnavailable, Message: "the ledger cannot be reached, try again", Err: err}
}

// CodeOf gives the code of an error: CodeInternal for one that is not an [Error].
func CodeOf(err error) Code {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return CodeInternal
}
