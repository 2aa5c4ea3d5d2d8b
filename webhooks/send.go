package webhooks

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"

	"keyledger/domain"
)

const (
	attemptWithin = 10 * time.Second
	dialWithin    = 5 * time.Second
	// mostAnswer is what is read of an answer, so that the connection can serve again.
	mostAnswer       = 16 << 10
	mostAnswerHeader = 16 << 10
	mostRetryAfter   = time.Hour
)

// sender makes attempts. It talks to strangers, chosen by strangers.
type sender struct {
	client *http.Client
	clock  func() time.Time
}

func newSender(o Options) *sender {
	dialer := &net.Dialer{Timeout: dialWithin, Control: onlyPublic}
	if o.Insecure {
		dialer.Control = nil
	}
	return &sender{clock: o.Clock, client: &http.Client{
		// A redirect would lead a signed body elsewhere: it is an answer like any other that is not 2xx.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			Proxy:       nil, // a proxy would resolve the name behind our back
			DialContext: dialer.DialContext, TLSClientConfig: o.TLS, TLSHandshakeTimeout: dialWithin, ForceAttemptHTTP2: true,
			MaxIdleConns: 256, MaxIdleConnsPerHost: 2, IdleConnTimeout: 30 * time.Second,
			MaxResponseHeaderBytes: mostAnswerHeader, DisableCompression: true,
		},
	}}
}

// result is how an attempt ended.
type result struct {
	status     int    // 0: there was no answer
	reason     string // for the endpoint's owner; empty when it was taken. It says nothing about the inside
	retryAfter time.Duration
}

func (r result) taken() bool { return r.reason == "" }

// send makes one attempt. It takes at most attemptWithin.
func (s *sender) send(ctx context.Context, to string, id domain.ID, body []byte, secrets []domain.SigningSecret) result {
	ctx, cancel := context.WithTimeout(ctx, attemptWithin)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, to, bytes.NewReader(body))
	if err != nil {
		return result{reason: "the address cannot be used"}
	}
	at := s.clock()
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("User-Agent", "keyledger-webhooks")
	// The names are written in lower case by Standard Webhooks, and mean the same in any.
	request.Header.Set("webhook-id", id.UUID())
	request.Header.Set("webhook-timestamp", strconv.FormatInt(at.Unix(), 10))
	request.Header.Set("webhook-signature", signatures(id.UUID(), at, body, secrets))
	response, err := s.client.Do(request)
	if err != nil {
		return result{reason: why(err)}
	}
	defer func() { _ = response.Body.Close() }()
	_, _ = io.CopyN(io.Discard, response.Body, mostAnswer)
	if response.StatusCode/100 == 2 {
		return result{status: response.StatusCode}
	}
	return result{status: response.StatusCode, reason: fmt.Sprintf("it was answered with %d", response.StatusCode), retryAfter: retryAfter(response)}
}

// why says why there was no answer, in words that reveal neither the address that a
// name resolved to nor what else a connection met.
func why(err error) string {
	var unresolved *net.DNSError
	var unknown x509.UnknownAuthorityError
	var misnamed x509.HostnameError
	var invalid x509.CertificateInvalidError
	var alert tls.AlertError
	var plain tls.RecordHeaderError
	switch {
	case errors.Is(err, errNotPublic):
		return errNotPublic.Error()
	case errors.As(err, &unresolved):
		return "the host's name cannot be resolved"
	case errors.As(err, &unknown), errors.As(err, &misnamed), errors.As(err, &invalid):
		return "the host's certificate is not valid"
	case errors.As(err, &alert), errors.As(err, &plain):
		return "the host and this server agree on no TLS"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return "there was no answer in time"
	}
	return "there was no connection, or no answer on it"
}

// retryAfter reads what the receiver asks for, in seconds; dates are not understood.
func retryAfter(response *http.Response) time.Duration {
	n, err := strconv.ParseUint(response.Header.Get("Retry-After"), 10, 31)
	if err != nil {
		return 0
	}
	return min(time.Duration(n)*time.Second, mostRetryAfter)
}
