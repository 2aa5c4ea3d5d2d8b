package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"

	"github.com/gofiber/fiber/v2"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// What a verification is held against: the same framework, the same route, an
// answer of the same size, and behind it nothing, a table, or a cache.

const verifyPath = "/api/v1/keys/verify"

// validAnswer is how an answer begins when the key may be used.
const validAnswer = `{"valid":true,`

// constant is an answer of a size that says nothing.
func constant(size int) []byte {
	const begin, end = validAnswer + `"x":"`, `"}`
	return []byte(begin + strings.Repeat("x", max(0, size-len(begin)-len(end))) + end)
}

// serveTarget serves one handler and prints where.
func serveTarget(handler fiber.Handler) error {
	app := fiber.New(fiber.Config{DisableStartupMessage: true})
	app.Post(verifyPath, handler)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Fprintln(os.Stdout, listener.Addr())
	return app.Listener(listener)
}

func answer(c *fiber.Ctx, body []byte) error {
	c.Set(fiber.HeaderContentType, fiber.MIMEApplicationJSON)
	return c.Send(body)
}

// serveBare does nothing.
func serveBare(arguments []string) error {
	size, err := strconv.Atoi(arguments[0])
	if err != nil {
		return err
	}
	body := constant(size)
	return serveTarget(func(c *fiber.Ctx) error { return answer(c, body) })
}

// presented is the key in a body that the bench wrote.
func presented(c *fiber.Ctx) []byte {
	const before = len(bodyBegin)
	return c.Body()[before : before+plainSize]
}

// serveLookup asks a table for each key, by a statement that is prepared once a
// connection, and with update says there that the key was used.
func serveLookup(ctx context.Context, arguments []string, update bool) error {
	size, err := strconv.Atoi(arguments[0])
	if err != nil {
		return err
	}
	config, err := pgxpool.ParseConfig(os.Getenv(databaseVariable))
	if err != nil {
		return err
	}
	config.MaxConns = 16
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return err
	}
	body := constant(size)
	return serveTarget(func(c *fiber.Ctx) error {
		digest := sha256.Sum256(presented(c))
		rows, err := pool.Query(ctx, `SELECT key_id, organization, name, scopes, rate_limit, revoked FROM lookups
			WHERE digest = $1 AND (expires_at IS NULL OR expires_at > now())`, digest[:])
		if err != nil {
			return err
		}
		found, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[lookedUp])
		if err != nil {
			return err
		}
		if found.Revoked {
			return fiber.ErrForbidden
		}
		if update {
			if _, err := pool.Exec(ctx, `UPDATE lookups SET last_used_at = now() WHERE key_id = $1`, found.Key); err != nil {
				return err
			}
		}
		return answer(c, body)
	})
}

type lookedUp struct {
	Key          [16]byte
	Organization string
	Name         string
	Scopes       []string
	RateLimit    int32
	Revoked      bool
}

// serveRedis gets the answer from a Redis, by the key's digest.
func serveRedis(arguments []string) error {
	idle := make(chan *redisConn, connections)
	for range connections {
		conn, err := dialRedis(arguments[0])
		if err != nil {
			return err
		}
		idle <- conn
	}
	return serveTarget(func(c *fiber.Ctx) error {
		digest := sha256.Sum256(presented(c))
		conn := <-idle
		defer func() { idle <- conn }()
		body, err := conn.get(digest[:])
		if err != nil {
			return err
		}
		c.Set(fiber.HeaderContentType, fiber.MIMEApplicationJSON)
		c.Response().SetBody(body) // a copy: the next request reuses the connection's buffer
		return nil
	})
}

// redisConn speaks as much of Redis's protocol as is needed here.
type redisConn struct {
	net.Conn
	reader *bufio.Reader
	value  []byte
}

func dialRedis(address string) (*redisConn, error) {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return nil, err
	}
	return &redisConn{Conn: conn, reader: bufio.NewReader(conn)}, nil
}

// get gives a value that is valid until the next call.
func (r *redisConn) get(key []byte) ([]byte, error) {
	r.value = append(append(append(r.value[:0], "*2\r\n$3\r\nGET\r\n$32\r\n"...), key...), "\r\n"...)
	if _, err := r.Write(r.value); err != nil {
		return nil, err
	}
	line, err := r.reader.ReadSlice('\n')
	if err != nil {
		return nil, err
	}
	size, err := strconv.Atoi(strings.TrimPrefix(strings.TrimSpace(string(line)), "$"))
	if err != nil || size < 0 {
		return nil, fmt.Errorf("redis answers %q", line)
	}
	if cap(r.value) < size+2 {
		r.value = make([]byte, size+2)
	}
	r.value = r.value[:size+2]
	_, err = io.ReadFull(r.reader, r.value)
	return r.value[:size], err
}

// fill stores the same value under the digests of so many keys.
func (r *redisConn) fill(keys int, value []byte) error {
	writer := bufio.NewWriterSize(r.Conn, 1<<20)
	answers := make(chan error, 1)
	go func() {
		for range keys {
			if line, err := r.reader.ReadSlice('\n'); err != nil || string(line) != "+OK\r\n" {
				answers <- errors.Join(err, fmt.Errorf("redis answers %q", line))
				return
			}
		}
		answers <- nil
	}()
	plain := make([]byte, plainSize)
	for i := range keys {
		plainKey(plain, i)
		digest := sha256.Sum256(plain)
		fmt.Fprintf(writer, "*3\r\n$3\r\nSET\r\n$32\r\n%s\r\n$%d\r\n%s\r\n", digest[:], len(value), value)
	}
	if err := writer.Flush(); err != nil {
		return err
	}
	return <-answers
}
