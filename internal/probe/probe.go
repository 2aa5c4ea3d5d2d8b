// Package probe asks a running server of this machine how it is.
package probe

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"keyledger/domain"
)

const (
	answerWithin = 5 * time.Second
	askEvery     = 50 * time.Millisecond
	mostAnswer   = 1 << 20
)

// Server is where a server of this machine listens.
type Server struct {
	url    string
	client *http.Client
}

// At names a server by its URL.
func At(url string) *Server {
	return &Server{url: url, client: &http.Client{
		Timeout: answerWithin,
		Transport: &http.Transport{
			// Its certificate is for the name that the world knows it by, and this is the
			// machine itself, at the address that the server said.
			TLSClientConfig:   &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // see above
			DisableKeepAlives: true,
		},
	}}
}

// URL is where somebody on this machine reaches a server that listens on an
// address such as 0.0.0.0:8080.
func URL(listen string, secure bool) (string, error) {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return "", fmt.Errorf("--listen (KEYLEDGER_LISTEN) must be an address and a port, such as 127.0.0.1:8080: %w", err)
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	scheme := "http"
	if secure {
		scheme = "https"
	}
	return scheme + "://" + net.JoinHostPort(host, port), nil
}

// Ready says whether the server is ready; the error says why not.
func (s *Server) Ready(ctx context.Context) error {
	status, body, err := s.ask(ctx, http.MethodGet, "/readyz", nil, nil)
	if err != nil {
		return err
	}
	if status != http.StatusOK {
		return fmt.Errorf("%s/readyz says %d: %s", s.url, status, bytes.TrimSpace(body))
	}
	return nil
}

// Health is what a server says of itself.
type Health struct {
	Status   string          `json:"status"`
	Ready    bool            `json:"ready"`
	Position domain.Position `json:"position"` // of its verification index
}

// Health asks a server how it is.
func (s *Server) Health(ctx context.Context) (Health, error) {
	_, body, err := s.ask(ctx, http.MethodGet, "/healthz", nil, nil)
	if err != nil {
		return Health{}, err
	}
	var h Health
	if err := json.Unmarshal(body, &h); err != nil {
		return Health{}, fmt.Errorf("read the answer of %s/healthz: %w", s.url, err)
	}
	return h, nil
}

// AwaitPosition returns when the server's verdicts know of a position: a key
// that was made there verifies.
//
// It asks about a key that nobody has, so that no use of the new one is
// recorded. Where those who verify need a key of their own, the new one is
// presented, and is known when it is not refused as unknown.
func (s *Server) AwaitPosition(ctx context.Context, position domain.Token, key domain.Secret) error {
	question, err := json.Marshal(map[string]string{"key": "nobody_" + rand.Text()})
	if err != nil {
		return err
	}
	header := http.Header{"X-Keyledger-Min-Position": {position.String()}, "Content-Type": {"application/json"}}
	poll := time.NewTicker(askEvery)
	defer poll.Stop()
	for {
		status, _, err := s.ask(ctx, http.MethodPost, "/api/v1/keys/verify", question, header)
		switch {
		case err == nil && (status == http.StatusOK || status == http.StatusForbidden):
			return nil
		case err == nil && status == http.StatusUnauthorized:
			header.Set("X-API-Key", key.Reveal())
		case err == nil && status != http.StatusConflict && status != http.StatusServiceUnavailable:
			return fmt.Errorf("the server at %s answered %d", s.url, status)
		}
		select {
		case <-poll.C:
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), err)
		}
	}
}

func (s *Server) ask(ctx context.Context, method, path string, body []byte, header http.Header) (int, []byte, error) {
	request, err := http.NewRequestWithContext(ctx, method, s.url+path, bytes.NewReader(body))
	if err != nil {
		return 0, nil, fmt.Errorf("ask the server: %w", err)
	}
	if header != nil {
		request.Header = header.Clone()
	}
	response, err := s.client.Do(request)
	if err != nil {
		return 0, nil, fmt.Errorf("ask the server: %w", err)
	}
	defer func() { _ = response.Body.Close() }()
	answer, err := io.ReadAll(io.LimitReader(response.Body, mostAnswer))
	if err != nil {
		return 0, nil, fmt.Errorf("read the server's answer: %w", err)
	}
	return response.StatusCode, answer, nil
}
