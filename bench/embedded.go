package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"keyledger/client"
	"keyledger/domain"
	"keyledger/eventstore"
	"keyledger/index"
	"keyledger/projections/verification"
)

// embeddedFigures is what a process that embeds a verifier finds out.
type embeddedFigures struct {
	Keys        int
	Load        []float64 // seconds from nothing until it answers, by round
	Embedded    []float64 // nanoseconds of processor time a verification, by round
	InProcess   []float64 // the same as a server verifies, in turns
	Allocations float64   // a verification
}

// benchEmbedded measures a verifier in a process of its own: how fast all keys
// arrive there, through HTTP, and how fast it verifies them.
func benchEmbedded(ctx context.Context, b *bench) error {
	l, err := startLedger(ctx)
	if err != nil {
		return err
	}
	defer l.stop()
	if err := l.grow(ctx, million); err != nil {
		return err
	}
	s, err := startServer(ctx, l)
	if err != nil {
		return err
	}
	defer s.stop()
	err = s.await(ctx, func(values map[string]float64) bool {
		return min(values[`keyledger_relay_last_sequence{lane="lifecycle"}`], values[`keyledger_checkpoint_size{lane="lifecycle"}`]) >= float64(l.keys)
	}, func() {})
	if err != nil {
		return err
	}
	key, err := s.bootstrapSystem(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "\ran embedded verifier of %s keys\033[K", thousands(float64(l.keys)))
	defer fmt.Fprint(os.Stderr, "\r\033[K")
	c, err := child(ctx, l.url, "embedded", s.HTTP, key, strconv.Itoa(l.keys), strconv.Itoa(b.rounds))
	if err != nil {
		return err
	}
	output, err := c.Output()
	if err != nil {
		return err
	}
	var f embeddedFigures
	if err := json.Unmarshal(output, &f); err != nil {
		return err
	}
	// Speeds and not times, so that more is better.
	rates := func(times []float64) (s summary) {
		for _, t := range times {
			s.samples = append(s.samples, sample{value: 1e9 / t})
		}
		s.sum()
		return s
	}
	of := func(name string) string { return fmt.Sprintf("%s, %s keys", name, thousands(float64(f.Keys))) }
	b.addComparison(of("verify, embedded"), rates(f.Embedded), "in the server's process", rates(f.InProcess), perSecond, ">= 0.9")
	b.fact(of("allocations an embedded verification"), fmt.Sprintf("%.3f", f.Allocations), "0")
	took := median(f.Load)
	b.fact(of("snapshot to an embedded verifier, keys a second until it answers"),
		fmt.Sprintf("%s (%.2f s, %.2f-%.2f)", perSecond(float64(f.Keys)/took), took, slices.Min(f.Load), slices.Max(f.Load)), ">= 300,000/s")
	return nil
}

// measureEmbedded embeds verifiers of a server, and prints figures about them.
func measureEmbedded(ctx context.Context, arguments []string) error {
	url, key := arguments[0], arguments[1]
	n, err := strconv.Atoi(arguments[2])
	if err != nil {
		return err
	}
	rounds, err := strconv.Atoi(arguments[3])
	if err != nil {
		return err
	}
	f := embeddedFigures{Keys: n}
	var v *client.Verifier
	for range max(3, rounds/3) {
		if v != nil {
			v.Close()
		}
		runtime.GC()
		if v, err = client.NewVerifier(client.VerifierOptions{URL: url, Key: key, Name: "bench"}); err != nil {
			return err
		}
		began := time.Now()
		go func(v *client.Verifier) { _ = v.Run(ctx) }(v)
		if err := v.WaitReady(ctx); err != nil {
			return err
		}
		f.Load = append(f.Load, time.Since(began).Seconds())
		if v.Len() < n {
			return fmt.Errorf("the verifier has %d keys of %d", v.Len(), n)
		}
	}
	defer v.Close()

	t := &indexTest{plain: make([]byte, n*plainSize), order: shuffled(n)}
	for i := range n {
		plainKey(t.plain[i*plainSize:], i)
	}
	pool, err := eventstore.Connect(ctx, os.Getenv(databaseVariable), eventstore.ConnectOptions{MaxConns: 1})
	if err != nil {
		return err
	}
	defer pool.Close()
	// As a server has it, with a lease that outlasts the measurement.
	t.index = index.New(index.Options{Leased: true, Lease: 24 * time.Hour})
	if err := verification.New(t.index, verification.Options{Pool: pool}).Load(ctx, pool); err != nil {
		return err
	}
	t.index.Grant(time.Now(), t.index.Position())

	embedded := func(from, to int) {
		required := domain.Scopes{domain.ScopeRead}
		for i := from; i < to; i++ {
			verdict, err := v.Verify(ctx, client.Question{Key: t.key(i), Scopes: required})
			if err != nil || !verdict.Valid {
				panic(fmt.Sprint("a good key is refused: ", verdict.Code, err))
			}
		}
	}
	const turn = 500_000
	embedded(0, n) // every key has been used once
	t.verify(0, n)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	measure := func(do func(from, to int), round int) float64 {
		began := processorTime(unix.CLOCK_THREAD_CPUTIME_ID)
		do(round*turn, (round+1)*turn)
		return float64(processorTime(unix.CLOCK_THREAD_CPUTIME_ID)-began) / turn
	}
	for round := range rounds {
		f.InProcess = append(f.InProcess, measure(t.verify, round))
		f.Embedded = append(f.Embedded, measure(embedded, round))
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	embedded(0, turn)
	runtime.ReadMemStats(&after)
	// Those who keep the lease and report the uses allocate meanwhile, a little.
	f.Allocations = float64(after.Mallocs-before.Mallocs) / turn
	return json.NewEncoder(os.Stdout).Encode(f)
}
