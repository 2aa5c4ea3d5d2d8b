package http

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime/debug"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/gofiber/fiber/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/valyala/fasthttp"

	"keyledger/domain"
)

const (
	headerRequestID   = "X-Request-Id" // as HTTP libraries spell X-Request-ID
	headerTraceparent = "Traceparent"

	mostRequestID = 128
)

// arrive starts a request: its id, its place in a trace, the header fields that
// every answer has.
func (s *Server) arrive(c *fasthttp.RequestCtx, f *fiber.Ctx, rt *route) *request {
	r := s.requests.Get().(*request) //nolint:forcetypeassert // nothing else is ever put there
	*r = request{http: c, fiber: f, server: s, route: rt, dialect: rt.dialect, ctx: s.base, arrived: s.arrival(c), verdict: verdictNone, question: r.question}
	header, response := &c.Request.Header, &c.Response.Header
	if given := header.Peek(headerRequestID); s.acceptableID(given) {
		r.givenID = string(given)
		response.Set(headerRequestID, r.givenID)
	} else {
		r.drawID()
		response.SetCanonical([]byte(headerRequestID), r.drawnID[:])
	}
	if !rt.lean {
		r.readTrace()
	}
	path := rt.pattern
	if f != nil {
		path = f.Path()
	}
	if underAPI(path) {
		response.SetCanonical([]byte(fiber.HeaderCacheControl), []byte("no-store"))
	}
	if s.tracer != nil {
		s.startSpan(r)
	}
	return r
}

// depart ends a request: rate-limit headers, metrics, span, access log. Nobody
// has it any more afterwards.
func (s *Server) depart(r *request) {
	if r.limit.PerMinute > 0 {
		r.setLimit(&r.limit)
	}
	status := r.status()
	took := s.since(r.arrived)
	r.route.meter.observe(r.verdict, status, took)
	if r.end != nil {
		r.end(status)
	}
	level := slog.LevelInfo
	switch {
	case status == fiber.StatusInternalServerError:
		level = slog.LevelError
	case status > fiber.StatusInternalServerError:
		level = slog.LevelWarn
	case r.route.lean:
		level = slog.LevelDebug
	}
	if s.logger.Enabled(r.ctx, level) {
		s.log(r, level, status, took)
	}
	s.requests.Put(r)
}

// setLimit sets the header fields about a key's limit: those that everybody knows, and those of the
// IETF's draft (draft-ietf-httpapi-ratelimit-headers). t there is when it gets better: when a
// use is accepted again while there is none left, and otherwise when all are there again.
func (r *request) setLimit(l *domain.Limit) {
	r.set("X-RateLimit-Limit", strconv.FormatUint(uint64(l.PerMinute), 10))
	r.set("X-RateLimit-Remaining", strconv.FormatUint(uint64(l.Remaining), 10))
	r.set("X-RateLimit-Reset", strconv.FormatInt(ceilUnix(l.Reset), 10))
	better := l.Reset
	if l.Remaining == 0 {
		better = l.Next
	}
	wait := max(0, int64((better.Sub(r.server.clock())+time.Second-1)/time.Second))
	field := make([]byte, 0, 48)
	field = strconv.AppendUint(append(field, `"minute";q=`...), uint64(l.PerMinute), 10)
	r.setBytes("RateLimit-Policy", append(field, `;w=60`...))
	field = strconv.AppendUint(append(field[:0], `"minute";r=`...), uint64(l.Remaining), 10)
	r.setBytes("RateLimit", strconv.AppendInt(append(field, `;t=`...), wait, 10))
}

// since is cheaper than reading the real clock, of which it needs a half.
func (s *Server) since(t time.Time) time.Duration {
	if s.options.Clock == nil {
		return time.Since(t)
	}
	return s.options.Clock().Sub(t)
}

// arrival reads the clock. fasthttp has just read the real one.
func (s *Server) arrival(c *fasthttp.RequestCtx) time.Time {
	if s.options.Clock == nil {
		return c.Time()
	}
	return s.options.Clock()
}

// log writes the access log's line. The path is the route's pattern: what stands
// in its place, or in the query, can be a credential that somebody put there.
func (s *Server) log(r *request, level slog.Level, status int, took time.Duration) {
	attrs := make([]slog.Attr, 0, 10)
	attrs = append(attrs,
		slog.String("method", knownMethodName(r.http.Method())),
		slog.String("route", r.route.pattern),
		slog.Int("status", status),
		slog.Duration("took", took),
		slog.String("request_id", r.id()),
		slog.String("source", r.source().String()),
		slog.String("verdict", r.verdict.String()),
	)
	if r.readTrace(); r.trace != "" {
		attrs = append(attrs, slog.String("trace_id", r.trace))
	}
	if r.organization != "" {
		attrs = append(attrs, slog.String("organization", string(r.organization)))
	}
	if status >= fiber.StatusInternalServerError && r.failure != nil {
		attrs = append(attrs, slog.String("error", r.failure.Error()))
	}
	s.logger.LogAttrs(r.ctx, level, "request", attrs...)
}

func knownMethodName(method []byte) string {
	if name := string(method); knownMethod(name) {
		return name
	}
	return "other"
}

// panicked turns a panic into an error, and logs where it came from.
func (s *Server) panicked(p any) error {
	s.logger.Error("a handler panicked", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
	return domain.Errorf(domain.CodeInternal, "a handler panicked")
}

// survive is the last net, below Fiber itself.
func (s *Server) survive(c *fasthttp.RequestCtx) {
	if p := recover(); p != nil {
		status, body := native.failure(known(s.panicked(p)))
		c.Response.Reset()
		c.SetStatusCode(status)
		c.SetContentType(native.problemType)
		c.SetBody(body)
	}
}

// known gives the error that dialects translate. A context that ended is the
// ledger's slowness, whoever noticed it first.
func known(err error) *domain.Error {
	var e *domain.Error
	switch {
	case errors.As(err, &e):
		return e
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return domain.Unavailable(err)
	}
	return &domain.Error{Code: domain.CodeInternal, Message: "an unexpected error occurred", Err: err}
}

func underAPI(path string) bool { return strings.HasPrefix(path, "/api/") || path == "/api" }

// acceptableID takes over an id that tools can search for, unless it looks like a
// key that somebody has put into the wrong header.
func (s *Server) acceptableID(id []byte) bool {
	if len(id) == 0 || len(id) > mostRequestID {
		return false
	}
	for _, c := range id {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_', c == '.', c == ':':
		default:
			return false
		}
	}
	format := string(s.options.KeyFormat)
	return !strings.HasPrefix(string(id), format+"_live_") && !strings.HasPrefix(string(id), format+"_test_")
}

// drawID draws an id of 128 bits. The generator is ChaCha8 with a seed of the
// system's: not to be guessed, and without a system call for each request.
func (r *request) drawID() {
	var random [16]byte
	binary.NativeEndian.PutUint64(random[:8], rand.Uint64())
	binary.NativeEndian.PutUint64(random[8:], rand.Uint64())
	hex.Encode(r.drawnID[:], random[:])
}

// id names the request in answers, logs and events.
func (r *request) id() string {
	if r.givenID != "" {
		return r.givenID
	}
	return string(r.drawnID[:])
}

// readTrace finds out which trace the request belongs to, once somebody wants to know.
func (r *request) readTrace() {
	if r.trace == "" {
		r.trace = traceID(string(r.http.Request.Header.Peek(headerTraceparent)))
	}
}

// traceID reads the trace id of a W3C traceparent; empty when it is malformed.
func traceID(parent string) string {
	const version, id, whole = 2, 32, 55 // 00-<32>-<16>-<2>
	if len(parent) < whole || parent[version] != '-' || parent[version+1+id] != '-' || parent[:version] == "ff" || parent[:version] == "00" && len(parent) != whole {
		return ""
	}
	trace := parent[version+1 : version+1+id]
	zero := true
	for i := range len(trace) {
		c := trace[i]
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return ""
		}
		zero = zero && c == '0'
	}
	if zero {
		return ""
	}
	return trace
}

func ceilUnix(t time.Time) int64 {
	if t.Nanosecond() > 0 {
		return t.Unix() + 1
	}
	return t.Unix()
}

// verdictLabel is how a request was authenticated, or what was said of the key in
// it: an outcome, a user's token, or nothing.
type verdictLabel uint8

const (
	verdictUser verdictLabel = verdictLabel(domain.Outcomes) + iota
	verdictNone
	verdictLabels
)

// labelOf is a verdict's outcome, as its use is recorded.
func labelOf(v *domain.Verdict) verdictLabel {
	if v.Stale && v.Outcome == domain.OutcomeValid {
		return verdictLabel(domain.OutcomeValidStale)
	}
	return verdictLabel(v.Outcome)
}

func (v verdictLabel) String() string {
	switch v {
	case verdictUser:
		return "USER"
	case verdictNone:
		return "NONE"
	}
	return domain.Outcome(v).String()
}

// meter counts requests. Every label has few values: routes are patterns, verdicts
// and statuses are closed sets.
type meter struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
}

func newMeter(registerer prometheus.Registerer) (*meter, error) {
	m := &meter{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "keyledger_http_requests_total", Help: "HTTP requests answered.",
		}, []string{"route", "status", "verdict"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "keyledger_http_request_seconds", Help: "From a request's arrival to its answer, without reading and writing it.",
			Buckets: []float64{.000005, .00001, .000025, .00005, .0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}, []string{"route", "verdict"}),
	}
	if registerer == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.requests, m.seconds} {
		if err := registerer.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// statuses are those that the server answers with; others share a place.
var statuses = [...]int{200, 201, 204, 400, 401, 403, 404, 409, 413, 415, 422, 429, 500, 503}

// routeMeter holds a route's counters, found once each: looking them up by their
// labels costs more than counting.
type routeMeter struct {
	meter    *meter
	route    string
	requests [verdictLabels][len(statuses) + 1]atomic.Pointer[prometheus.Counter]
	seconds  [verdictLabels]atomic.Pointer[prometheus.Observer]
}

func (m *meter) route(pattern string) *routeMeter { return &routeMeter{meter: m, route: pattern} }

func (m *routeMeter) observe(verdict verdictLabel, status int, took time.Duration) {
	place, text := len(statuses), "other"
	for i, s := range statuses {
		if s == status {
			place = i
			break
		}
	}
	counter := m.requests[verdict][place].Load()
	if counter == nil {
		if place < len(statuses) {
			text = strconv.Itoa(status)
		}
		c := m.meter.requests.WithLabelValues(m.route, text, verdict.String())
		counter = &c
		m.requests[verdict][place].Store(counter)
	}
	(*counter).Inc()
	observer := m.seconds[verdict].Load()
	if observer == nil {
		o := m.meter.seconds.WithLabelValues(m.route, verdict.String())
		observer = &o
		m.seconds[verdict].Store(observer)
	}
	(*observer).Observe(took.Seconds())
}
