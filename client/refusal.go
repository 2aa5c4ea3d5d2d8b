package client

import (
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Refusal is how a service answers a request that may not pass. The packages
// httpauth and fiberauth write it; it is here for those who write another middleware.
type Refusal struct {
	Status     int
	Code       string        // for programs: unauthenticated, forbidden, rate_limited, quota_exceeded, ...
	Detail     string        // for people; it never repeats what was presented
	RetryAfter time.Duration // 0: none
}

// PresentedKey reads the credential of a request from its X-API-Key and
// Authorization fields: all values of each. Two that differ are refused, since
// whichever were taken, somebody would have meant the other one.
func PresentedKey(apiKey, authorization []string) (string, *Refusal) {
	ambiguous := &Refusal{Status: http.StatusBadRequest, Code: "invalid", Detail: "the request names two credentials"}
	key, one := only(apiKey)
	header, other := only(authorization)
	if !one || !other {
		return "", ambiguous
	}
	scheme, bearer, _ := strings.Cut(header, " ")
	bearer = strings.TrimSpace(bearer)
	isBearer := strings.EqualFold(scheme, "bearer")
	switch {
	case key != "" && header != "" && (key != bearer || !isBearer):
		return "", ambiguous
	case key != "":
		return key, nil
	case isBearer && bearer != "":
		return bearer, nil
	}
	return "", &Refusal{Status: http.StatusUnauthorized, Code: "unauthenticated", Detail: "an API key is needed, in X-API-Key or Authorization: Bearer"}
}

// only gives the one value of a field, which may be there several times.
func only(values []string) (string, bool) {
	if len(values) == 0 {
		return "", true
	}
	for _, v := range values[1:] {
		if v != values[0] {
			return "", false
		}
	}
	return values[0], true
}

// Refuse says how a verification is answered: nil for a key that is valid. Unknown,
// revoked, disabled and expired keys are refused alike. What is no verdict is 503: a
// failure of ours says nothing about the key, and must not have it thrown away.
func Refuse(v Verdict, err error) *Refusal {
	switch {
	case err != nil:
		return &Refusal{Status: http.StatusServiceUnavailable, Code: "unavailable", Detail: "the key cannot be verified now, try again", RetryAfter: time.Second}
	case v.Valid && v.Code == Valid:
		return nil
	case v.Code == InsufficientScope:
		return lacking()
	case v.Code == RateLimited:
		next := v.RateLimit.Next
		if next.IsZero() {
			next = v.RateLimit.Reset
		}
		return &Refusal{Status: http.StatusTooManyRequests, Code: "rate_limited", Detail: "the key is over its limit", RetryAfter: max(time.Second, time.Until(next))}
	case v.Code == QuotaExceeded:
		r := &Refusal{Status: http.StatusTooManyRequests, Code: "quota_exceeded", Detail: "the key's quota is used up"}
		if !v.Quota.ResetsAt.IsZero() {
			r.RetryAfter = max(time.Second, time.Until(v.Quota.ResetsAt))
		}
		return r
	}
	return &Refusal{Status: http.StatusUnauthorized, Code: "unauthenticated", Detail: "the API key is not valid"}
}

// Guard says whether the key that a request was admitted with has scopes, or implies
// them. A request that no verdict is known of was never admitted: that is a fault
// in how the service is put together, and it does not pass.
func Guard(v Verdict, admitted bool, scopes Scopes) *Refusal {
	switch {
	case !admitted || !v.Valid || v.Code != Valid || len(scopes) == 0:
		return &Refusal{Status: http.StatusInternalServerError, Code: "internal", Detail: "this route asks for a scope, and nothing has verified a key"}
	case !v.Scopes.ImplyAll(scopes):
		return lacking()
	}
	return nil
}

func lacking() *Refusal {
	return &Refusal{Status: http.StatusForbidden, Code: "forbidden", Detail: "the API key lacks a scope that is needed here"}
}

// Header are the fields of the answer.
func (r *Refusal) Header() map[string]string {
	header := map[string]string{"Content-Type": "application/problem+json", "Cache-Control": "no-store"}
	if r.Status == http.StatusUnauthorized {
		header["WWW-Authenticate"] = "Bearer"
	}
	if r.RetryAfter > 0 {
		header["Retry-After"] = strconv.FormatInt(int64((r.RetryAfter+time.Second-1)/time.Second), 10)
	}
	return header
}

// Body is the answer as problem details (RFC 9457).
func (r *Refusal) Body() []byte {
	body, err := json.Marshal(struct {
		Type   string `json:"type"`
		Title  string `json:"title"`
		Status int    `json:"status"`
		Detail string `json:"detail"`
		Code   string `json:"code"`
	}{"about:blank", http.StatusText(r.Status), r.Status, r.Detail, r.Code})
	if err != nil {
		return nil // texts and a number: it cannot fail
	}
	return body
}

// Header are the fields that tell a key how it stands against its limit; none for a
// key without one.
func (l RateLimit) Header() map[string]string {
	if l.Limit == 0 {
		return nil
	}
	return map[string]string{
		"X-RateLimit-Limit":     strconv.FormatUint(uint64(l.Limit), 10),
		"X-RateLimit-Remaining": strconv.FormatUint(uint64(l.Remaining), 10),
		"X-RateLimit-Reset":     strconv.FormatInt(l.Reset.Add(time.Second-1).Unix(), 10),
	}
}
