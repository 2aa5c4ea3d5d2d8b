package http

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/gofiber/fiber/v2"
	"github.com/gofiber/fiber/v2/utils"
	"github.com/valyala/fasthttp"

	"keyledger/domain"
)

const (
	batchPath = "/api/v1/keys/verify/batch"

	mostBatchBytes = 1 << 20
	mostBatchKeys  = 1000
)

// bodyLimit is the size of the largest body that a path takes. Whoever sends more is
// refused before it is read.
func bodyLimit(path string) int {
	switch {
	case path == batchPath:
		return mostBatchBytes
	case strings.HasPrefix(path, verifiersPath+"/") && strings.HasSuffix(path, usesSuffix):
		return mostReportBytes
	}
	return mostBodyBytes
}

// headerReceived lets some requests be larger than others.
func headerReceived(header *fasthttp.RequestHeader) fasthttp.RequestConfig {
	path, _, _ := bytes.Cut(header.RequestURI(), []byte("?"))
	if most := bodyLimit(utils.UnsafeString(path)); most != mostBodyBytes {
		return fasthttp.RequestConfig{MaxRequestBodySize: most}
	}
	return fasthttp.RequestConfig{}
}

// verifyBatch answers POST /api/v1/keys/verify/batch: a verdict for each key, in
// their order. The whole body is read before the first key is looked at, so a batch
// with a mistake in it costs nobody's limit.
func (s *Server) verifyBatch(r *request) error {
	var caller domain.OrganizationID
	if s.options.VerifyAuth {
		var err error
		if caller, err = s.admitVerifier(r); err != nil {
			return err
		}
	}
	body, err := r.jsonBodyWithin(mostBatchBytes)
	if err != nil {
		return err
	}
	questions, durable, err := readBatch(body)
	if err != nil {
		return err
	}
	for i := range questions {
		if err := restrict(&questions[i], caller); err != nil {
			return inBatch(i, err)
		}
	}
	minimum, err := s.awaitMinimum(r)
	if err != nil {
		return err
	}
	now := r.arrived
	if minimum > 0 {
		now = s.clock()
	}
	for i := range questions {
		questions[i].Now = now
	}
	verdicts, err := s.judgeAll(r.ctx, questions, durable)
	if err != nil {
		return err
	}
	answer := append(make([]byte, 0, 32+len(questions)*batchVerdictBytes), `{"results":[`...)
	known := 0
	for i := range verdicts {
		if verdicts[i].Outcome != domain.OutcomeNotFound {
			known++
		}
		if i > 0 {
			answer = append(answer, ',')
		}
		answer = appendVerdict(answer, &verdicts[i])
	}
	// A batch with a known key in it is answered whole, wherever it comes from. Its
	// unknown ones are paid for all the same.
	if unknown := len(questions) - known; unknown > 0 {
		if err := s.unknown(r, unknown); err != nil && known == 0 {
			return err
		}
		r.retryAfter = 0
	}
	r.answer(fiber.StatusOK, fiber.MIMEApplicationJSON, append(answer, `]}`...))
	return nil
}

// batchVerdictBytes is more than most verdicts take.
const batchVerdictBytes = 320

// readBatch reads {"keys":[...],"durable":true}. Each of the keys is the body of a single
// verification; one that must be durable makes the batch so, which waits once for all.
func readBatch(body []byte) (questions []domain.Verification, durable bool, err error) {
	given := false
	err = decodeObject(body, []string{"keys", "durable"}, func(d *decoder, name string) error {
		if name == "durable" {
			null, err := d.null()
			if null || err != nil {
				return err
			}
			all, err := d.flag(name)
			durable = durable || all
			return err
		}
		given = true
		switch d.PeekKind() {
		case jsontext.KindBeginArray, jsontext.KindInvalid:
		default:
			return domain.Invalid(name, "must be an array of objects")
		}
		if _, err := d.ReadToken(); err != nil {
			return d.malformed(err)
		}
		var q question
		for d.PeekKind() != jsontext.KindEndArray {
			i := len(questions)
			value, err := d.ReadValue()
			if err != nil {
				return inBatch(i, d.malformed(err))
			}
			if i == mostBatchKeys {
				return domain.Invalid(name, "must name at most %d keys", mostBatchKeys)
			}
			if value.Kind() != jsontext.KindBeginObject {
				return domain.Invalid(fmt.Sprintf("keys[%d]", i), "must be an object")
			}
			v, err := q.read(value)
			if err != nil {
				return inBatch(i, err)
			}
			questions = append(questions, v)
			durable = durable || q.durable
		}
		if _, err := d.ReadToken(); err != nil {
			return d.malformed(err)
		}
		return nil
	})
	switch {
	case err != nil:
		return nil, false, err
	case !given:
		return nil, false, domain.Invalid("keys", "is required")
	case len(questions) == 0:
		return nil, false, domain.Invalid("keys", "must name at least one key")
	}
	return questions, durable, nil
}

// inBatch says of which key an error is: keys[17].scopes.
func inBatch(i int, err error) error {
	var e *domain.Error
	if !errors.As(err, &e) {
		return err
	}
	at := *e
	at.Field = fmt.Sprintf("keys[%d]", i)
	if e.Field != "" && e.Field != "keys" {
		at.Field += "." + e.Field
	}
	if e.Field == "" && e.Code == domain.CodeMalformed {
		at.Message = "is not valid JSON in UTF-8, or is nested too deeply"
	}
	return &at
}

// restrict keeps a caller with a key of its own to its organization's keys.
func restrict(v *domain.Verification, caller domain.OrganizationID) error {
	if caller == "" || caller == domain.SystemOrganization {
		return nil
	}
	if v.Within != "" && v.Within != caller {
		return &domain.Error{Code: domain.CodeForbidden, Field: "organizationId", Message: "is not the caller's"}
	}
	v.Within = caller
	return nil
}
