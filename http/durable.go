package http

import (
	"context"

	"keyledger/domain"
)

// DurableVerifier verifies for those who must not lose a use.
type DurableVerifier interface {
	// VerifyDurable is Verifier.Verify, and returns when the use is in the log. When it cannot be
	// recorded before ctx ends, the error is CodeUnavailable, and it may be recorded
	// nevertheless.
	VerifyDurable(ctx context.Context, v domain.Verification) (domain.Verdict, error)
	// VerifyAllDurable gives the verdicts on many, in their order, and waits once for all.
	VerifyAllDurable(ctx context.Context, questions []domain.Verification) ([]domain.Verdict, error)
}

// judge gives the verdict on a key: at once, or, where the deployment or the request asks
// for it, when the use is in the log.
func (s *Server) judge(ctx context.Context, v domain.Verification, durable bool) (domain.Verdict, error) {
	if !durable && !s.options.Exact {
		return s.verifier.Verify(v)
	}
	if s.options.Durable == nil {
		return domain.Verdict{}, errNotDurable()
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout) // lean routes have no deadline
	defer cancel()
	return s.options.Durable.VerifyDurable(ctx, v)
}

// judgeAll is judge for all questions of a batch.
func (s *Server) judgeAll(ctx context.Context, questions []domain.Verification, durable bool) ([]domain.Verdict, error) {
	if durable || s.options.Exact {
		if s.options.Durable == nil {
			return nil, errNotDurable()
		}
		return s.options.Durable.VerifyAllDurable(ctx, questions)
	}
	verdicts := make([]domain.Verdict, len(questions))
	for i := range questions {
		var err error
		if verdicts[i], err = s.verifier.Verify(questions[i]); err != nil {
			return nil, err
		}
	}
	return verdicts, nil
}

func errNotDurable() error { return domain.Invalid("durable", "is not offered by this server") }
