package http

import (
	"time"

	"github.com/gofiber/fiber/v2"

	"keyledger/domain"
)

// VerifyMessage answers a question that did not come over HTTP, with the bodies of
// POST /api/v1/keys/verify: a verdict with the status 200, or problem details with
// theirs. key is the asker's own, for deployments that want to know who verifies. It
// is safe for use by several goroutines, and keeps nothing that it is given.
//
// When the answer has to wait until the use is in the log, later is not nil, and gives it.
func (s *Server) VerifyMessage(body []byte, key string) (status int, answer []byte, later func() (status int, answer []byte)) {
	m := message{server: s, arrived: s.clock()}
	m.read(body, key)
	if m.durable {
		return 0, nil, m.answer
	}
	status, answer = m.answer()
	return status, answer, nil
}

// message is a question that came as one.
type message struct {
	server     *Server
	arrived    time.Time
	caller     domain.Digest // of the asker's own key, when that matters and
	called     bool          // there was one
	question   domain.Verification
	unreadable error // what is wrong with the question
	durable    bool
}

func (m *message) read(body []byte, key string) {
	defer func() {
		if p := recover(); p != nil {
			m.unreadable = m.server.panicked(p)
		}
	}()
	if m.server.options.VerifyAuth && key != "" {
		m.caller, m.called = digest(key), true
	}
	m.durable = m.server.options.Exact
	if len(body) > mostBodyBytes {
		m.unreadable = errBodyTooLarge(mostBodyBytes)
		return
	}
	var q question
	if m.question, m.unreadable = q.read(body); m.unreadable == nil {
		m.durable = m.durable || q.durable
	}
}

func (m message) answer() (status int, answer []byte) {
	s := m.server
	verdict, err := func() (verdict domain.Verdict, err error) {
		defer func() {
			if p := recover(); p != nil {
				err = s.panicked(p)
			}
		}()
		return m.judge()
	}()
	label := verdictNone
	if err == nil {
		status, answer, label = fiber.StatusOK, appendVerdict(nil, &verdict), labelOf(&verdict)
	} else {
		e := known(err)
		if status, answer = native.failure(e); status == fiber.StatusInternalServerError {
			s.logger.Error("a verification by message failed", "error", e)
		}
	}
	s.messages.observe(label, status, s.clock().Sub(m.arrived))
	return status, answer
}

func (m *message) judge() (domain.Verdict, error) {
	var caller domain.OrganizationID
	if m.server.options.VerifyAuth {
		var err error
		if caller, err = m.admit(); err != nil {
			return domain.Verdict{}, err
		}
	}
	if m.unreadable != nil {
		return domain.Verdict{}, m.unreadable
	}
	v := m.question
	if err := restrict(&v, caller); err != nil {
		return domain.Verdict{}, err
	}
	v.Now = m.arrived
	return m.server.judge(m.server.base, v, m.durable)
}

// admit is admitVerifier for who asks by message.
func (m *message) admit() (domain.OrganizationID, error) {
	if !m.called {
		return "", errNoCredential()
	}
	required := domain.Scopes{domain.ScopeVerify}
	caller, err := m.server.judge(m.server.base, domain.Verification{Digest: m.caller, Required: required, Now: m.server.clock(), Free: true}, false)
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
