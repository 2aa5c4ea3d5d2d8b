package audit

import (
	"context"
	"runtime"

	"golang.org/x/sync/errgroup"

	"keyledger/domain"
)

// piece is a run of events as a source delivers them, in whatever form is
// cheapest for it. Reading rows out of it is work for many processors.
type piece interface {
	rows(into []row) ([]row, error)
	leaves() leavesOf // nil: the source has no tree beside the events
}

// job is a piece on its way through.
type job struct {
	piece   piece
	checked []checked
	err     error
	done    chan struct{}
}

// inFlight bounds the pieces that wait for a processor or for their turn.
const inFlight = 16

// pipe reads pieces, hashes and checks their rows on all processors, and hands
// them on in the order in which they were read.
func pipe(ctx context.Context, lane domain.Lane, ledger domain.ID, w *watch, read func(context.Context, func(piece) error) error, take func([]checked, leavesOf)) error {
	group, ctx := errgroup.WithContext(ctx)
	ordered, work := make(chan *job, inFlight), make(chan *job, inFlight)
	group.Go(func() error {
		defer close(ordered)
		defer close(work)
		return read(ctx, func(p piece) error {
			j := &job{piece: p, done: make(chan struct{})}
			for _, queue := range []chan *job{ordered, work} {
				select {
				case queue <- j:
				case <-ctx.Done():
					return context.Cause(ctx)
				}
			}
			return nil
		})
	})
	for range runtime.GOMAXPROCS(0) {
		group.Go(func() error {
			var buffer []byte
			var rows []row
			for j := range work {
				if rows, j.err = j.piece.rows(rows[:0]); j.err == nil {
					j.checked = make([]checked, len(rows))
					for i := range rows {
						j.checked[i], buffer = rows[i].check(lane, ledger, buffer)
						j.checked[i].late = w.late(&rows[i])
					}
				}
				close(j.done)
			}
			return nil
		})
	}
	group.Go(func() error {
		for j := range ordered {
			select {
			case <-j.done:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			if j.err != nil {
				return j.err
			}
			take(j.checked, j.piece.leaves())
		}
		return nil
	})
	return group.Wait()
}
