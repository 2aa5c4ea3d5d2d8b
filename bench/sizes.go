package main

import (
	"context"
	"fmt"
	"time"
)

// million is how many keys the rows that are held against a demand are measured with.
const million = 1_000_000

// benchKeys measures a ledger as it grows: what an index of its keys takes and
// does, and how fast they are verified over HTTP.
func benchKeys(ctx context.Context, b *bench) error {
	l, err := startLedger(ctx)
	if err != nil {
		return err
	}
	defer l.stop()
	sizes := []int{million}
	if b.wants("keys") {
		sizes = []int{1_000, 10_000, 100_000, million}
		if b.full {
			sizes = append(sizes, 10*million)
		}
	}
	for _, size := range sizes {
		if err := l.grow(ctx, size); err != nil {
			return err
		}
		if err := b.atSize(ctx, l); err != nil {
			return fmt.Errorf("with %d keys: %w", size, err)
		}
	}
	return nil
}

func (b *bench) atSize(ctx context.Context, l *ledger) error {
	at := point{keys: l.keys}
	if b.wants("keys") || b.wants("index") {
		f, err := b.indexAt(ctx, l, b.rounds)
		if err != nil {
			return err
		}
		at.index = f
		b.addIndex(f, l.keys == million)
	}
	// A server would first publish ten million events and build a tree over them.
	if l.keys <= million && (b.wants("keys") || b.wants("verify")) {
		rounds, wide := b.rounds, l.keys == million && b.wants("verify")
		if !wide {
			rounds = max(3, b.rounds/3) // for the plots
		}
		var err error
		if at.zipf, at.uniform, at.bare, err = b.verifyAt(ctx, l, rounds, wide); err != nil {
			return err
		}
	}
	b.curves = append(b.curves, at)
	return nil
}

// addIndex adds what was found out about an index to the table.
func (b *bench) addIndex(f indexFigures, demanded bool) {
	of := func(name string) string { return fmt.Sprintf("%s, %s keys", name, thousands(float64(f.Keys))) }
	verify, hash := summary{}, summary{}
	for i := range f.Verify {
		verify.samples = append(verify.samples, sample{value: f.Verify[i]})
		hash.samples = append(hash.samples, sample{value: f.Hash[i]})
	}
	verify.sum()
	hash.sum()
	wanted := ""
	if demanded {
		wanted = "<= 3"
	}
	b.addComparison(of("verify in process"), verify, "bare SHA-256, same keys and order", hash, nanoseconds, wanted)
	if demanded {
		b.fact(of("allocations a verification"), fmt.Sprintf("%.3f", f.Allocations), "0")
		b.fact(of("verify in process, 2 goroutines to 1"), fmt.Sprintf("%.2f (SHA-256: %.2f)", f.Two, f.TwoHashes), "2")
	}
	memory, ready := "", ""
	switch f.Keys {
	case million:
		ready = "<= 3 s"
	case 10 * million:
		memory, ready = "<= 100", "<= 20 s"
	}
	b.fact(of("index ready from the snapshot"), seconds(f.Load), ready)
	b.fact(of("memory a key (each in use)"), fmt.Sprintf("%.0f B (%.0f B)", f.Bytes, f.BytesInUse), memory)
	b.fact(of("collector: longest pause, share of CPU"), fmt.Sprintf("%v, %.2f %% (%d runs)",
		time.Duration(f.Pause*1e9).Round(time.Microsecond), 100*f.Share, f.Collections), "both do not grow")
}
