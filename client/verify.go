package client

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"keyledger/domain"
)

const (
	// mostKeyBytes is more than any key has. The rest of a longer text changes nothing
	// about its verdict.
	mostKeyBytes = 300
	// MostBatch is how many questions VerifyBatch takes.
	MostBatch = 1000

	mostVerdictBytes = 64 << 10
)

var _ Checker = (*Client)(nil)

// Verify asks the server about a presented key, which is its own credential. Where
// the deployment wants to know who asks, the client needs a key with the scope verify.
//
// A verification that is repeated because its answer was lost counts twice against
// the key's limit. A source that keeps presenting unknown keys is told no more than that
// they are unknown: NotFound, at position 0.
func (c *Client) Verify(ctx context.Context, q Question) (Verdict, error) {
	body, err := json.Marshal(question(q))
	if err != nil {
		return Verdict{}, invalid("", "the question cannot be written as JSON")
	}
	var got wireVerdict
	_, err = c.ask(ctx, call{method: http.MethodPost, path: []string{"api", "v1", "keys", "verify"}, body: body, read: true, verify: true, most: mostVerdictBytes}, &got)
	if tooManyUnknown(err) {
		return Verdict{Code: NotFound}, nil
	}
	if err != nil {
		return Verdict{}, err
	}
	return got.verdict()
}

// VerifyBatch asks about up to MostBatch keys at once, and gives the verdicts in
// their order. A mistake in one question refuses the whole batch, which then has
// used no key.
func (c *Client) VerifyBatch(ctx context.Context, questions []Question) ([]Verdict, error) {
	if len(questions) == 0 {
		return nil, nil
	}
	if len(questions) > MostBatch {
		return nil, invalid("keys", "a batch takes at most 1000 keys")
	}
	var asked struct {
		Keys []wireQuestion `json:"keys"`
	}
	for _, q := range questions {
		asked.Keys = append(asked.Keys, question(q))
	}
	body, err := json.Marshal(asked)
	if err != nil {
		return nil, invalid("", "the questions cannot be written as JSON")
	}
	var got struct {
		Results []wireVerdict `json:"results"`
	}
	_, err = c.ask(ctx, call{method: http.MethodPost, path: []string{"api", "v1", "keys", "verify", "batch"}, body: body, read: true, verify: true}, &got)
	verdicts := make([]Verdict, len(questions))
	switch {
	case tooManyUnknown(err): // all of them are
		for i := range verdicts {
			verdicts[i] = Verdict{Code: NotFound}
		}
		return verdicts, nil
	case err != nil:
		return nil, err
	case len(got.Results) != len(questions):
		return nil, &Error{Status: http.StatusOK, Code: "internal", Message: "the answer has another number of verdicts"}
	}
	for i := range got.Results {
		if verdicts[i], err = got.Results[i].verdict(); err != nil {
			return nil, err
		}
	}
	return verdicts, nil
}

// tooManyUnknown says whether the service itself, and no proxy in between, refused
// to go on about unknown keys. Known ones are never refused that way.
func tooManyUnknown(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Status == http.StatusTooManyRequests && e.Code == "rate_limited"
}

type wireQuestion struct {
	Key          string         `json:"key"`
	Scopes       Scopes         `json:"scopes,omitempty"`
	Organization OrganizationID `json:"organizationId,omitempty"`
	Durable      bool           `json:"durable,omitempty"`
}

func question(q Question) wireQuestion {
	return wireQuestion{q.Key[:min(len(q.Key), mostKeyBytes)], q.Scopes, q.Organization, q.Durable}
}

// wireVerdict is a verdict as it is sent. Whatever says nothing about an age is of a
// server that promises none.
type wireVerdict struct {
	Valid          *bool      `json:"valid"`
	Code           Code       `json:"code"`
	KeyID          *string    `json:"keyId"`
	OrganizationID *string    `json:"organizationId"`
	Name           *string    `json:"name"`
	Scopes         Scopes     `json:"scopes"`
	ExpiresAt      *time.Time `json:"expiresAt"`
	RateLimit      *struct {
		Limit     uint32 `json:"limit"`
		Remaining uint32 `json:"remaining"`
		Reset     int64  `json:"reset"`
	} `json:"rateLimit"`
	Quota    *wireQuota `json:"quota"`
	Position Position   `json:"position"`
	AgeMs    float64    `json:"ageMs"`
	Stale    bool       `json:"stale"`
}

// wireQuota is a quota as it is sent, of a key that has one.
type wireQuota struct {
	Limit     uint64     `json:"limit"`
	Remaining *uint64    `json:"remaining"`
	Refill    Refill     `json:"refill"`
	ResetsAt  *time.Time `json:"resetsAt"`
}

func (w *wireQuota) quota() Quota {
	if w == nil {
		return Quota{}
	}
	return Quota{Limit: w.Limit, Refill: w.Refill, Remaining: orZero(w.Remaining), Known: w.Remaining != nil, ResetsAt: orZero(w.ResetsAt)}
}

func (w *wireVerdict) verdict() (Verdict, error) {
	nonsense := &Error{Status: http.StatusOK, Code: "internal", Message: "the verdict makes no sense"}
	if w.Valid == nil || *w.Valid != (w.Code == Valid) || w.Code == "" {
		return Verdict{}, nonsense
	}
	v := Verdict{
		Valid: *w.Valid, Code: w.Code, OrganizationID: OrganizationID(orZero(w.OrganizationID)), Name: orZero(w.Name), Scopes: w.Scopes,
		ExpiresAt: orZero(w.ExpiresAt), Quota: w.Quota.quota(), Position: w.Position, Age: time.Duration(w.AgeMs * float64(time.Millisecond)), Stale: w.Stale,
	}
	if w.KeyID != nil {
		var err error
		if v.KeyID, err = domain.ParseKeyID(*w.KeyID); err != nil {
			return Verdict{}, nonsense
		}
	}
	if v.Valid && (v.KeyID.IsZero() || v.OrganizationID == "") {
		return Verdict{}, nonsense
	}
	if l := w.RateLimit; l != nil {
		v.RateLimit = RateLimit{Limit: l.Limit, Remaining: l.Remaining, Reset: time.Unix(l.Reset, 0).UTC()}
	}
	return v, nil
}
