package prove_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/valyala/fasthttp"
)

const (
	// quickVariable asks for the measurement; beside other tests it would mean nothing.
	quickVariable = "KEYLEDGER_PROVE_QUICK"

	asking        = 16 // connections that verify meanwhile
	firstRevokes  = 60 // not counted: connections are opened, and statements planned for the first time
	quickRevokes  = 500
	measuredFor   = 4 * time.Second
	quickly       = 20 * time.Millisecond
	betweenThem   = 10 * time.Millisecond
	verifyAddress = "/api/v1/keys/verify"
)

// While nothing is broken, and the servers verify half of what they can, a revocation
// holds everywhere within some milliseconds.
func TestRevocationsAreQuickAtHalfLoad(t *testing.T) {
	if _, ok := os.LookupEnv(quickVariable); !ok {
		t.Skipf("%s=1 measures", quickVariable)
	}
	s := startSite(t, size{nodes: 3, brokers: 3, verifiers: 2, direct: true})
	most := s.load(t.Context(), measuredFor, 0)
	p := newProver(s, nil)
	p.doors = nil // nobody watches: what is measured is the revoke call
	ctx, stop := context.WithCancel(t.Context())
	var loading sync.WaitGroup
	var half float64
	loading.Go(func() { half = s.load(ctx, time.Hour, most/2) })
	for i := range firstRevokes + quickRevokes {
		if i == firstRevokes {
			p.revokes = nil
		}
		tr := &trial{prover: p, held: make(chan struct{}), over: make(chan struct{})}
		if tr.create(nil) {
			tr.revokeAt(t.Context(), p.anyNode(), native, "first", nil)
		}
		<-time.After(betweenThem)
	}
	stop()
	loading.Wait()
	for _, text := range p.wrong {
		t.Error(text)
	}
	r := p.report(0)
	t.Logf("%.0f verifications a second are the most, %.0f were made meanwhile: revokes took %s", most, half, r.Healthy)
	if r.Healthy.N != quickRevokes || r.Healthy.P99 > milliseconds(quickly) {
		t.Errorf("the p99 of %d revokes is %.1f ms, want %s", r.Healthy.N, r.Healthy.P99, quickly)
	}
	r.writeQuick(t)
}

// load verifies a good key at all nodes, at a rate (0: as fast as can be), and gives the
// rate that came of it. It does so in a process of its own: whoever measures is not to wait for it.
func (s *site) load(ctx context.Context, lasts time.Duration, rate float64) float64 {
	o := loadOptions{Key: s.key, Lasts: lasts, Rate: rate}
	for _, n := range s.nodes {
		o.Addresses = append(o.Addresses, n.options.Listen)
	}
	text, err := json.Marshal(o)
	if err != nil {
		s.t.Error(err)
		return 0
	}
	command := exec.CommandContext(ctx, os.Args[0], "-test.run=^$")
	command.Env = append(os.Environ(), loadVariable+"="+string(text), "GORACE=atexit_sleep_ms=0")
	command.Stderr = os.Stderr
	command.Cancel = func() error { return command.Process.Signal(syscall.SIGTERM) }
	output, err := command.Output()
	var came float64
	if _, failed := fmt.Sscan(string(output), &came); failed != nil {
		s.t.Errorf("prove: the load ends with %q: %v", output, err)
	}
	return came
}

// loadVariable makes the test binary a load.
const loadVariable = "KEYLEDGER_PROVE_LOAD"

// loadOptions are handed to the process.
type loadOptions struct {
	Addresses []string
	Key       string
	Lasts     time.Duration // or until it is told to stop
	Rate      float64
}

func serveLoad(text string) {
	var o loadOptions
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		panic(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, o.Lasts)
	defer cancel()
	body := []byte(`{"key":"` + o.Key + `"}`)
	began := time.Now()
	var done atomic.Int64
	var all sync.WaitGroup
	for i := range asking {
		all.Go(func() {
			client := fasthttp.HostClient{Addr: o.Addresses[i%len(o.Addresses)]}
			request, response := fasthttp.AcquireRequest(), fasthttp.AcquireResponse()
			request.Header.SetMethod(fasthttp.MethodPost)
			request.Header.SetContentType("application/json")
			request.SetRequestURI("http://" + client.Addr + verifyAddress)
			for mine := 0; ctx.Err() == nil; mine++ {
				if o.Rate > 0 {
					due := began.Add(time.Duration(float64(mine*asking+i) / o.Rate * float64(time.Second)))
					if wait := time.Until(due); wait > 0 {
						select {
						case <-time.After(wait):
						case <-ctx.Done():
							return
						}
					}
				}
				request.SetBodyRaw(body)
				if err := client.Do(request, response); err != nil || response.StatusCode() != fasthttp.StatusOK {
					panic(fmt.Sprintf("a verification under load is answered with %d: %v", response.StatusCode(), err))
				}
				done.Add(1)
			}
		})
	}
	all.Wait()
	fmt.Println(float64(done.Load()) / time.Since(began).Seconds())
}
