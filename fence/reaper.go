package fence

import (
	"context"
	"time"

	"keyledger/domain"
)

// reapOthers removes those who have not renewed for twice their lease. By then
// whatever they were granted has ended. How long that is, this process's monotonic
// clock says, and whether they renewed, a number: wall clocks jump.
func (f *Fence) reapOthers(ctx context.Context) {
	type sight struct {
		renewal int64
		since   time.Time
	}
	seen := map[domain.ID]sight{}
	ticker := time.NewTicker(f.o.Lease)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		members, err := f.look(ctx)
		if err != nil {
			clear(seen) // what was not looked at may have been renewed
			continue
		}
		now := time.Now()
		present := make(map[domain.ID]bool, len(members))
		for _, m := range members {
			present[m.id] = true
			last, known := seen[m.id]
			switch {
			case !known || last.renewal != m.renewal:
				seen[m.id] = sight{m.renewal, now}
			case m.id != f.o.ID && now.Sub(last.since) > 2*m.lease+margin:
				if gone, err := f.registry.reap(ctx, m); err == nil && gone {
					f.metrics.reaped.Inc()
					f.logger.Warn("a verifier has not renewed its lease and is no longer waited for", "verifier", m.id.UUID(), "kind", string(m.kind))
				}
			}
		}
		for id := range seen {
			if !present[id] {
				delete(seen, id)
			}
		}
	}
}
