package audit_test

import (
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"keyledger/audit"
	"keyledger/domain"
)

// load writes events of the usual size past the appender, as an import does.
func (l *ledger) load(b *testing.B, n int) {
	b.Helper()
	owner := l.Owner()
	sealed := make([]byte, 120)
	_, _ = rand.Read(sealed)
	_, err := owner.CopyFrom(b.Context(), pgx.Identifier{"events"}, []string{
		"lane", "position", "epoch", "id", "stream", "version", "organization", "type", "schema", "recorded_at", "data", "metadata", "sealed",
	}, pgx.CopyFromSlice(n, func(i int) ([]any, error) {
		id, err := domain.NewID(time.Now(), rand.Reader)
		key := domain.KeyID(id)
		organization := fmt.Sprint("org_", i%1000)
		data := fmt.Sprintf(`{"keyId":"%s","organizationId":"%s","digest":"%064x","prefix":"bsk_live_a1b2","scopes":["read","write"],"rateLimit":1000,"expiresAt":null,"at":"2026-01-15T10:00:00.000000Z"}`, key, organization, i)
		metadata := fmt.Sprintf(`{"actor":{"kind":"key","keyId":"%s"},"requestId":"02ca916c7cdc26c78ecbca47071905a9","traceId":"4bf92f3577b34da6a3ce929d0e0e4736"}`, key)
		return []any{
			"lifecycle", int64(i + 1), int32(1), [16]byte(id), "key/" + key.UUID(), int64(1), organization, "KeyCreated", int16(1),
			time.Date(2026, 1, 15, 10, 0, 0, 0, time.UTC), []byte(data), []byte(metadata), sealed,
		}, err
	}))
	must(b, err)
	_, err = owner.Exec(b.Context(), `UPDATE log_head SET position = $1, recorded_at = '2026-01-15T10:00:00Z' WHERE lane = 'lifecycle'`, n)
	must(b, err)
	_, err = owner.Exec(b.Context(), `VACUUM ANALYZE events`)
	must(b, err)
}

// BenchmarkVerify holds the speed of a verification against that of a binary COPY
// of the same events, which does nothing with them. KEYLEDGER_EVENTS says how many.
func BenchmarkVerify(b *testing.B) {
	n := 200_000
	if text := os.Getenv("KEYLEDGER_EVENTS"); text != "" {
		var err error
		n, err = strconv.Atoi(text)
		must(b, err)
	}
	l := newLedger(b)
	l.load(b, n)
	l.sign()
	conn, err := pgx.Connect(b.Context(), l.db.AdminURL)
	must(b, err)
	defer conn.Close(b.Context()) //nolint:errcheck // the benchmark ends
	var copied, verified time.Duration
	for b.Loop() {
		started := time.Now()
		_, err := conn.PgConn().CopyTo(b.Context(), io.Discard, `COPY (SELECT position, epoch, id, stream, version, organization, type, schema, recorded_at, data, metadata, sealed
			FROM events WHERE lane = 'lifecycle' ORDER BY position) TO STDOUT (FORMAT binary)`)
		must(b, err)
		copied += time.Since(started)
		started = time.Now()
		if report := l.verify(audit.Options{Keys: l.public()}); !report.OK {
			b.Fatal(report.Faults[0])
		}
		verified += time.Since(started)
	}
	b.ReportMetric(float64(b.N*n)/copied.Seconds(), "copied/s")
	b.ReportMetric(float64(b.N*n)/verified.Seconds(), "verified/s")
	b.ReportMetric(copied.Seconds()/verified.Seconds(), "of_copy")
	b.ReportMetric(0, "ns/op")
}
