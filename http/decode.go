package http

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"keyledger/domain"
)

const mostNesting = 32

// decoder reads one JSON object, member by member. Its defaults refuse what RFC
// 7493 (I-JSON) refuses: duplicate names and invalid UTF-8.
type decoder struct {
	*jsontext.Decoder
	// known are the member names that an error may repeat. Any other name is the
	// client's own text.
	known []string
}

// decodeObject reads a body that must be one JSON object. member is called at the
// value of each known member and must read it; unknown ones are passed over.
func decodeObject(body []byte, knownNames []string, member func(d *decoder, name string) error) error {
	d := &decoder{jsontext.NewDecoder(bytes.NewBuffer(body)), knownNames}
	if len(bytes.TrimLeft(body, " \t\r\n")) == 0 {
		return domain.Errorf(domain.CodeMalformed, "the body must be a JSON object")
	}
	switch d.PeekKind() {
	case jsontext.KindBeginObject, jsontext.KindInvalid:
	default:
		return domain.Invalid("body", "must be a JSON object")
	}
	if _, err := d.ReadToken(); err != nil {
		return d.malformed(err)
	}
	for d.PeekKind() != jsontext.KindEndObject {
		token, err := d.ReadToken()
		if err != nil {
			return d.malformed(err)
		}
		name := token.String()
		if !slices.Contains(knownNames, name) {
			if err := d.skip(); err != nil {
				return err
			}
			continue
		}
		if err := member(d, name); err != nil {
			return err
		}
	}
	if _, err := d.ReadToken(); err != nil {
		return d.malformed(err)
	}
	if _, err := d.ReadToken(); !errors.Is(err, io.EOF) {
		return domain.Errorf(domain.CodeMalformed, "the body must be one JSON object and nothing after it")
	}
	return nil
}

// skip passes over a value of any kind, but not of any depth.
func (d *decoder) skip() error {
	depth := d.StackDepth()
	for {
		if _, err := d.ReadToken(); err != nil {
			return d.malformed(err)
		}
		switch now := d.StackDepth(); {
		case now == depth:
			return nil
		case now > mostNesting:
			e := domain.Errorf(domain.CodeMalformed, "the body must not be nested deeper than %d levels", mostNesting)
			e.Field = d.field(d.StackPointer())
			return e
		}
	}
}

// malformed says what is wrong without the decoder's own text, which quotes the input.
func (d *decoder) malformed(err error) error {
	e := domain.Errorf(domain.CodeMalformed, "the body is not valid JSON")
	var syntax *jsontext.SyntacticError
	if errors.As(err, &syntax) {
		e.Field = d.field(syntax.JSONPointer)
		switch {
		case errors.Is(err, jsontext.ErrDuplicateName) && e.Field != "":
			e.Message = "must be given once"
		case errors.Is(err, jsontext.ErrDuplicateName):
			e.Message = "the body gives a name twice"
		case e.Field != "":
			e.Message = "is not valid JSON in UTF-8"
		}
	}
	return e
}

// field gives the member that a pointer leads to, if its name may be repeated.
func (d *decoder) field(p jsontext.Pointer) string {
	for name := range p.Tokens() {
		if slices.Contains(d.known, name) {
			return name
		}
		break
	}
	return ""
}

// null passes over a null, and says whether there was one.
func (d *decoder) null() (bool, error) {
	if d.PeekKind() != jsontext.KindNull {
		return false, nil
	}
	if _, err := d.ReadToken(); err != nil {
		return false, d.malformed(err)
	}
	return true, nil
}

func (d *decoder) text(field string) (string, error) {
	switch d.PeekKind() {
	case jsontext.KindString:
		token, err := d.ReadToken()
		if err != nil {
			return "", d.malformed(err)
		}
		return token.String(), nil
	case jsontext.KindInvalid:
		_, err := d.ReadToken()
		return "", d.malformed(err)
	}
	return "", domain.Invalid(field, "must be a string")
}

func (d *decoder) texts(field string) ([]string, error) {
	switch d.PeekKind() {
	case jsontext.KindBeginArray, jsontext.KindInvalid:
	default:
		return nil, domain.Invalid(field, "must be an array of strings")
	}
	if _, err := d.ReadToken(); err != nil {
		return nil, d.malformed(err)
	}
	texts := []string{}
	for {
		switch d.PeekKind() {
		case jsontext.KindString:
			token, err := d.ReadToken()
			if err != nil {
				return nil, d.malformed(err)
			}
			texts = append(texts, token.String())
		case jsontext.KindEndArray, jsontext.KindInvalid:
			if _, err := d.ReadToken(); err != nil {
				return nil, d.malformed(err)
			}
			return texts, nil
		default:
			return nil, domain.Invalid(field, "must be an array of strings")
		}
	}
}

func (d *decoder) flag(field string) (bool, error) {
	switch d.PeekKind() {
	case jsontext.KindTrue, jsontext.KindFalse:
		token, err := d.ReadToken()
		if err != nil {
			return false, d.malformed(err)
		}
		return token.Bool(), nil
	case jsontext.KindInvalid:
		_, err := d.ReadToken()
		return false, d.malformed(err)
	}
	return false, domain.Invalid(field, "must be true or false")
}

// integer reads a whole number from 1 to most, written as one.
func (d *decoder) integer(field string, most uint32) (uint32, error) {
	switch d.PeekKind() {
	case jsontext.KindNumber:
		value, err := d.ReadValue()
		if err != nil {
			return 0, d.malformed(err)
		}
		if n, err := strconv.ParseUint(string(value), 10, 32); err == nil && n >= 1 && n <= uint64(most) {
			return uint32(n), nil
		}
	case jsontext.KindInvalid:
		_, err := d.ReadToken()
		return 0, d.malformed(err)
	}
	return 0, domain.Invalid(field, "must be an integer from 1 to %d", most)
}

// quota reads {"limit":1000,"refill":"month"}. Both must be there: what a quota is refilled by
// is nothing to be guessed.
func (d *decoder) quota(field string) (q domain.Quota, err error) {
	switch d.PeekKind() {
	case jsontext.KindBeginObject, jsontext.KindInvalid:
	default:
		return q, domain.Invalid(field, "must be an object with limit and refill, or null for none")
	}
	if _, err := d.ReadToken(); err != nil {
		return q, d.malformed(err)
	}
	for d.PeekKind() != jsontext.KindEndObject {
		token, err := d.ReadToken()
		if err != nil {
			return q, d.malformed(err)
		}
		switch name := field + "." + token.String(); token.String() {
		case "limit":
			q.Limit, err = d.quotaLimit(name)
		case "refill":
			var text string
			if text, err = d.text(name); err == nil {
				q.Refill, err = domain.ParseRefill(text)
			}
		default:
			err = d.skip()
		}
		if err != nil {
			return q, err
		}
	}
	if _, err := d.ReadToken(); err != nil {
		return q, d.malformed(err)
	}
	switch {
	case q.Limit == 0:
		err = domain.Invalid(field+".limit", "is required")
	case q.Refill == "":
		err = domain.Invalid(field+".refill", "is required: none, day or month")
	}
	return q, err
}

func (d *decoder) quotaLimit(field string) (uint64, error) {
	switch d.PeekKind() {
	case jsontext.KindNumber:
		value, err := d.ReadValue()
		if err != nil {
			return 0, d.malformed(err)
		}
		if n, err := strconv.ParseUint(string(value), 10, 64); err == nil && n >= 1 && n <= domain.MostQuota {
			return n, nil
		}
	case jsontext.KindInvalid:
		_, err := d.ReadToken()
		return 0, d.malformed(err)
	}
	return 0, domain.Invalid(field, "must be an integer from 1 to %d", domain.MostQuota)
}

// number reads a whole number from 0 to most, written as one.
func (d *decoder) number(field string, most uint32) (uint32, error) {
	if d.PeekKind() != jsontext.KindNumber {
		return d.integer(field, most)
	}
	value, err := d.ReadValue()
	if err != nil {
		return 0, d.malformed(err)
	}
	n, err := strconv.ParseUint(string(value), 10, 32)
	if err != nil || n > uint64(most) {
		return 0, domain.Invalid(field, "must be an integer from 0 to %d, or null for none", most)
	}
	return uint32(n), nil
}

// moment reads a time with a zone.
func (d *decoder) moment(field string) (time.Time, error) {
	text, err := d.text(field)
	if err != nil {
		return time.Time{}, err
	}
	t, err := parseTime(field, text)
	if err == nil && t.IsZero() {
		return t, domain.Invalid(field, "must be in the future") // the zero time would mean never
	}
	return t, err
}

// parseTime accepts RFC 3339, and of ISO 8601 what clients are known to send
// beside it. Without a zone nobody knows which moment is meant.
func parseTime(field, text string) (time.Time, error) {
	if len(text) <= len("2006-01-02T15:04:05.999999999+00:00") {
		for _, layout := range [...]string{time.RFC3339Nano, "2006-01-02T15:04Z07:00", "2006-01-02T15:04:05.999999999Z0700"} {
			if t, err := time.Parse(layout, strings.ToUpper(text)); err == nil {
				return t.UTC().Truncate(time.Microsecond), nil
			}
		}
	}
	return time.Time{}, domain.Invalid(field, "must be an RFC 3339 time with a zone")
}
