package main

import (
	"context"
	"time"

	"keyledger/domain"
)

// replayedEvents is how many events benchReplay folds again and again.
const replayedEvents = 200_000

// benchReplay measures how fast the log can be read, decoded and folded.
func benchReplay(ctx context.Context, b *bench) error {
	db, err := startDatabase(ctx)
	if err != nil {
		return err
	}
	defer db.stop()
	l, err := openLog(ctx, db.url)
	if err != nil {
		return err
	}
	defer l.stop()
	for {
		head, err := l.Head(ctx, domain.Lifecycle)
		if err != nil {
			return err
		}
		if head.Position >= replayedEvents {
			break
		}
		if _, err := l.appendFor(ctx, 1024, time.Second); err != nil {
			return err
		}
	}
	return b.rate("replay: read, decode and fold events", func() (sample, error) { return l.replay(ctx) })
}

func (l *eventLog) replay(ctx context.Context) (sample, error) {
	started := time.Now()
	n := 0
	keys := map[domain.KeyID]domain.Key{}
	for r, err := range l.Read(ctx, domain.Lifecycle, 0) {
		if err != nil {
			return sample{}, err
		}
		e, err := l.Decode(ctx, r)
		if err != nil {
			return sample{}, err
		}
		if id, ok := r.Stream.Key(); ok {
			if keys[id], err = domain.EvolveKey(keys[id], e.Event); err != nil {
				return sample{}, err
			}
		}
		n++
	}
	return sample{value: float64(n) / time.Since(started).Seconds()}, nil
}
