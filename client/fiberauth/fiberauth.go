// Package fiberauth verifies the API key of every request to a Fiber (v2) handler.
//
//	app.Use(fiberauth.Middleware(checker, fiberauth.Options{}))
//	app.Get("/orders", fiberauth.Require("orders:read"), orders)
//
// The checker is a *client.Client, which asks a server, or an embedded verifier,
// which answers in memory. It is a package of its own so that nobody else's build
// pulls in Fiber.
//
// # What it promises
//
// What httpauth promises, and that nothing of a request outlives it: Fiber's strings
// point into buffers which the next request overwrites, so what is handed to
// the checker is copied.
package fiberauth

import (
	"context"
	"fmt"
	"time"

	"github.com/gofiber/fiber/v2"

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
	Refuse func(c *fiber.Ctx, refusal *client.Refusal) error
}

type verdictKey struct{}

// FromContext gives the verdict with which a request was admitted. It stays good
// after the request.
func FromContext(c *fiber.Ctx) (client.Verdict, bool) {
	v, ok := c.Locals(verdictKey{}).(client.Verdict)
	return v, ok
}

// FromUserContext gives the verdict from Fiber's UserContext, for what is handed
// no more than that.
func FromUserContext(ctx context.Context) (client.Verdict, bool) {
	v, ok := ctx.Value(verdictKey{}).(client.Verdict)
	return v, ok
}

// Middleware admits requests with a valid key, in X-API-Key or Authorization: Bearer.
func Middleware(checker client.Checker, o Options) fiber.Handler {
	if o.Refuse == nil {
		o.Refuse = problem
	}
	if o.Timeout == 0 {
		o.Timeout = DefaultTimeout
	}
	return func(c *fiber.Ctx) error {
		key, refusal := client.PresentedKey(copies(c, "X-Api-Key"), copies(c, fiber.HeaderAuthorization))
		if refusal != nil {
			return o.Refuse(c, refusal)
		}
		ctx, cancel := context.WithTimeout(c.UserContext(), o.Timeout)
		v, err := checker.Verify(ctx, client.Question{Key: key, Scopes: o.Scopes, Organization: o.Organization})
		cancel()
		if err == nil {
			for name, value := range v.RateLimit.Header() {
				c.Set(name, value)
			}
		}
		if refusal := client.Refuse(v, err); refusal != nil {
			return o.Refuse(c, refusal)
		}
		c.Locals(verdictKey{}, v)
		c.SetUserContext(context.WithValue(c.UserContext(), verdictKey{}, v))
		return c.Next()
	}
}

// Require lets a request pass whose key has all of these scopes, or implies them.
// It stands behind Middleware. A scope that is not one is a mistake of the
// program: Require panics.
func Require(scope client.Scope, more ...client.Scope) fiber.Handler {
	return RequireOr(nil, scope, more...)
}

// RequireOr is Require with another way to write a refusal.
func RequireOr(refuse func(c *fiber.Ctx, refusal *client.Refusal) error, scope client.Scope, more ...client.Scope) fiber.Handler {
	if refuse == nil {
		refuse = problem
	}
	scopes, err := domain.ParseScopes(client.Scopes(append([]client.Scope{scope}, more...)).Strings())
	if err != nil {
		panic(fmt.Sprintf("fiberauth: %v", err))
	}
	return func(c *fiber.Ctx) error {
		v, ok := FromContext(c)
		if refusal := client.Guard(v, ok, scopes); refusal != nil {
			return refuse(c, refusal)
		}
		return c.Next()
	}
}

// copies gives all values of a header field, out of Fiber's buffers.
func copies(c *fiber.Ctx, name string) []string {
	values := c.Request().Header.PeekAll(name)
	if len(values) == 0 {
		return nil
	}
	texts := make([]string, len(values))
	for i, v := range values {
		texts[i] = string(v)
	}
	return texts
}

func problem(c *fiber.Ctx, refusal *client.Refusal) error {
	for name, value := range refusal.Header() {
		c.Set(name, value)
	}
	return c.Status(refusal.Status).Send(refusal.Body())
}
