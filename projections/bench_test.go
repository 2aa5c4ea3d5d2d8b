package projections_test

import (
	"bytes"
	"context"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"keyledger/domain"
	"keyledger/internal/testkit"
	"keyledger/projections"
	"keyledger/projections/internal/logtest"
	"keyledger/projections/keylist"
	"keyledger/projections/usage"
)

// benchmarkKeys is how many keys the benchmarks' log has; KEYLEDGER_BENCH_KEYS says otherwise.
func benchmarkKeys() int {
	if n, err := strconv.Atoi(os.Getenv("KEYLEDGER_BENCH_KEYS")); err == nil {
		return n
	}
	return 20_000
}

// fill makes a log of n keys, a fifth of them revoked, in 100 organizations, on a
// Postgres with all its guarantees.
func fill(b *testing.B, n int) *logtest.Log {
	b.Helper()
	log := logtest.NewDurable(b)
	const writers = 256
	var group errgroup.Group
	for w := range writers {
		group.Go(func() error {
			for i := w; i < n; i += writers {
				key, err := log.TryCreate(domain.OrganizationID("org_"+strconv.Itoa(i%100)), "a key of some length", time.Now())
				if err != nil {
					return err
				}
				if i%5 == 0 {
					if _, err := log.TryRevoke(key); err != nil {
						return err
					}
				}
			}
			return nil
		})
	}
	logtest.Must(b, group.Wait())
	return log
}

// BenchmarkRebuild measures replayed events per second, comparison and swap
// included, and beside it what Postgres needs to copy the same rows out and in again.
func BenchmarkRebuild(b *testing.B) {
	log := fill(b, benchmarkKeys())
	ctx := context.WithoutCancel(b.Context())
	var rebuilt, copied time.Duration
	var events float64
	for b.Loop() {
		report, err := projections.Rebuild(ctx, projections.RebuildOptions{AdminURL: log.DB.AdminURL, Log: log, Projection: keylist.New(log.Pool), Logger: testkit.Logger(b)})
		logtest.Must(b, err)
		events += float64(report.Position)
		rebuilt += report.Took
		copied += copyOutAndIn(ctx, b, log)
	}
	b.ReportMetric(events/rebuilt.Seconds(), "events/s")
	b.ReportMetric(copied.Seconds()/rebuilt.Seconds(), "of-copy")
}

// copyOutAndIn copies the list out and into an equal table.
func copyOutAndIn(ctx context.Context, b *testing.B, log *logtest.Log) time.Duration {
	b.Helper()
	conn, err := pgx.Connect(ctx, log.DB.AdminURL)
	logtest.Must(b, err)
	defer conn.Close(ctx)
	_, err = conn.Exec(ctx, `CREATE TABLE copied (LIKE keylist INCLUDING ALL)`)
	logtest.Must(b, err)
	start := time.Now()
	var rows bytes.Buffer
	_, err = conn.PgConn().CopyTo(ctx, &rows, `COPY keylist TO STDOUT (FORMAT binary)`)
	logtest.Must(b, err)
	_, err = conn.PgConn().CopyFrom(ctx, &rows, `COPY copied FROM STDIN (FORMAT binary)`)
	logtest.Must(b, err)
	took := time.Since(start)
	_, err = conn.Exec(ctx, `DROP TABLE copied`)
	logtest.Must(b, err)
	return took
}

// BenchmarkFollow measures how fast the live projection catches up.
func BenchmarkFollow(b *testing.B) {
	log := fill(b, benchmarkKeys())
	head := log.End(domain.Lifecycle)
	for b.Loop() {
		_, err := log.Owner().Exec(b.Context(), `TRUNCATE keylist; UPDATE projection_checkpoints SET position = 0`)
		logtest.Must(b, err)
		start := time.Now()
		logtest.Must(b, follow(log, keylist.New(log.Pool)).CatchUp(context.WithoutCancel(b.Context()), head))
		b.ReportMetric(float64(head)/time.Since(start).Seconds(), "events/s")
	}
}

// BenchmarkList measures a page of 50 keys, and a page after one write that
// nobody has applied yet.
func BenchmarkList(b *testing.B) {
	log := fill(b, benchmarkKeys())
	list := keylist.NewList(log.Pool, follow(log, keylist.New(log.Pool)))
	query := domain.KeyQuery{Organization: "org_7", Most: 50}
	_, err := list.List(b.Context(), query)
	logtest.Must(b, err)
	b.Run("at rest", func(b *testing.B) {
		for b.Loop() {
			_, err := list.List(b.Context(), query)
			logtest.Must(b, err)
		}
	})
	b.Run("after a write", func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			log.Create("org_7", "a key")
			b.StartTimer()
			_, err := list.List(b.Context(), query)
			logtest.Must(b, err)
		}
	})
}

// BenchmarkUsage measures the counting of flushes of 1,000 uses.
func BenchmarkUsage(b *testing.B) {
	log := logtest.NewDurable(b)
	keys := make([]domain.KeyID, 20_000)
	for i := range keys {
		keys[i] = domain.KeyID(logtest.NewID(b))
	}
	const flushes, perFlush = 100, 1000
	for f := range flushes {
		now := time.Now().UTC().Truncate(time.Microsecond)
		uses := make([]domain.Use, perFlush)
		for i := range uses {
			uses[i] = domain.Use{Key: keys[(f*perFlush+i*7)%len(keys)], Count: 3, First: now, Last: now}
		}
		log.Use("org_a", uses...)
	}
	for b.Loop() {
		_, err := log.Owner().Exec(b.Context(), `TRUNCATE usage_keys, usage_hours; UPDATE projection_checkpoints SET position = 0`)
		logtest.Must(b, err)
		start := time.Now()
		logtest.Must(b, follow(log, usage.New(log.Pool)).CatchUp(context.WithoutCancel(b.Context()), flushes))
		b.ReportMetric(float64(flushes*perFlush)/time.Since(start).Seconds(), "uses/s")
	}
}
