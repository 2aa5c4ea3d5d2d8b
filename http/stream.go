package http

import (
	"context"
	"io"
	"sync"
	"time"

	"github.com/gofiber/fiber/v2"
	"github.com/prometheus/client_golang/prometheus"

	"keyledger/domain"
)

// Streams are answers that go on after their handler has returned. Each holds a
// connection and a goroutine, so there are only so many.
const (
	mostStreams             = 1024 // of a server: 503 above it
	mostStreamsOrganization = 32   // of them: 429 above it
	streamRetryAfter        = 5 * time.Second

	streamHeartbeat  = 10 * time.Second // between signs of life, which also find out who is gone
	streamJudgeAgain = time.Second      // between two looks at the key of a stream that rests
	streamStall      = 30 * time.Second // for a chunk to be taken
	streamReadWithin = requestTimeout   // for what the next chunk is made of

	headerAccelBuffering = "X-Accel-Buffering" // nginx would keep the events to itself
	eventStream          = "text/event-stream"
	newlineDelimited     = "application/x-ndjson"
)

// streams counts those that are open, and ends them all when the server stops.
type streams struct {
	most, mostEach        int // altogether, and of an organization
	heartbeat, judgeAgain time.Duration

	ctx    context.Context
	cancel context.CancelFunc

	mu   sync.Mutex
	open int
	of   map[domain.OrganizationID]int
}

func newStreams(base context.Context, most, mostEach int) *streams {
	s := &streams{most: most, mostEach: mostEach, heartbeat: streamHeartbeat, judgeAgain: streamJudgeAgain, of: map[domain.OrganizationID]int{}}
	s.ctx, s.cancel = context.WithCancel(base)
	return s
}

// enter takes a place for a stream; leave gives it back.
func (s *streams) enter(organization domain.OrganizationID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.ctx.Err() != nil:
		return domain.Errorf(domain.CodeUnavailable, "the server is stopping, ask another one")
	case s.open >= s.most:
		return domain.Errorf(domain.CodeUnavailable, "too many streams are open on this server, ask another one")
	case s.of[organization] >= s.mostEach && organization != domain.SystemOrganization: // whose keys are the operator's
		return domain.Errorf(domain.CodeRateLimited, "too many streams are open for this organization: %d at most", s.mostEach)
	}
	s.open++
	s.of[organization]++
	return nil
}

func (s *streams) leave(organization domain.OrganizationID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open--
	if s.of[organization]--; s.of[organization] == 0 {
		delete(s.of, organization)
	}
}

// register shows how many are open; nil: nowhere.
func (s *streams) register(registerer prometheus.Registerer, name, help string) error {
	if registerer == nil {
		return nil
	}
	return registerer.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: name, Help: help,
	}, func() float64 {
		s.mu.Lock()
		defer s.mu.Unlock()
		return float64(s.open)
	}))
}

// stream is one of them. It is read by the goroutine of its connection, which
// writes what it has read before it reads on: a slow reader slows nobody but itself,
// and one that takes nothing for long meets the connection's deadline.
type stream struct {
	server       *Server
	among        *streams
	connection   *connection
	organization domain.OrganizationID
	ctx          context.Context
	cancel       context.CancelFunc
	next         func(context.Context) ([]byte, error)
	stop         func()
	pending      []byte
	once         sync.Once
}

// answerStream answers with whatever next gives, until it gives an error: io.EOF
// ends the answer well, any other breaks it off, so that nobody takes a part for the whole. next
// is called by another goroutine after the handler has returned, so it must not touch the request;
// its context ends with the server. stop is called once, in the end.
func (s *Server) answerStream(r *request, contentType string, organization domain.OrganizationID, next func(context.Context) ([]byte, error), stop func()) error {
	return s.answerStreamAmong(s.streams, r, contentType, organization, next, stop)
}

func (s *Server) answerStreamAmong(among *streams, r *request, contentType string, organization domain.OrganizationID, next func(context.Context) ([]byte, error), stop func()) error {
	if err := among.enter(organization); err != nil {
		stop()
		if domain.CodeOf(err) == domain.CodeRateLimited {
			r.retryAfter = streamRetryAfter
		}
		return err
	}
	b := &stream{server: s, among: among, connection: tracked(r.http.Conn()), organization: organization, next: next, stop: stop}
	b.ctx, b.cancel = context.WithCancel(among.ctx)
	r.set(fiber.HeaderCacheControl, "no-store")
	r.set(headerAccelBuffering, "no")
	response := &r.http.Response
	response.SetStatusCode(fiber.StatusOK)
	response.Header.SetContentType(contentType)
	response.ImmediateHeaderFlush = true
	response.SetBodyStream(b, -1)
	return nil
}

// Read is called by fasthttp, between two writes to the connection.
func (b *stream) Read(p []byte) (n int, err error) {
	defer func() {
		if r := recover(); r != nil {
			n, err = 0, b.server.panicked(r)
		}
	}()
	for len(b.pending) == 0 {
		if b.pending, err = b.next(b.ctx); err != nil {
			return 0, err
		}
	}
	n = copy(p, b.pending)
	b.pending = b.pending[n:]
	if c := b.connection; c != nil {
		c.within(&c.write, c.owner.stall)
	}
	return n, nil
}

// Close is called by fasthttp when the answer has ended, however it did.
func (b *stream) Close() error {
	b.once.Do(func() {
		b.cancel()
		b.among.leave(b.organization)
		b.stop()
	})
	return nil
}

// admitted is who a stream was admitted for. It is asked again while the stream
// is open: a key may be revoked, a token expire, a member leave.
type admitted struct {
	credential   credential
	need         domain.Scope
	organization domain.OrganizationID
}

// still says whether they would be admitted now. Who cannot be judged is not.
func (s *Server) still(a admitted) bool {
	if a.credential.token != "" {
		ctx, cancel := context.WithTimeout(s.streams.ctx, streamReadWithin)
		defer cancel()
		_, err := s.member(ctx, a.credential.token, a.organization)
		return err == nil
	}
	verdict, err := s.verifier.Verify(domain.Verification{Digest: a.credential.digest, Required: domain.Scopes{a.need}, Now: s.clock(), Silent: true})
	return err == nil && verdict.Outcome == domain.OutcomeValid && verdict.Organization == a.organization
}

var _ io.ReadCloser = (*stream)(nil)
