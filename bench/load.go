package main

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/valyala/fasthttp"
)

// connections is how many are kept busy at the same time.
const connections = 64

// load is requests of one kind: POST, JSON, to one address of this machine.
type load struct {
	address string // host and port
	path    string
	key     string                         // X-API-Key; empty: none
	want    int                            // the only status that counts as an answer
	begins  string                         // what every answer begins with
	body    func(connection, n int) []byte // of the n-th request of a connection
	sent    *atomic.Int64                  // counts what was answered; nil: nobody asks
	warm    time.Duration                  // so long before anything is counted
}

// run keeps every connection busy, one request after the other.
func (l *load) run(ctx context.Context, duration time.Duration) (sample, error) {
	client := &fasthttp.HostClient{Addr: l.address, MaxConns: connections, NoDefaultUserAgentHeader: true, DisablePathNormalizing: true}
	defer client.CloseIdleConnections()
	var mu sync.Mutex
	var done int64
	var failed error
	all := newHistogram()
	var wg sync.WaitGroup
	started := time.Now().Add(l.warm)
	for connection := range connections {
		wg.Go(func() {
			own, answered, err := l.drive(ctx, client, connection, started, duration)
			mu.Lock()
			defer mu.Unlock()
			all.Merge(own)
			done += own.TotalCount()
			if l.sent != nil {
				l.sent.Add(answered)
			}
			if err != nil {
				failed = err
			}
		})
	}
	wg.Wait()
	if failed == nil {
		failed = ctx.Err()
	}
	return sample{value: float64(done) / time.Since(started).Seconds(), latency: all}, failed
}

// drive is one connection.
func (l *load) drive(ctx context.Context, client *fasthttp.HostClient, connection int, started time.Time, duration time.Duration) (own *hdrhistogram.Histogram, answered int64, err error) {
	var q fasthttp.Request
	var a fasthttp.Response
	q.Header.SetMethod(fasthttp.MethodPost)
	q.SetRequestURI("http://" + l.address + l.path)
	q.Header.SetContentType("application/json")
	if l.key != "" {
		q.Header.Set("X-API-Key", l.key)
	}
	begins := []byte(l.begins)
	own = newHistogram()
	for n := 0; ctx.Err() == nil; n++ {
		q.SetBodyRaw(l.body(connection, n))
		begun := time.Now()
		since := begun.Sub(started)
		if since > duration {
			break
		}
		if err := client.Do(&q, &a); err != nil {
			return own, answered, err
		}
		if a.StatusCode() != l.want || !bytes.HasPrefix(a.Body(), begins) {
			return own, answered, fmt.Errorf("%s is answered with %d: %s", l.path, a.StatusCode(), a.Body())
		}
		answered++
		if since >= 0 {
			_ = own.RecordValue(time.Since(begun).Microseconds())
		}
	}
	return own, answered, nil
}

func newHistogram() *hdrhistogram.Histogram { return hdrhistogram.New(1, 60_000_000, 3) }
