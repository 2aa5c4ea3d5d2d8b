package client

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"keyledger/domain"
)

const (
	headerAPIKey         = "X-API-Key"
	headerIdempotencyKey = "Idempotency-Key"
	headerReplayed       = "Idempotent-Replayed"
	headerPosition       = "X-Keyledger-Position"
	headerMinPosition    = "X-Keyledger-Min-Position"
	headerEpoch          = "X-Keyledger-Epoch"
	headerRequestID      = "X-Request-Id"

	// What an answer may hold at most.
	mostAnswerBytes = 16 << 20
	mostErrorBytes  = 64 << 10

	mostIdleConnections = 100

	defaultAttempts = 4
	defaultTimeout  = 30 * time.Second // of one attempt; a revocation may wait for a lease to end
	firstBackoff    = 100 * time.Millisecond
	mostBackoff     = 5 * time.Second
	// mostRetryAfter is how long a service may ask us to wait before we rather give
	// its answer to the caller.
	mostRetryAfter = 30 * time.Second
)

// Client speaks to a Keyledger server. Make one with New. It is safe for
// concurrent use, and it is a [Checker].
type Client struct {
	base       string
	credential string
	userAgent  string
	http       *http.Client
	attempts   int
	timeout    time.Duration
	remember   bool // read your writes

	mu      sync.Mutex
	highest Token // of our own writes
}

// Option changes a Client.
type Option func(*Client) error

// WithHTTPClient has requests sent by another client than one with Go's usual
// transport. It is copied: its redirects are never followed, since they could
// lead the credential elsewhere.
func WithHTTPClient(h *http.Client) Option {
	return func(c *Client) error {
		if h == nil {
			return errors.New("the HTTP client is nil")
		}
		own := *h
		c.http = &own
		return nil
	}
}

// WithAttempts sets how often a request is sent before its failure is given to
// the caller: 4 times, if nothing is said.
func WithAttempts(n int) Option {
	return func(c *Client) error {
		if n < 1 {
			return errors.New("at least one attempt is needed")
		}
		c.attempts = n
		return nil
	}
}

// WithTimeout bounds one attempt: 30 s, if nothing is said. The context bounds the
// whole call.
func WithTimeout(d time.Duration) Option {
	return func(c *Client) error {
		if d <= 0 {
			return errors.New("the timeout must be positive")
		}
		c.timeout = d
		return nil
	}
}

// WithUserAgent says in the server's log who asks.
func WithUserAgent(text string) Option {
	return func(c *Client) error { c.userAgent = text; return nil }
}

// ReadYourWrites has the client remember the highest position of its own writes
// and ask for it in every read and verification, so that it sees what it did
// whichever node answers.
func ReadYourWrites() Option {
	return func(c *Client) error { c.remember = true; return nil }
}

// New makes a client of the server at a URL such as https://keys.example. The
// credential is an API key, or a JWT; it may be empty for those who only verify.
func New(server, credential string, options ...Option) (*Client, error) {
	u, err := url.Parse(server)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, errors.New("the server must be a URL such as https://keys.example, without credentials") // it is not repeated: it could hold some
	}
	if strings.ContainsFunc(credential, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return nil, errors.New("the credential must be printable ASCII without spaces")
	}
	c := &Client{
		base: strings.TrimSuffix(u.String(), "/"), credential: credential, userAgent: "keyledger-client",
		attempts: defaultAttempts, timeout: defaultTimeout,
	}
	for _, o := range options {
		if err := o(c); err != nil {
			return nil, err
		}
	}
	if c.http == nil {
		c.http = &http.Client{Transport: transport()}
	}
	c.http.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return c, nil
}

// transport is Go's usual one, but that as many connections are kept as a busy service
// uses at once: two, which Go keeps, would be opened and closed all the time.
func transport() http.RoundTripper {
	usual, ok := http.DefaultTransport.(*http.Transport)
	if !ok {
		return http.DefaultTransport // somebody's own
	}
	t := usual.Clone()
	t.MaxIdleConnsPerHost = mostIdleConnections
	return t
}

// Close gives back the connections that are not in use. The client can be used on.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Format keeps the credential out of whatever prints a client.
func (c *Client) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "keyledger client of "+c.base) }

type contextKey int

const (
	minPositionKey contextKey = iota
	waitKey
	idempotencyKey
)

// WithMinPosition has reads and verifications under this context wait until the
// node that answers has come to a position, which a write has returned. What is not
// there in time is [ErrStale].
func WithMinPosition(ctx context.Context, token Token) context.Context {
	return context.WithValue(ctx, minPositionKey, token)
}

// WithWait sets how long the server waits for a minimum position: 1 s, if nothing
// is said, and 10 s at most.
func WithWait(ctx context.Context, wait time.Duration) context.Context {
	return context.WithValue(ctx, waitKey, wait)
}

// WithIdempotencyKey names the next write, so that it can be repeated by another
// process: the same call under the same name within 24 hours gets the first
// answer. Without it, every call has a name of its own.
func WithIdempotencyKey(ctx context.Context, key string) context.Context {
	return context.WithValue(ctx, idempotencyKey, key)
}

// Position gives the highest position of this client's writes; zero before the
// first. Hand it to whoever must see them, with WithMinPosition.
func (c *Client) Position() Token {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.highest
}

// call is one operation.
type call struct {
	method string
	path   []string // escaped when they are put together
	query  url.Values
	header http.Header
	body   []byte
	write  bool // it gets an idempotency key
	read   bool // it may be asked to wait for a position
	verify bool // too many of these are an answer
	once   bool // it is not tried again
	accept []int
	most   int64 // bytes of the answer; 0: mostAnswerBytes
}

// answer is what came back, when it is one of those that were asked for.
type answer struct {
	status   int
	header   http.Header
	body     []byte
	position Token
	replayed bool
}

// ask sends a call until it is answered, and decodes the answer into into when
// that is not nil.
func (c *Client) ask(ctx context.Context, what call, into any) (answer, error) {
	build, own := c.prepare(ctx, what)
	for attempt := 1; ; attempt++ {
		a, err := c.send(ctx, build, what)
		if err == nil {
			if into != nil {
				if err := json.Unmarshal(a.body, into); err != nil {
					return answer{}, &Error{Status: a.status, Code: "internal", Message: "the answer makes no sense", RequestID: a.header.Get(headerRequestID), Err: errNoJSON}
				}
			}
			return a, nil
		}
		var e *Error
		if errors.As(err, &e) && errors.Is(err, ErrAnotherHistory) {
			c.forget(own) // the caller hears of it once; reads and writes go on
		}
		wait, again := retry(e, attempt)
		if !again || what.once || what.verify && tooManyUnknown(err) || attempt >= c.attempts || !pause(ctx, wait) {
			return answer{}, err
		}
	}
}

// errNoJSON stands for the decoder's error, which quotes the answer.
var errNoJSON = errors.New("it is not the JSON that was expected")

// prepare makes everything that the attempts have in common. own is the position
// that is asked for because the client remembers it.
func (c *Client) prepare(ctx context.Context, what call) (build func(context.Context) (*http.Request, error), own Token) {
	header := http.Header{}
	for name, values := range what.header {
		header[name] = values
	}
	header.Set("User-Agent", c.userAgent)
	if c.credential != "" {
		if strings.Count(c.credential, ".") == 2 { // a JWT; of keys, none has two
			header.Set("Authorization", "Bearer "+c.credential)
		} else {
			header.Set(headerAPIKey, c.credential)
		}
	}
	if what.body != nil && header.Get("Content-Type") == "" {
		header.Set("Content-Type", "application/json")
	}
	if what.write {
		name, _ := ctx.Value(idempotencyKey).(string)
		if name == "" {
			name = rand.Text()
		}
		header.Set(headerIdempotencyKey, name)
	}
	query := what.query
	if what.read {
		minimum, given := ctx.Value(minPositionKey).(Token)
		if !given && c.remember {
			own = c.Position()
			minimum = own
		}
		if minimum != (Token{}) {
			header.Set(headerMinPosition, minimum.String())
			if wait, ok := ctx.Value(waitKey).(time.Duration); ok {
				if query == nil {
					query = url.Values{}
				}
				query.Set("wait", wait.String())
			}
		}
	}
	target := c.base
	for _, part := range what.path {
		target += "/" + url.PathEscape(part)
	}
	if len(query) > 0 {
		target += "?" + query.Encode()
	}
	return func(ctx context.Context) (*http.Request, error) {
		var body io.Reader
		if what.body != nil {
			body = bytes.NewReader(what.body)
		}
		r, err := http.NewRequestWithContext(ctx, what.method, target, body)
		if err != nil {
			return nil, &Error{Code: "invalid", Message: "the request cannot be made", Err: err}
		}
		r.Header = header.Clone()
		return r, nil
	}, own
}

// send sends a call once.
func (c *Client) send(ctx context.Context, build func(context.Context) (*http.Request, error), what call) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	request, err := build(ctx)
	if err != nil {
		return answer{}, err
	}
	response, err := c.http.Do(request)
	if err != nil {
		return answer{}, unreachable(err)
	}
	defer func() { _ = response.Body.Close() }()
	accepted := response.StatusCode >= 200 && response.StatusCode < 300
	for _, status := range what.accept {
		accepted = accepted || status == response.StatusCode
	}
	most := what.most
	switch {
	case !accepted:
		most = mostErrorBytes
	case most == 0:
		most = mostAnswerBytes
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, most+1))
	if err != nil {
		return answer{}, unreachable(err)
	}
	if !accepted {
		return answer{}, failure(response, body)
	}
	if int64(len(body)) > most {
		return answer{}, &Error{Status: response.StatusCode, Code: "internal", Message: fmt.Sprintf("the answer is larger than %d bytes", most), RequestID: response.Header.Get(headerRequestID)}
	}
	a := answer{status: response.StatusCode, header: response.Header, body: body, replayed: response.Header.Get(headerReplayed) == "true"}
	if text := response.Header.Get(headerPosition); text != "" && what.write {
		if a.position, err = domain.ParseToken(text); err != nil {
			return answer{}, &Error{Status: response.StatusCode, Code: "internal", Message: "the answer's position makes no sense", RequestID: response.Header.Get(headerRequestID)}
		}
		c.wrote(a.position)
	}
	return a, nil
}

// unreachable says that nothing came back. Go's error repeats the URL, and no URL
// of ours holds a secret.
func unreachable(err error) error { return &Error{Code: "unavailable", Err: err} }

// failure reads an error of any dialect, or of a proxy in between.
func failure(response *http.Response, body []byte) error {
	e := &Error{Status: response.StatusCode, RequestID: response.Header.Get(headerRequestID), RetryAfter: retryAfter(response.Header)}
	var problem struct {
		Code   string `json:"code"`
		Detail string `json:"detail"`
		Field  string `json:"field"`
	}
	media, _, _ := strings.Cut(response.Header.Get("Content-Type"), ";")
	if media == "application/problem+json" && json.Unmarshal(body, &problem) == nil {
		e.Code, e.Message, e.Field = problem.Code, problem.Detail, problem.Field
	}
	if response.StatusCode == http.StatusConflict && response.Header.Get(headerEpoch) != "" {
		e.Err = ErrAnotherHistory // the position is of an epoch that is over
	}
	return e
}

func retryAfter(header http.Header) time.Duration {
	text := header.Get("Retry-After")
	if n, err := strconv.ParseUint(text, 10, 31); err == nil {
		return time.Duration(n) * time.Second
	}
	if at, err := http.ParseTime(text); err == nil {
		return max(0, time.Until(at))
	}
	return 0
}

// retry says whether a failure may be gone when the same is sent again, and after
// which pause. Pauses grow, and half of each is drawn, so that clients that failed
// together do not come back together.
func retry(e *Error, attempt int) (time.Duration, bool) {
	if e == nil || !errors.Is(e, ErrUnavailable) && !errors.Is(e, ErrRateLimited) || e.RetryAfter > mostRetryAfter {
		return 0, false
	}
	backoff := min(mostBackoff, firstBackoff<<min(attempt-1, 10))
	backoff = backoff/2 + mathrand.N(backoff/2)
	return max(backoff, e.RetryAfter), true
}

// pause waits; false when there is no time for that.
func pause(ctx context.Context, wait time.Duration) bool {
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) <= wait {
		return false
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// wrote remembers where the last write of ours stands.
func (c *Client) wrote(token Token) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if token.Epoch > c.highest.Epoch || token.Epoch == c.highest.Epoch && token.Position > c.highest.Position {
		c.highest = token
	}
}

// forget drops what was remembered, when it is of a history that was given up.
func (c *Client) forget(token Token) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.highest.Epoch == token.Epoch {
		c.highest = Token{}
	}
}
