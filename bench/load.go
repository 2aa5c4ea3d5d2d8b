package main

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/valyala/fasthttp"
)

// request fills in the n-th request of a connection.
type request func(r *fasthttp.Request, connection, n int)

// latencies are of one load, in microseconds.
type latencies struct {
	*hdrhistogram.Histogram
	perSecond float64
}

// loadHTTP keeps a number of connections busy, one request after the other, and
// expects one status.
func loadHTTP(ctx context.Context, address string, connections int, duration time.Duration, want int, fill request) (latencies, error) {
	client := &fasthttp.HostClient{Addr: address, MaxConns: connections, NoDefaultUserAgentHeader: true, DisablePathNormalizing: true}
	defer client.CloseIdleConnections()
	var mu sync.Mutex
	var done atomic.Int64
	var failed atomic.Pointer[error]
	all := latencies{Histogram: newHistogram()}
	var wg sync.WaitGroup
	started := time.Now()
	for connection := range connections {
		wg.Go(func() {
			var q fasthttp.Request
			var a fasthttp.Response
			own := newHistogram()
			for n := 0; ctx.Err() == nil; n++ {
				begun := time.Now()
				if begun.Sub(started) > duration {
					break
				}
				fill(&q, connection, n)
				if err := client.Do(&q, &a); err != nil {
					failed.Store(&err)
					return
				}
				if a.StatusCode() != want {
					err := fmt.Errorf("%s is answered with %d: %s", q.URI(), a.StatusCode(), a.Body())
					failed.Store(&err)
					return
				}
				_ = own.RecordValue(time.Since(begun).Microseconds())
				done.Add(1)
			}
			mu.Lock()
			defer mu.Unlock()
			all.Merge(own)
		})
	}
	wg.Wait()
	all.perSecond = float64(done.Load()) / time.Since(started).Seconds()
	if err := failed.Load(); err != nil {
		return all, *err
	}
	return all, ctx.Err()
}

func newHistogram() *hdrhistogram.Histogram { return hdrhistogram.New(1, 60_000_000, 3) }
