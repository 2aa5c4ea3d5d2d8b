package main

import (
	"context"
	"fmt"
	"net"
	"os/exec"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/valyala/fasthttp"
)

// bodyBegin and bodyEnd stand around the key in a question.
const (
	bodyBegin = `{"key":"`
	bodyEnd   = `","scopes":["read"]}`
	bodySize  = len(bodyBegin) + plainSize + len(bodyEnd)
)

// questions are the bodies that ask about keys 0 to n-1, in one piece of memory.
type questions []byte

func makeQuestions(keys int) questions {
	q := make(questions, 0, keys*bodySize)
	for i := range keys {
		q = append(q, bodyBegin...)
		q = q[:len(q)+plainSize]
		plainKey(q[len(q)-plainSize:], i)
		q = append(q, bodyEnd...)
	}
	return q
}

func (q questions) about(i uint32) []byte { return q[int(i)*bodySize:][:bodySize] }

// visits says which key is asked about next: each connection goes through its own
// part of an order, and on from there in the next measurement.
type visits struct {
	questions
	order []uint32
	at    [connections]int
}

func (v *visits) body(connection, _ int) []byte {
	at := connection*(len(v.order)/connections) + v.at[connection]
	v.at[connection]++
	return v.about(v.order[at%len(v.order)])
}

// A turn of verifications goes on for so long before anything is counted that uses have been written to the log and
// added up in the tables by then, and then for at least so long that this happens some times more: what is measured has its
// share of recording what was used before. Uses gather for up to two seconds for the tables.
const (
	warmUp    = 3 * time.Second
	leastTurn = 6 * time.Second
)

// verifyTest is a server and what its verifications are compared with.
type verifyTest struct {
	*bench
	server *server
	size   int          // of an answer
	sent   atomic.Int64 // verifications that were answered
	lag    []time.Duration
	shown  []time.Duration
}

// verifyAt measures verifications over HTTP of a ledger's keys: with their uses
// recorded, by a Zipf distribution and uniformly, against a bare route, and where wide is set also
// against a table and a cache that are asked each time.
func (b *bench) verifyAt(ctx context.Context, l *ledger, rounds int, wide bool) (zipfian, uniform, bare summary, err error) {
	fail := func(err error) (summary, summary, summary, error) { return summary{}, summary{}, summary{}, err }
	s, err := startServer(ctx, l)
	if err != nil {
		return fail(err)
	}
	defer s.stop()
	if wide {
		b.fact(fmt.Sprintf("server: start until ready, %s keys", thousands(float64(l.keys))), seconds(s.took.Seconds()), "<= 3 s")
	}
	// Lags are 0 until a follower has looked, so here the ends themselves are awaited.
	err = s.await(ctx, func(values map[string]float64) bool {
		return min(values[`keyledger_relay_last_sequence{lane="lifecycle"}`], values[`keyledger_checkpoint_size{lane="lifecycle"}`]) >= float64(l.keys)
	}, func() {})
	if err != nil {
		return fail(err)
	}
	t := &verifyTest{bench: b, server: s}
	q := makeQuestions(l.keys)
	if t.size, err = t.answerSize(q); err != nil {
		return fail(err)
	}
	popular := &visits{questions: q, order: zipf(l.keys, 4<<20)}
	all := &visits{questions: q, order: shuffled(l.keys)}
	helper, err := startHelper(ctx, "", "bare", strconv.Itoa(t.size))
	if err != nil {
		return fail(err)
	}
	defer helper.stop()
	of := func(name string) string { return fmt.Sprintf("%s, %s keys", name, thousands(float64(l.keys))) }
	contenders := []contender{
		{"bare Fiber route, same size", t.against(ctx, helper.address, popular)},
		{of("verify over HTTP, Zipf"), t.ours(ctx, popular, false)},
		{"bare Fiber route, again", t.against(ctx, helper.address, popular)},
		{of("verify over HTTP, uniform"), t.ours(ctx, all, true)},
	}
	comparisons := []comparison{{2, 0, "1 (the noise)"}, {1, 0, ">= 0.90, p90 <= 1.3"}, {3, 0, ">= 0.75"}}
	if wide {
		more, stop, err := t.others(ctx, l, popular)
		defer stop()
		if err != nil {
			return fail(err)
		}
		contenders = append(contenders, more...)
		for n, wanted := range []string{">= 3", ">= 10", ""} {
			if 4+n < len(contenders) {
				comparisons = append(comparisons, comparison{1, 4 + n, wanted})
			}
		}
	} else {
		comparisons = comparisons[1:]
	}
	measured, err := b.compare(rounds, perSecond, contenders, comparisons...)
	if err != nil {
		return fail(err)
	}
	if wide {
		b.fact("uniform: all uses recorded in the log, worst round, after", seconds(greatest(t.lag).Seconds()), "bounded")
		b.fact("uniform: counts, tree and stream at the end too, after", seconds(greatest(t.shown).Seconds()), "bounded")
	}
	return measured[1], measured[3], measured[0], nil
}

func greatest(values []time.Duration) time.Duration {
	var most time.Duration
	for _, v := range values {
		most = max(most, v)
	}
	return most
}

// ours measures the server. It first waits until the uses of the turn before are recorded.
func (t *verifyTest) ours(ctx context.Context, v *visits, timed bool) func() (sample, error) {
	l := load{address: t.server.address(), path: verifyPath, want: fasthttp.StatusOK, begins: validAnswer, body: v.body, sent: &t.sent, warm: warmUp}
	return func() (sample, error) {
		if err := t.drain(ctx, nil); err != nil {
			return sample{}, err
		}
		s, err := l.run(ctx, max(t.duration, leastTurn))
		if err != nil {
			return s, err
		}
		// What is left to do is done before the next contender's turn, not during it.
		if timed {
			return s, t.drain(ctx, func(recorded, shown time.Duration) {
				t.lag, t.shown = append(t.lag, recorded), append(t.shown, shown)
			})
		}
		return s, t.drain(ctx, nil)
	}
}

// against measures something else.
func (t *verifyTest) against(ctx context.Context, address string, v *visits) func() (sample, error) {
	l := load{address: address, path: verifyPath, want: fasthttp.StatusOK, begins: validAnswer, body: v.body, warm: t.duration / 10}
	return func() (sample, error) { return l.run(ctx, t.duration) }
}

// drain waits until every use that was answered is recorded in the log, and until
// it is counted where people see it, and tells how long each took.
func (t *verifyTest) drain(ctx context.Context, tell func(recorded, shown time.Duration)) error {
	began := time.Now()
	var recorded time.Duration
	err := t.server.await(ctx, func(values map[string]float64) bool {
		return int64(values[`keyledger_uses_recorded_total{outcome="VALID"}`]) >= t.sent.Load()
	}, func() { recorded = time.Since(began) })
	if err == nil && tell != nil {
		tell(recorded, time.Since(began))
	}
	return err
}

// answerSize asks once.
func (t *verifyTest) answerSize(q questions) (int, error) {
	var request fasthttp.Request
	var response fasthttp.Response
	request.Header.SetMethod(fasthttp.MethodPost)
	request.SetRequestURI(t.server.HTTP + verifyPath)
	request.Header.SetContentType("application/json")
	request.SetBodyRaw(q.about(0))
	if err := fasthttp.Do(&request, &response); err != nil {
		return 0, err
	}
	t.sent.Add(1)
	return len(response.Body()), nil
}

// others starts what asks a table, or a cache, for every request.
func (t *verifyTest) others(ctx context.Context, l *ledger, v *visits) (contenders []contender, stop func(), err error) {
	var started []func()
	stop = func() {
		for _, stop := range started {
			stop()
		}
	}
	if err := l.makeLookups(ctx); err != nil {
		return nil, stop, err
	}
	for _, of := range []struct{ part, name string }{
		{"lookup", "Fiber, a pgx look-up per request"},
		{"update", "Fiber, look-up and update of last_used_at"},
	} {
		h, err := startHelper(ctx, l.adminURL, of.part, strconv.Itoa(t.size))
		if err != nil {
			return nil, stop, err
		}
		started = append(started, h.stop)
		contenders = append(contenders, contender{of.name, t.against(ctx, h.address, v)})
	}
	address, stopRedis, err := startRedis(ctx, l.keys, constant(t.size))
	if err != nil {
		return nil, stop, err
	}
	if stopRedis == nil {
		t.fact("Fiber, a Redis GET per request", "skipped: redis-server is not installed", "")
		return contenders, stop, nil
	}
	started = append(started, stopRedis)
	h, err := startHelper(ctx, "", "redis", address)
	if err != nil {
		return nil, stop, err
	}
	started = append(started, h.stop)
	return append(contenders, contender{"Fiber, a Redis GET per request", t.against(ctx, h.address, v)}), stop, nil
}

// startRedis starts a Redis in memory and gives it an answer for each key. stop
// is nil when there is no Redis on this machine.
func startRedis(ctx context.Context, keys int, value []byte) (address string, stop func(), err error) {
	program, err := exec.LookPath("redis-server")
	if err != nil {
		return "", nil, nil //nolint:nilerr // its absence is an answer
	}
	port, err := freePort()
	if err != nil {
		return "", nil, err
	}
	address = net.JoinHostPort("127.0.0.1", port)
	process := exec.CommandContext(ctx, program, "--bind", "127.0.0.1", "--port", port, "--save", "", "--appendonly", "no")
	process.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := process.Start(); err != nil {
		return "", nil, err
	}
	stop = func() {
		_ = process.Process.Kill()
		_ = process.Wait()
	}
	conn, err := dialRedis(address)
	for deadline := time.Now().Add(10 * time.Second); err != nil && time.Now().Before(deadline); conn, err = dialRedis(address) {
		time.Sleep(10 * time.Millisecond) // it tells nobody when it listens
	}
	if err == nil {
		err = conn.fill(keys, value)
		_ = conn.Close()
	}
	if err != nil {
		stop()
		return "", nil, err
	}
	return address, stop, nil
}

// freePort is a port that nobody listened on a moment ago.
func freePort() (string, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer func() { _ = listener.Close() }()
	_, port, err := net.SplitHostPort(listener.Addr().String())
	return port, err
}
