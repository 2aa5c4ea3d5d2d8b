package verification

import (
	"context"
	"crypto/sha256"
	"flag"
	"fmt"
	"testing"
	"time"

	"keyledger/domain"
	"keyledger/eventstore"
	"keyledger/index"
	"keyledger/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

var manyKeys = flag.Int("keys", 1_000_000, "keys in the index for benchmarks")

// plainKeys are keys as they are presented.
func plainKeys(n int) [][]byte {
	keys := make([][]byte, n)
	for i := range keys {
		keys[i] = fmt.Appendf(nil, "bsk_live_%032d", i)
	}
	return keys
}

func created(position int, plain []byte, at time.Time) index.Event {
	var id domain.KeyID
	copy(id[:], plain[len(plain)-len(id):])
	return index.Event{Position: domain.Position(position), Version: 1, Event: domain.KeyCreated{
		Key: id, Organization: domain.OrganizationID(fmt.Sprintf("org_%05d", position%5000)), Digest: sha256.Sum256(plain),
		Prefix: string(plain[:13]), Scopes: domain.Scopes{"read", "write"}, RateLimit: domain.DefaultRateLimit, At: at,
		Name: fmt.Sprintf("the key %08d", position),
	}}
}

// snapshotOf is a snapshot of keys, at the position of the last one.
func snapshotOf(tb testing.TB, keys [][]byte) *index.Loading {
	tb.Helper()
	l := index.Begin(index.History{}, domain.Position(len(keys)), len(keys))
	for i, plain := range keys {
		e := created(i+1, plain, time.Time{}).Event.(domain.KeyCreated)
		if err := l.Add(&index.Key{
			Digest: e.Digest, ID: e.Key, Organization: string(e.Organization), Name: e.Name, Scopes: l.Scopes(e.Scopes), Limit: e.RateLimit, Version: 1,
		}); err != nil {
			tb.Fatal(err)
		}
	}
	return l
}

func empty() *index.Index {
	x := index.New(index.Options{})
	x.Replace(index.Begin(index.History{}, 0, 0), 0, 0)
	return x
}

// filled is an index of keys, without a database.
func filled(tb testing.TB, keys [][]byte) *index.Index {
	tb.Helper()
	x := index.New(index.Options{})
	x.Replace(snapshotOf(tb, keys), domain.Position(len(keys)), 0)
	return x
}

func idOf(n int) (id domain.KeyID) {
	copy(id[:], fmt.Sprintf("id %013d", n))
	return id
}

func secretOf(n int) domain.Digest { return sha256.Sum256(fmt.Appendf(nil, "secret %d", n)) }

func digestOf(plain []byte) domain.Digest { return sha256.Sum256(plain) }

func verifyPlain(x *index.Index, key []byte, required domain.Scopes) domain.Outcome {
	verdict, err := x.Verify(domain.Verification{Digest: sha256.Sum256(key), Required: required, Now: time.Now()})
	if err != nil {
		panic(err)
	}
	return verdict.Outcome
}

// BenchmarkFlush takes out the counts of keys that were all used once, up to what
// is handed to the log.
func BenchmarkFlush(b *testing.B) {
	keys := plainKeys(*manyKeys)
	x := filled(b, keys)
	a, err := NewAccountant(x, discard{}, AccountantOptions{})
	if err != nil {
		b.Fatal(err)
	}
	var took time.Duration
	for b.Loop() {
		for _, key := range keys {
			verifyPlain(x, key, nil)
		}
		began := time.Now()
		if err := a.Flush(b.Context()); err != nil {
			b.Fatal(err)
		}
		took += time.Since(began)
	}
	b.ReportMetric(float64(len(keys)*b.N)/took.Seconds(), "uses/s")
}

type discard struct{}

func (discard) AppendUsage(_ context.Context, f eventstore.UsageFlush) (domain.Receipt, error) {
	return domain.Receipt{Version: f.Expected + uint64(len(f.Events))}, nil
}
