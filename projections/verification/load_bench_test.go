package verification_test

import (
	"testing"
	"time"

	"keyledger/index"
	"keyledger/projections/internal/logtest"
	"keyledger/projections/verification"
)

// BenchmarkLoad measures the way from a snapshot in Postgres to an index that
// answers: -keys of them.
func BenchmarkLoad(b *testing.B) {
	log := logtest.New(b)
	owner := log.Owner()
	for _, statement := range []string{
		`INSERT INTO keylist
		 SELECT gen_random_uuid(), 'org_' || lpad((n % 5000)::text, 5, '0'), sha256(n::text::bytea), 'bsk_live_abcd', 'the key ' || lpad(n::text, 8, '0'),
		        ARRAY['read', 'write'], 1000, now(), '', CASE WHEN n % 3 = 0 THEN now() + interval '1 year' END, false, n % 50 = 0, NULL, 1, 0
		   FROM generate_series(1, $1::int) AS n`,
	} {
		if _, err := owner.Exec(b.Context(), statement, *verification.ManyKeys); err != nil {
			b.Fatal(err)
		}
	}
	if _, err := owner.Exec(b.Context(), `VACUUM ANALYZE keylist`); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		x := index.New(index.Options{})
		p := verification.New(x, verification.Options{})
		began := time.Now()
		if err := p.Load(b.Context(), log.Pool); err != nil {
			b.Fatal(err)
		}
		if !x.Ready() || x.Len() != *verification.ManyKeys {
			b.Fatal(x.Ready(), x.Len())
		}
		b.ReportMetric(float64(x.Len())/time.Since(began).Seconds(), "keys/s")
	}
}
