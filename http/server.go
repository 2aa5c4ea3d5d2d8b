package http

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gofiber/fiber/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/valyala/fasthttp"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/semaphore"

	"keyledger/domain"
)

// Ledger is the write side, and what it knows of an organization's members at
// this moment. ChangeKey gives an error that is domain.ErrGuardMoved when the
// command must be authorised again.
type Ledger interface {
	ChangeKey(ctx context.Context, request domain.Request, id domain.KeyID, command domain.KeyCommand) (domain.Key, domain.Receipt, error)
	Organization(ctx context.Context, id domain.OrganizationID) (domain.Organization, uint64, error)
}

// Verifier is this node's index of keys. Verify accounts every use of a known
// key, and keeps nothing of what it is given.
type Verifier interface {
	Verify(v domain.Verification) (domain.Verdict, error)
	WaitFor(ctx context.Context, position domain.Position) error
	Ready() bool
	Position() domain.Position
}

// Quotas says where a key stands against its quota; false when it has none, or that is
// not known.
type Quotas interface {
	Quota(id domain.KeyID, now time.Time) (domain.QuotaStanding, bool)
}

// KeyList is the list view. List and Get show at least everything that was committed when
// they were called.
type KeyList interface {
	List(ctx context.Context, query domain.KeyQuery) ([]domain.KeyView, error)
	Get(ctx context.Context, organization domain.OrganizationID, id domain.KeyID, atLeast domain.Position) (domain.KeyView, error)
	// Used gives how often a key was accepted, and when it was used last, as far as is known.
	Used(ctx context.Context, id domain.KeyID) (uses uint64, last time.Time, err error)
}

// Options are what a Server needs, and what a deployment chooses.
type Options struct {
	Ledger   Ledger
	Verifier Verifier
	Keys     KeyList
	// Fence makes revocations hold everywhere. nil: they hold on this node.
	Fence Fence
	// Quotas says how much of quotas is left. nil: keys are shown without it.
	Quotas Quotas
	// Usage counts uses. nil: there is no route for them.
	Usage Usage
	// Log is the transparency log. nil: there are no routes for it.
	Log TransparencyLog
	// Audit tells what happened. nil: there is no audit log, and lists show the present alone.
	Audit AuditLog
	// Events is the log for those who read along. nil: there is no feed.
	Events EventFeed
	// Webhooks are where organizations have their events sent. nil: there are none.
	Webhooks Webhooks

	// AsyncAPI is the document that describes the messages. nil: it is not served.
	AsyncAPI []byte

	// Verifiers and KeyFeed serve verifiers that others embed. nil: there are no routes for them.
	Verifiers Verifiers
	KeyFeed   KeyFeed

	// Epoch is the epoch of the ledger's history. Positions of another one mean
	// nothing here and are refused.
	Epoch uint32
	// CursorKey authenticates the cursors of lists. Nodes that share one accept each
	// other's. Empty: drawn at start.
	CursorKey []byte
	// KeyFormat is the first word of new keys. Empty: domain.DefaultKeyFormat.
	KeyFormat domain.KeyFormat
	// RateLimit is a new key's limit in requests a minute when the request names
	// none. 0: domain.DefaultRateLimit.
	RateLimit uint32
	// Durable verifies when a use must be in the log before the answer. nil: such
	// requests are refused.
	Durable DurableVerifier
	// Exact answers every verification, and every request that a key authenticates, when the
	// use is in the log. It needs Durable.
	Exact bool
	// VerifyAuth asks those who verify keys for a key of their own with the scope verify.
	VerifyAuth bool

	Tokens TokenOptions

	// TrustedProxies are the networks whose X-Forwarded-For is believed.
	TrustedProxies []netip.Prefix
	// TLS turns it on when it is not nil.
	TLS *tls.Config
	// UnknownKeys is how many answers about unknown keys a source (an address of IPv4, a
	// /64 of IPv6) gets in a minute. 0: DefaultUnknownKeys.
	UnknownKeys uint32
	// DrainDelay is how long Shutdown goes on serving after /readyz has turned to 503,
	// so that balancers see it before connections are refused.
	DrainDelay time.Duration

	// RequestTimeout bounds a request, the wait of a revocation included. 0: 15 s.
	RequestTimeout time.Duration

	Version Version
	Checks  []Check

	Logger         *slog.Logger          // nil: none
	Clock          func() time.Time      // nil: time.Now
	Registerer     prometheus.Registerer // nil: metrics are kept and not shown
	Gatherer       prometheus.Gatherer   // nil: no /metrics
	TracerProvider trace.TracerProvider  // nil: no spans
}

const (
	mostBodyBytes = 64 << 10
	// mostHeaderBytes leaves room for tokens with many claims.
	mostHeaderBytes = 16 << 10

	requestTimeout = 15 * time.Second
)

// Server serves the API. Make one with New.
type Server struct {
	options       Options
	ledger        Ledger
	verifier      Verifier
	keys          KeyList
	fence         Fence
	later         *semaphore.Weighted // fences that go on behind their answer
	usage         Usage
	tokens        *tokens
	cursors       cursors
	throttle      *throttle
	logger        *slog.Logger
	clock         func() time.Time
	meter         *meter
	unmatched     *route      // stands for whatever no route matched
	messages      *routeMeter // of what does not come over HTTP
	tracer        trace.Tracer
	requests      sync.Pool // of *request
	fiber         *fiber.App
	connections   *connections
	lastUseWithin time.Duration
	streams       *streams
	// verifierStreams are apart: whoever reads events takes no verifier's place.
	verifierStreams *streams
	snapshots       *streams
	draining        atomic.Bool
	base            context.Context // every request's context descends from it
	cancel          context.CancelFunc
}

// New makes a server that serves nothing yet.
func New(options Options) (*Server, error) {
	if options.Ledger == nil || options.Verifier == nil || options.Keys == nil {
		return nil, errors.New("the server needs a ledger, a verifier and a list of keys")
	}
	if options.Exact && options.Durable == nil {
		return nil, errors.New("exact recording of uses needs a durable verifier")
	}
	if options.Logger == nil {
		options.Logger = slog.New(slog.DiscardHandler)
	}
	clock := options.Clock
	if clock == nil {
		clock = time.Now
	}
	if options.KeyFormat == "" {
		options.KeyFormat = domain.DefaultKeyFormat
	}
	if options.RequestTimeout == 0 {
		options.RequestTimeout = requestTimeout
	}
	if options.RateLimit == 0 {
		options.RateLimit = domain.DefaultRateLimit
	}
	if len(options.CursorKey) == 0 {
		options.CursorKey = make([]byte, 32)
		_, _ = rand.Read(options.CursorKey) // never fails
	}
	tokens, err := newTokens(options.Tokens, clock, options.Logger)
	if err != nil {
		return nil, err
	}
	meter, err := newMeter(options.Registerer)
	if err != nil {
		return nil, fmt.Errorf("register the server's metrics: %w", err)
	}
	s := &Server{
		options: options, ledger: options.Ledger, verifier: options.Verifier, keys: options.Keys, fence: options.Fence, usage: options.Usage, later: semaphore.NewWeighted(mostLater),
		tokens: tokens, cursors: cursors{options.CursorKey}, throttle: newThrottle(options.UnknownKeys), logger: options.Logger, clock: clock, meter: meter,
		requests: sync.Pool{New: func() any { return new(request) }}, connections: newConnections(options.RequestTimeout),
	}
	s.unmatched = &route{pattern: "unmatched", dialect: native, lean: true, meter: meter.route("unmatched")}
	s.messages = meter.route("message")
	if options.TracerProvider != nil {
		s.tracer = options.TracerProvider.Tracer("keyledger/http")
	}
	s.base, s.cancel = context.WithCancel(context.Background())
	s.lastUseWithin = lastUseWithin
	s.streams = newStreams(s.base, mostStreams, mostStreamsOrganization)
	s.verifierStreams = newStreams(s.base, mostVerifierStreams, mostVerifierStreams)
	s.snapshots = newStreams(s.base, mostSnapshots, mostSnapshots)
	err = errors.Join(
		s.streams.register(options.Registerer, "keyledger_http_streams", "Streams of events that are open."),
		s.verifierStreams.register(options.Registerer, "keyledger_http_verifiers", "Embedded verifiers that follow this server."),
		s.snapshots.register(options.Registerer, "keyledger_http_snapshots", "Snapshots that embedded verifiers are loading."))
	if err != nil {
		return nil, fmt.Errorf("register the server's metrics: %w", err)
	}
	s.fiber = fiber.New(fiber.Config{
		DisableStartupMessage:        true,
		CaseSensitive:                true,
		BodyLimit:                    mostBodyBytes,
		ReadBufferSize:               mostHeaderBytes,
		DisablePreParseMultipartForm: true,
		ErrorHandler:                 s.refuse,
	})
	routes := slices.Concat(s.routes(), s.nativeKeyRoutes(), s.logRoutes(), s.auditRoutes(), s.eventRoutes(), s.webhookRoutes(), s.verifierRoutes())
	s.mount(routes)
	handle := s.fiber.Handler()
	server := s.fiber.Server()
	server.CloseOnShutdown = true
	server.HeaderReceived = headerReceived
	server.ConnState = s.connections.changed
	forwardAuth := s.forwardAuthHandler()
	verify := routes[0]
	server.Handler = func(c *fasthttp.RequestCtx) {
		defer s.survive(c)
		if isForwardAuth(c.Request.Header.RequestURI()) {
			forwardAuth(c)
			return
		}
		if c.IsPost() && string(c.Request.Header.RequestURI()) == verifyPath {
			// Nothing has to be found out about this path, and finding it out is a twentieth
			// of a verification. Its other spellings come through the router.
			s.do(c, nil, verify)
			return
		}
		if !knownMethod(string(c.Method())) {
			// Fiber would answer in plain text.
			c.Request.Header.SetMethod(fiber.MethodTrace)
		}
		handle(c)
	}
	return s, nil
}

// route is one operation.
type route struct {
	method  string
	pattern string
	dialect *dialect
	handle  func(*request) error
	// lean routes are called so often that they are logged at debug level only, and
	// do nothing that would need a deadline.
	lean  bool
	meter *routeMeter
}

func (s *Server) routes() []*route {
	const (
		get, post, del = fiber.MethodGet, fiber.MethodPost, fiber.MethodDelete
		seed           = "/api/v1/organization/:organization/api-keys"
		ship           = "/api/v1/organizations/:organization/api-keys"
	)
	usage := s.keyUsage
	if s.usage == nil {
		usage = nil
	}
	return []*route{
		// First, since it is looked for first.
		{method: post, pattern: verifyPath, dialect: native, handle: s.verifyKey, lean: true},
		{method: post, pattern: batchPath, dialect: native, handle: s.verifyBatch},

		{method: get, pattern: seed, dialect: bullseye, handle: s.bullseyeList},
		{method: post, pattern: seed, dialect: bullseye, handle: s.bullseyeCreate},
		{method: del, pattern: seed + "/:key", dialect: bullseye, handle: s.bullseyeRevoke},

		{method: get, pattern: ship, dialect: bunship, handle: s.bunshipList},
		{method: post, pattern: ship, dialect: bunship, handle: s.bunshipCreate},
		{method: get, pattern: ship + "/:key", dialect: bunship, handle: s.bunshipGet},
		{method: del, pattern: ship + "/:key", dialect: bunship, handle: s.bunshipRevoke},
		{method: get, pattern: ship + "/:key/usage", dialect: bunship, handle: s.bunshipUsage},

		{method: get, pattern: "/api/v1/organizations/:organization/keys/:key/usage", dialect: native, handle: usage},

		{method: get, pattern: "/livez", dialect: native, handle: s.live, lean: true},
		{method: get, pattern: "/readyz", dialect: native, handle: s.ready, lean: true},
		{method: get, pattern: "/healthz", dialect: native, handle: s.health, lean: true},
		{method: get, pattern: "/api/v1/asyncapi.yaml", dialect: native, handle: s.asyncAPI(), lean: true},
		{method: get, pattern: "/version", dialect: native, handle: s.version, lean: true},
		{method: get, pattern: "/metrics", dialect: native, handle: s.metrics(), lean: true},
	}
}

// mount gives every path its methods, HEAD beside GET, and OPTIONS, which names them.
func (s *Server) mount(routes []*route) {
	allowed := map[string][]string{}
	for _, rt := range routes {
		if rt.handle == nil {
			continue
		}
		rt.meter = s.meter.route(rt.pattern)
		methods := []string{rt.method}
		if rt.method == fiber.MethodGet {
			methods = append(methods, fiber.MethodHead)
		}
		for _, method := range methods {
			s.fiber.Add(method, rt.pattern, s.serve(rt))
		}
		allowed[rt.pattern] = append(allowed[rt.pattern], methods...)
	}
	for pattern, methods := range allowed {
		allow := strings.Join(append(methods, fiber.MethodOptions), ", ")
		rt := &route{pattern: pattern, dialect: dialectOf(pattern), lean: true, meter: s.meter.route(pattern), handle: func(r *request) error {
			r.set(fiber.HeaderAllow, allow)
			r.answer(fiber.StatusNoContent, "", nil)
			return nil
		}}
		s.fiber.Add(fiber.MethodOptions, pattern, s.serve(rt))
	}
}

// serve is a route's handler, as Fiber wants it.
func (s *Server) serve(rt *route) fiber.Handler {
	return func(c *fiber.Ctx) error {
		s.do(c.Context(), c, rt)
		return nil
	}
}

// do is everything that happens to every request.
func (s *Server) do(c *fasthttp.RequestCtx, f *fiber.Ctx, rt *route) {
	r := s.arrive(c, f, rt)
	defer s.depart(r)
	if err := s.run(r); err != nil {
		r.fail(err)
	}
}

func (s *Server) run(r *request) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = s.panicked(p)
		}
	}()
	if !r.route.lean {
		var cancel context.CancelFunc
		r.ctx, cancel = context.WithTimeout(r.ctx, r.server.options.RequestTimeout)
		defer cancel()
	}
	return r.route.handle(r)
}

// refuse answers what reached no route, or was not even a whole request.
func (s *Server) refuse(c *fiber.Ctx, err error) error {
	r := s.arrive(c.Context(), c, s.unmatched)
	defer s.depart(r)
	r.dialect = dialectOf(c.Path())
	why := refusal(err, bodyLimit(c.Path()))
	r.fail(why)
	if domain.CodeOf(why) != domain.CodeNotFound {
		s.connections.linger(c.Context().Conn())
	}
	return nil
}

// refusal translates Fiber's errors. Their texts may repeat what was sent, so
// none of them is handed on.
func refusal(err error, most int) error {
	var e *fiber.Error
	if !errors.As(err, &e) {
		return err
	}
	switch e.Code {
	case fiber.StatusNotFound, fiber.StatusMethodNotAllowed:
		return domain.Errorf(domain.CodeNotFound, "no such route")
	case fiber.StatusRequestEntityTooLarge:
		return errBodyTooLarge(most)
	case fiber.StatusRequestHeaderFieldsTooLarge:
		return domain.Errorf(domain.CodeTooLarge, "the header fields must be at most %d bytes together", mostHeaderBytes)
	case fiber.StatusRequestTimeout:
		return domain.Errorf(domain.CodeMalformed, "the request did not arrive in time")
	case fiber.StatusBadRequest, fiber.StatusBadGateway:
		return domain.Errorf(domain.CodeMalformed, "the request is not well-formed HTTP")
	}
	return err
}

func knownMethod(method string) bool {
	switch method {
	case fiber.MethodPost, fiber.MethodGet:
		return true
	}
	return slices.Contains(fiber.DefaultMethods, method)
}

// Serve accepts connections until Shutdown.
func (s *Server) Serve(ln net.Listener) error {
	ln = s.connections.listen(ln)
	if s.options.TLS != nil {
		ln = tls.NewListener(ln, s.options.TLS)
	}
	if err := s.fiber.Listener(ln); err != nil {
		return fmt.Errorf("serve HTTP: %w", err)
	}
	return nil
}

// Shutdown turns readiness off, accepts nothing new, ends the streams, and lets the
// requests that are under way finish. When ctx ends first, it cuts off what is left.
func (s *Server) Shutdown(ctx context.Context) error {
	if again := s.draining.Swap(true); !again && s.options.DrainDelay > 0 {
		select {
		case <-time.After(s.options.DrainDelay):
		case <-ctx.Done():
		}
	}
	s.streams.cancel()
	s.verifierStreams.cancel()
	s.snapshots.cancel()
	s.connections.stop()
	err := s.fiber.ShutdownWithContext(ctx)
	s.cancel()
	s.connections.cut()
	if err != nil {
		return fmt.Errorf("shut the HTTP server down: %w", err)
	}
	return nil
}
