// Package httpauth verifies the API key of every request to a net/http handler.
//
//	verified := httpauth.Middleware(checker, httpauth.Options{})
//	mux.Handle("GET /orders", verified(httpauth.Require("orders:read")(orders)))
//
// The checker is a *client.Client, which asks a server, or an embedded verifier,
// which answers in memory.
//
// # What it promises
//
//   - A handler behind Middleware runs for a valid key only, and finds its verdict in
//     the request's context. One behind Require runs only when that key has the scopes; where
//     no verdict is, it does not run.
//   - 401 is for keys that are not good, 403 for scopes, 429 for limits. When a key
//     cannot be verified that is 503, and says nothing about the key.
//   - Nothing that it answers or passes on holds the key, but the request's own header.
package httpauth

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"keyledger/client"
	"keyledger/domain"
)

// DefaultTimeout bounds a verification, if nothing else is said.
const DefaultTimeout = 5 * time.Second

// Options of a middleware. The zero value admits every valid key.
type Options struct {
	Scopes       client.Scopes         // that every key must have, or imply
	Organization client.OrganizationID // the only one whose keys are admitted; empty: all
	Timeout      time.Duration         // of a verification; 0: DefaultTimeout
	// Refuse writes a refusal in the service's own way. nil: as problem details.
	Refuse func(w http.ResponseWriter, r *http.Request, refusal *client.Refusal)
}

type verdictKey struct{}

// FromContext gives the verdict with which a request was admitted.
func FromContext(ctx context.Context) (client.Verdict, bool) {
	v, ok := ctx.Value(verdictKey{}).(client.Verdict)
	return v, ok
}

// Middleware admits requests with a valid key, in X-API-Key or Authorization: Bearer.
func Middleware(checker client.Checker, o Options) func(http.Handler) http.Handler {
	o.Refuse = orProblem(o.Refuse)
	if o.Timeout == 0 {
		o.Timeout = DefaultTimeout
	}
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			key, refusal := client.PresentedKey(r.Header["X-Api-Key"], r.Header["Authorization"])
			if refusal != nil {
				o.Refuse(w, r, refusal)
				return
			}
			ctx, cancel := context.WithTimeout(r.Context(), o.Timeout)
			v, err := checker.Verify(ctx, client.Question{Key: key, Scopes: o.Scopes, Organization: o.Organization})
			cancel()
			if err == nil {
				for name, value := range v.RateLimit.Header() {
					w.Header().Set(name, value)
				}
			}
			if refusal := client.Refuse(v, err); refusal != nil {
				o.Refuse(w, r, refusal)
				return
			}
			next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), verdictKey{}, v)))
		})
	}
}

// Require lets a request pass whose key has all of these scopes, or implies them.
// It stands behind Middleware. A scope that is not one is a mistake of the
// program: Require panics.
func Require(scope client.Scope, more ...client.Scope) func(http.Handler) http.Handler {
	return RequireOr(nil, scope, more...)
}

// RequireOr is Require with another way to write a refusal.
func RequireOr(refuse func(w http.ResponseWriter, r *http.Request, refusal *client.Refusal), scope client.Scope, more ...client.Scope) func(http.Handler) http.Handler {
	refuse = orProblem(refuse)
	scopes, err := domain.ParseScopes(client.Scopes(append([]client.Scope{scope}, more...)).Strings())
	if err != nil {
		panic(fmt.Sprintf("httpauth: %v", err))
	}
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			v, ok := FromContext(r.Context())
			if refusal := client.Guard(v, ok, scopes); refusal != nil {
				refuse(w, r, refusal)
				return
			}
			next.ServeHTTP(w, r)
		})
	}
}

func orProblem(refuse func(http.ResponseWriter, *http.Request, *client.Refusal)) func(http.ResponseWriter, *http.Request, *client.Refusal) {
	if refuse != nil {
		return refuse
	}
	return func(w http.ResponseWriter, _ *http.Request, refusal *client.Refusal) {
		for name, value := range refusal.Header() {
			w.Header().Set(name, value)
		}
		w.WriteHeader(refusal.Status)
		_, _ = w.Write(refusal.Body()) //nolint:gosec // JSON of our own words; and the client may be gone
	}
}
