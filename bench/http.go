package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"

	"github.com/gofiber/fiber/v2"
	"github.com/valyala/fasthttp"
)

// benchHTTP measures creates through everything: HTTP, authentication, log,
// index, list and stream.
func benchHTTP(ctx context.Context, b *bench) error {
	s, err := startServer(ctx)
	if err != nil {
		return err
	}
	defer s.stop()
	db := &database{dir: s.dir, adminURL: s.DatabaseAdmin}
	if err := db.prepareBaselines(ctx); err != nil {
		return err
	}
	create := func() (float64, error) {
		l, err := loadHTTP(ctx, s.address(), 64, b.duration, fasthttp.StatusCreated, s.create)
		return l.perSecond, err
	}
	insert := func() (float64, error) { return db.pgbench(ctx, insertScript, 64, b.duration) }
	return b.pair("create over HTTP, 64 connections", "pgbench single insert, 64 clients", 0.8, 1.5, create, insert)
}

func (s *server) create(r *fasthttp.Request, connection, n int) {
	r.Header.SetMethod(fasthttp.MethodPost)
	r.SetRequestURI(s.HTTP + "/api/v1/organization/" + string(organization) + "/api-keys")
	r.Header.SetContentType("application/json")
	r.Header.Set("X-API-Key", s.key)
	r.SetBodyString(fmt.Sprintf(`{"name":"Server %d-%d","scopes":["read","write"]}`, connection, n))
}

// verifiedKeys is how many keys take turns in benchVerify.
const verifiedKeys = 1000

// benchVerify measures a verification over HTTP, with its use recorded, against a
// bare route of the same framework that returns a constant of the same size.
func benchVerify(ctx context.Context, b *bench) error {
	s, err := startServer(ctx)
	if err != nil {
		return err
	}
	defer s.stop()
	bodies, size, err := s.prepareVerify(ctx, verifiedKeys)
	if err != nil {
		return err
	}
	bare, err := startHelper(ctx, "-bare", fmt.Sprint(size))
	if err != nil {
		return err
	}
	defer bare.stop()
	to := func(address string) measurement {
		return func() (float64, error) {
			l, err := loadHTTP(ctx, address, 64, b.duration, fasthttp.StatusOK, func(r *fasthttp.Request, connection, n int) {
				r.Header.SetMethod(fasthttp.MethodPost)
				r.SetRequestURI("http://" + address + "/api/v1/keys/verify")
				r.Header.SetContentType("application/json")
				r.SetBodyRaw(bodies[(connection*7919+n)%len(bodies)])
			})
			return l.perSecond, err
		}
	}
	if err := b.pair("bare Fiber route", "itself (the noise)", 0, 0, to(bare.address), to(bare.address)); err != nil {
		return err
	}
	return b.pair("verify over HTTP, uses recorded", "bare Fiber route, same size", 0.8, 0.9, to(s.address()), to(bare.address))
}

// prepareVerify makes keys and gives the bodies that ask about them, and the size
// of an answer.
func (s *server) prepareVerify(ctx context.Context, keys int) (bodies [][]byte, size int, err error) {
	var mu sync.Mutex
	var failed error
	var wg sync.WaitGroup
	client := &fasthttp.HostClient{Addr: s.address(), MaxConns: 64}
	defer client.CloseIdleConnections()
	for connection := range 64 {
		wg.Go(func() {
			for n := connection; n < keys && ctx.Err() == nil; n += 64 {
				var q fasthttp.Request
				var a fasthttp.Response
				s.create(&q, connection, n)
				err := client.Do(&q, &a)
				var answer struct {
					PlainKey string `json:"plainKey"`
				}
				if err == nil {
					err = json.Unmarshal(a.Body(), &answer)
				}
				if err == nil && answer.PlainKey == "" {
					err = fmt.Errorf("no key was made: %s", a.Body())
				}
				mu.Lock()
				failed = errors.Join(failed, err)
				bodies = append(bodies, []byte(`{"key":"`+answer.PlainKey+`","scopes":["read"]}`))
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if failed != nil {
		return nil, 0, failed
	}
	var q fasthttp.Request
	var a fasthttp.Response
	q.Header.SetMethod(fasthttp.MethodPost)
	q.SetRequestURI(s.HTTP + "/api/v1/keys/verify")
	q.Header.SetContentType("application/json")
	q.SetBodyRaw(bodies[0])
	if err := client.Do(&q, &a); err != nil {
		return nil, 0, err
	}
	return bodies, len(a.Body()), ctx.Err()
}

// serveBare is the baseline's process: a route that does nothing.
func serveBare(size int) error {
	app := fiber.New(fiber.Config{DisableStartupMessage: true})
	body := []byte(`"` + strings.Repeat("x", max(0, size-2)) + `"`)
	app.Post("/api/v1/keys/verify", func(c *fiber.Ctx) error {
		c.Set(fiber.HeaderContentType, fiber.MIMEApplicationJSON)
		return c.Send(body)
	})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Fprintln(os.Stdout, listener.Addr())
	return app.Listener(listener)
}
