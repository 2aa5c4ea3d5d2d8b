package index

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"keyledger/domain"
)

// One writer creates and revokes, and forgets what it has revoked so that places are
// used again; readers verify all the time. What a reader sees of a key is whole:
// its own name, organization and limit, and never valid again once it was revoked
// at a position that the reader had seen.
func TestReadersSeeWholeKeysWhileTheWriterChangesThem(t *testing.T) {
	t.Parallel()
	const rounds, keys = 60, 64
	x := empty(Options{})
	plain := func(round, n int) []byte { return fmt.Appendf(nil, "key %d of round %d", n, round) }
	organization := func(round, n int) domain.OrganizationID {
		return domain.OrganizationID(fmt.Sprintf("org_%d_%d", round%7, n))
	}
	var created, revoked atomic.Int64 // rounds that are complete
	revoked.Store(-1)
	created.Store(-1)

	var writer, readers sync.WaitGroup
	writer.Go(func() {
		position := domain.Position(0)
		apply := func(e domain.Event, version uint64) {
			position++
			if err := x.Apply([]Event{{Position: position, Version: version, Event: e}}); err != nil {
				t.Error(err)
			}
		}
		for round := range rounds {
			for n := range keys {
				apply(domain.KeyCreated{
					Key: idOf(round*keys + n), Organization: organization(round, n), Digest: sha256.Sum256(plain(round, n)),
					Scopes: domain.Scopes{"read"}, Name: fmt.Sprintf("name %d/%d", round, n), RateLimit: uint32(1_000_000 + n),
				}, 1)
			}
			created.Store(int64(round))
			if round == 0 {
				continue
			}
			var ids []domain.KeyID
			for n := range keys {
				ids = append(ids, idOf((round-1)*keys+n))
				apply(domain.KeyRevoked{Key: ids[n], Organization: organization(round-1, n)}, 2)
			}
			revoked.Store(int64(round - 1))
			if round%3 == 0 {
				// The accountant takes the tallies back long before a key is forgotten.
				later := time.Now().Add(time.Hour)
				c := x.contents.Load()
				c.collect(1, 1<<20, later.UnixMilli(), bucketOf(later.Sub(x.base)), nil)
				c.collect(1, 1<<20, later.UnixMilli(), bucketOf(later.Sub(x.base)), nil)
				x.Forget(ids...)
			}
		}
	})
	var stop atomic.Bool
	for g := range 4 {
		readers.Go(func() {
			random := rand.New(rand.NewPCG(uint64(g), 9))
			for !stop.Load() {
				was, is := revoked.Load(), created.Load()
				round, n := random.IntN(int(is)+2), random.IntN(keys)
				v, err := x.Verify(domain.Verification{Digest: sha256.Sum256(plain(round, n)), Now: time.Now()})
				if err != nil {
					t.Error(err)
					return
				}
				switch v.Outcome {
				case domain.OutcomeNotFound:
					if int64(round) <= is && int64(round) > was && round > int(revoked.Load())+1 {
						t.Errorf("round %d of %d is not found", round, is)
					}
					continue
				case domain.OutcomeRevoked:
				case domain.OutcomeValid:
					if int64(round) <= was {
						t.Errorf("a key of round %d is valid after round %d was revoked", round, was)
					}
				default:
					t.Errorf("outcome %v", v.Outcome)
				}
				if v.Key != idOf(round*keys+n) || v.Organization != organization(round, n) || v.Name != fmt.Sprintf("name %d/%d", round, n) || v.Limit.PerMinute != uint32(1_000_000+n) {
					t.Errorf("key %d of round %d came as %+v", n, round, v)
				}
			}
		})
	}
	writer.Wait()
	stop.Store(true)
	readers.Wait()
}
