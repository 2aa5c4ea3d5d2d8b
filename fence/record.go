package fence

import (
	"context"
	"crypto/rand"
	"sync"
	"time"

	"keyledger/domain"
)

// record is a fence that ended, on its way into the log.
type record struct {
	key      domain.KeyID
	position domain.Position
	fenced   domain.Fenced
	at       time.Time
}

const (
	mostRecords   = 4096
	recorders     = 16
	recordWithin  = 10 * time.Second
	recordRetries = 3
)

// Record writes to the log how a fence ended. It happens in the background: the
// fence holds, whether or not it is on record.
func (f *Fence) Record(key domain.KeyID, position domain.Position, fenced domain.Fenced) {
	select {
	case f.records <- record{key, position, fenced, time.Now()}:
	default:
		f.metrics.unrecorded.Inc()
	}
}

// record writes what is queued until ctx ends, and then the rest of it.
func (f *Fence) record(ctx context.Context) {
	var working sync.WaitGroup
	for range recorders {
		working.Go(func() {
			for {
				select {
				case r := <-f.records:
					f.write(context.WithoutCancel(ctx), r)
					continue
				case <-ctx.Done():
				}
				select {
				case r := <-f.records:
					f.write(context.WithoutCancel(ctx), r)
				default:
					return
				}
			}
		})
	}
	working.Wait()
}

func (f *Fence) write(ctx context.Context, r record) {
	ctx, cancel := context.WithTimeout(ctx, recordWithin)
	defer cancel()
	request := domain.Request{Metadata: domain.Metadata{Actor: domain.Actor{Kind: domain.ActorService}}}
	_, _ = rand.Read(request.ID[:]) // never fails
	var err error
	for range recordRetries {
		_, _, err = f.o.Log.ChangeKey(ctx, request, r.key, domain.RecordFence{
			Now: r.at.UTC().Truncate(time.Microsecond), Position: r.position,
			Confirmed: r.fenced.Confirmed, Expired: r.fenced.Expired, Waited: r.fenced.Waited,
		})
		if err == nil {
			return
		}
		if domain.CodeOf(err) != domain.CodeUnavailable {
			break
		}
	}
	f.metrics.unrecorded.Inc()
	f.logger.Warn("how a fence ended is not on record", "key", r.key.String(), "position", uint64(r.position), "error", err)
}
