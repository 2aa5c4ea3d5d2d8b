package http

import (
	"context"
	"strings"
	"time"

	"github.com/gofiber/fiber/v2"

	"keyledger/domain"
)

// Fence makes a revocation hold everywhere before it is answered. *fence.Fence is one.
type Fence interface {
	// Hold returns when nobody accepts what was revoked at a position or before.
	// committed is a moment after its commit returned. CodeUnavailable: whether it
	// holds everywhere is not known.
	Hold(ctx context.Context, position domain.Position, committed time.Time) (domain.Fenced, error)
	// By is when Hold would return at the latest.
	By(ctx context.Context, committed time.Time) (time.Time, error)
	// Record keeps how it ended.
	Record(key domain.KeyID, position domain.Position, fenced domain.Fenced)
	// Tell waits a moment until other servers know of a position.
	Tell(ctx context.Context, position domain.Position)
}

const (
	headerPrefer            = "Prefer"
	headerPreferenceApplied = "Preference-Applied"
	respondAsync            = "respond-async"

	// mostLater bounds the fences that go on after their answer; more are waited for.
	mostLater = 1024
)

// revoked is how a revocation ended.
type revoked struct {
	key     domain.Key
	changed bool // false: it was revoked before, by another request
	fenced  domain.Fenced
	by      time.Time // not zero: it holds everywhere at the latest then, and the fence goes on
}

// hold waits until a revocation holds everywhere, or, later, lets it go on behind the answer.
// Every answer that presupposes a revocation comes here, the first as well as one
// to somebody who asks again.
func (s *Server) hold(r *request, receipt domain.Receipt, result revoked, later bool) (revoked, error) {
	committed := time.Now()
	if s.fence == nil {
		if err := s.waitFor(r.ctx, receipt.Position, indexedWithin); err != nil {
			// It is revoked, and this node might still accept it: that is no success yet.
			return revoked{}, domain.Unavailable(err)
		}
		return result, nil
	}
	fresh := receipt.Changed && !receipt.Replayed
	if skipFence(fresh) {
		return result, nil
	}
	finish := func(ctx context.Context) (domain.Fenced, error) {
		fenced, err := s.fence.Hold(ctx, receipt.Position, committed)
		if err == nil && fresh {
			s.fence.Record(result.key.ID, receipt.Position, fenced)
		}
		return fenced, err
	}
	if later && s.later.TryAcquire(1) {
		by, err := s.fence.By(r.ctx, committed)
		if err != nil {
			s.later.Release(1)
			return revoked{}, err
		}
		go func() {
			defer s.later.Release(1)
			ctx, cancel := context.WithTimeout(s.base, s.options.RequestTimeout)
			defer cancel()
			if _, err := finish(ctx); err != nil {
				s.logger.Warn("it is not known whether a revocation holds everywhere", "key", result.key.ID.String(), "error", err)
			}
		}()
		result.by = by
		r.set(headerPreferenceApplied, respondAsync)
		return result, nil
	}
	var err error
	result.fenced, err = finish(r.ctx)
	return result, err
}

// prefersAsync says whether the client would rather not wait (RFC 7240).
func (r *request) prefersAsync() (bool, error) {
	prefer, err := r.header(headerPrefer)
	if err != nil {
		return false, err
	}
	for preference := range strings.SplitSeq(prefer, ",") {
		name, _, _ := strings.Cut(preference, ";")
		if strings.EqualFold(strings.TrimSpace(name), respondAsync) {
			return true, nil
		}
	}
	return false, nil
}

// status is 202 while the fence goes on.
func (v *revoked) status() int {
	if v.by.IsZero() {
		return fiber.StatusOK
	}
	return fiber.StatusAccepted
}
