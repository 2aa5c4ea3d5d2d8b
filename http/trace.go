package http

import (
	"github.com/gofiber/fiber/v2"
	"github.com/valyala/fasthttp"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

// startSpan puts the request under the caller's span, if it named one, and lets
// everything that the request does be under its own.
func (s *Server) startSpan(r *request) {
	method := knownMethodName(r.http.Method())
	ctx := propagation.TraceContext{}.Extract(r.ctx, headers{&r.http.Request.Header})
	ctx, span := s.tracer.Start(ctx, method+" "+r.route.pattern, trace.WithSpanKind(trace.SpanKindServer), trace.WithAttributes(
		attribute.String("http.request.method", method),
		attribute.String("http.route", r.route.pattern),
	))
	r.ctx = ctx
	if id := span.SpanContext().TraceID(); id.IsValid() {
		r.trace = id.String()
	}
	r.end = func(status int) {
		span.SetAttributes(attribute.Int("http.response.status_code", status), attribute.String("keyledger.verdict", r.verdict.String()))
		if status >= fiber.StatusInternalServerError {
			span.SetStatus(codes.Error, "")
		}
		span.End()
	}
}

// headers carries trace context out of a request.
type headers struct{ *fasthttp.RequestHeader }

func (h headers) Get(key string) string { return string(h.Peek(key)) }
func (headers) Set(string, string)      {}
func (headers) Keys() []string          { return nil }
