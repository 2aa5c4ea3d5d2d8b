package http

import (
	"context"
	"runtime"
	"strconv"
	"time"

	"github.com/gofiber/fiber/v2"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/valyala/fasthttp/fasthttpadaptor"
)

// Version says what is running.
type Version struct {
	Version string
	Commit  string
	BuiltAt string
}

// Check is one thing that /healthz asks about. Run says in a few words how it
// stands, or what is wrong.
type Check struct {
	Name string
	Run  func(ctx context.Context) (detail string, err error)
}

const checkTimeout = 2 * time.Second

// live says that the process answers. Nothing else: restarting it mends nothing else.
func (s *Server) live(r *request) error {
	r.answer(fiber.StatusOK, fiber.MIMEApplicationJSON, []byte(`{"status":"ok"}`))
	return nil
}

// ready says whether this node can verify keys. Whether Postgres can be reached at
// this moment does not matter to that, and a balancer that asked for it would take
// every node away at once.
func (s *Server) ready(r *request) error {
	switch {
	case s.draining.Load():
		r.answer(fiber.StatusServiceUnavailable, fiber.MIMEApplicationJSON, []byte(`{"status":"draining"}`))
	case !s.verifier.Ready():
		r.answer(fiber.StatusServiceUnavailable, fiber.MIMEApplicationJSON, []byte(`{"status":"loading"}`))
	default:
		r.answer(fiber.StatusOK, fiber.MIMEApplicationJSON, []byte(`{"status":"ready"}`))
	}
	return nil
}

// health asks about everything, one after the other, and says how each stands.
func (s *Server) health(r *request) error {
	status, word := fiber.StatusOK, "ok"
	checks := []byte{'['}
	for i, check := range s.options.Checks {
		if i > 0 {
			checks = append(checks, ',')
		}
		started := s.clock()
		ctx, cancel := context.WithTimeout(r.ctx, checkTimeout)
		detail, err := check.Run(ctx)
		cancel()
		if err != nil {
			status, word, detail = fiber.StatusServiceUnavailable, "degraded", err.Error()
		}
		checks = append(checks, `{"name":`...)
		checks = appendText(checks, check.Name)
		checks = append(checks, `,"ok":`...)
		checks = strconv.AppendBool(checks, err == nil)
		checks = append(checks, `,"detail":`...)
		checks = appendText(checks, detail)
		checks = append(checks, `,"ms":`...)
		checks = strconv.AppendInt(checks, s.clock().Sub(started).Milliseconds(), 10)
		checks = append(checks, '}')
	}
	body := append([]byte(`{"status":"`), word...)
	body = append(body, `","ready":`...)
	body = strconv.AppendBool(body, s.verifier.Ready() && !s.draining.Load())
	body = append(body, `,"position":`...)
	body = strconv.AppendUint(body, uint64(s.verifier.Position()), 10)
	body = append(body, `,"checks":`...)
	body = append(body, checks...)
	r.answer(status, fiber.MIMEApplicationJSON, append(body, "]}"...))
	return nil
}

func (s *Server) version(r *request) error {
	v := s.options.Version
	body := append([]byte(`{"version":`), appendText(nil, v.Version)...)
	body = append(body, `,"commit":`...)
	body = appendTextOrNull(body, v.Commit)
	body = append(body, `,"builtAt":`...)
	body = appendTextOrNull(body, v.BuiltAt)
	body = append(body, `,"go":`...)
	body = appendText(body, runtime.Version())
	r.answer(fiber.StatusOK, fiber.MIMEApplicationJSON, append(body, '}'))
	return nil
}

// asyncAPI serves the document to everybody; nil when there is none.
func (s *Server) asyncAPI() func(*request) error {
	document := s.options.AsyncAPI
	if document == nil {
		return nil
	}
	return func(r *request) error {
		r.set(fiber.HeaderCacheControl, "public, max-age=300")
		r.answerCopy(fiber.StatusOK, "application/yaml", document)
		return nil
	}
}

// metrics serves Prometheus, when there is something to gather from.
func (s *Server) metrics() func(*request) error {
	if s.options.Gatherer == nil {
		return nil
	}
	handler := fasthttpadaptor.NewFastHTTPHandler(promhttp.HandlerFor(s.options.Gatherer, promhttp.HandlerOpts{}))
	return func(r *request) error {
		r.delegate(handler)
		return nil
	}
}
