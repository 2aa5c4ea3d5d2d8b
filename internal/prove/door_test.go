package prove_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"testing"
	"time"

	"keyledger/natsapi"
)

// answerWithin is longer than any process is stopped: what was asked before it is
// continued is answered, and counts.
const answerWithin = 20 * time.Second

// answer is what a door says about a key.
type answer int

const (
	silent   answer = iota // no answer, or none about the key: unavailable
	accepted               // it may be used
	revoked                // it was revoked
	refused                // it may not be used, for whatever other reason
)

// door is a way to verify a key.
type door struct {
	name string
	ask  func(ctx context.Context, key string) answer
}

// doors are all there are.
func (s *site) doors() (doors []door) {
	for _, n := range s.nodes {
		doors = append(doors,
			door{n.name + " verify", func(ctx context.Context, key string) answer { return s.askVerify(ctx, n.url, key) }},
			door{n.name + " batch", func(ctx context.Context, key string) answer { return s.askBatch(ctx, n.url, key) }},
			door{n.name + " forward-auth", func(ctx context.Context, key string) answer { return s.askForwardAuth(ctx, n.url, key) }})
	}
	for _, v := range s.embedded {
		doors = append(doors, door{v.name, func(ctx context.Context, key string) answer { return s.askEmbedded(ctx, v, key) }})
	}
	return append(doors, door{"nats", s.askNATS})
}

func (s *site) askVerify(ctx context.Context, base, key string) answer {
	status, _, body := s.call(ctx, http.MethodPost, base+"/api/v1/keys/verify", `{"key":"`+key+`"}`, nil)
	return verdictOf(status, body)
}

func (s *site) askBatch(ctx context.Context, base, key string) answer {
	status, _, body := s.call(ctx, http.MethodPost, base+"/api/v1/keys/verify/batch", `{"keys":[{"key":"`+key+`"}]}`, nil)
	var all struct{ Results []json.RawMessage }
	if status != http.StatusOK || json.Unmarshal(body, &all) != nil || len(all.Results) != 1 {
		return silent
	}
	return verdictOf(status, all.Results[0])
}

func (s *site) askForwardAuth(ctx context.Context, base, key string) answer {
	status, _, _ := s.call(ctx, http.MethodGet, base+"/forward-auth", "", http.Header{"X-Api-Key": {key}})
	switch status {
	case http.StatusOK:
		return accepted
	case http.StatusUnauthorized, http.StatusForbidden:
		return refused
	}
	return silent
}

func (s *site) askNATS(ctx context.Context, key string) answer {
	ctx, cancel := context.WithTimeout(ctx, answerWithin/4) // what NATS has lost is never answered
	defer cancel()
	m, err := s.conn.RequestWithContext(ctx, natsapi.Subject, []byte(`{"key":"`+key+`"}`))
	if err != nil || m.Header.Get("Nats-Service-Error-Code") != "" {
		return silent
	}
	return verdictOf(http.StatusOK, m.Data)
}

func verdictOf(status int, body []byte) answer {
	var verdict struct {
		Valid bool
		Code  string
	}
	switch {
	case status != http.StatusOK || json.Unmarshal(body, &verdict) != nil || verdict.Code == "":
		return silent
	case verdict.Valid:
		return accepted
	case verdict.Code == "REVOKED":
		return revoked
	case verdict.Code == "RATE_LIMITED": // what it would say otherwise is not known
		return silent
	}
	return refused
}

// call makes one request; status 0 means that no answer came.
func (s *site) call(ctx context.Context, method, url, body string, header http.Header) (int, http.Header, []byte) {
	request, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader([]byte(body)))
	if err != nil {
		s.t.Error(err)
		return 0, nil, nil
	}
	if header != nil {
		request.Header = header
	}
	if body != "" {
		request.Header.Set("Content-Type", "application/json")
	}
	request.Header.Set("X-Forwarded-For", fmt.Sprintf("10.%d.%d.%d", rand.IntN(256), rand.IntN(256), rand.IntN(256)))
	response, err := s.client.Do(request)
	if err != nil {
		return 0, nil, nil
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return 0, nil, nil
	}
	return response.StatusCode, response.Header, text
}

func (s *site) admin(more ...string) http.Header {
	header := http.Header{"X-Api-Key": {s.key}}
	for i := 0; i+1 < len(more); i += 2 {
		header.Set(more[i], more[i+1])
	}
	return header
}

func hostOf(t testing.TB, address string) string {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	return u.Host
}
