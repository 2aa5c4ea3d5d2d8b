package http

import (
	"github.com/gofiber/fiber/v2"

	"keyledger/domain"
)

// VerifyMessage answers a question that did not come over HTTP, with the bodies of
// POST /api/v1/keys/verify: a verdict with the status 200, or problem details with
// theirs. key is the asker's own, for deployments that want to know who verifies. It
// is safe for use by several goroutines, and keeps nothing that it is given.
func (s *Server) VerifyMessage(body []byte, key string) (status int, answer []byte) {
	arrived, verdict := s.clock(), verdictNone
	answer, err := func() (answer []byte, err error) {
		defer func() {
			if p := recover(); p != nil {
				err = s.panicked(p)
			}
		}()
		v, err := s.readMessage(body, key)
		if err != nil {
			return nil, err
		}
		v.Now = arrived
		given, err := s.verifier.Verify(v)
		if err != nil {
			return nil, err
		}
		verdict = verdictLabel(given.Outcome)
		return appendVerdict(nil, &given), nil
	}()
	status = fiber.StatusOK
	if err != nil {
		e := known(err)
		status, answer = native.failure(e)
		if status == fiber.StatusInternalServerError {
			s.logger.Error("a verification by message failed", "error", e)
		}
	}
	s.messages.observe(verdict, status, s.clock().Sub(arrived))
	return status, answer
}

func (s *Server) readMessage(body []byte, key string) (domain.Verification, error) {
	var caller domain.OrganizationID
	if s.options.VerifyAuth {
		var err error
		if caller, err = s.admitMessage(key); err != nil {
			return domain.Verification{}, err
		}
	}
	if len(body) > mostBodyBytes {
		return domain.Verification{}, errBodyTooLarge(mostBodyBytes)
	}
	var q question
	v, err := q.read(body)
	if err != nil {
		return domain.Verification{}, err
	}
	err = restrict(&v, caller)
	return v, err
}

// admitMessage is admitVerifier for who asks by message.
func (s *Server) admitMessage(key string) (domain.OrganizationID, error) {
	if key == "" {
		return "", errNoCredential()
	}
	required := domain.Scopes{domain.ScopeVerify}
	caller, err := s.verifier.Verify(domain.Verification{Digest: digest(key), Required: required, Now: s.clock(), Free: true})
	switch {
	case err != nil:
		return "", err
	case caller.Outcome == domain.OutcomeInsufficientScope:
		return "", lacking(required)
	case caller.Outcome != domain.OutcomeValid:
		return "", errBadCredential()
	}
	return caller.Organization, nil
}
