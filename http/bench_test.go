package http_test

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/gofiber/fiber/v2"

	"keyledger/domain"
	keyhttp "keyledger/http"
)

// oneKey is an index that knows one key and gives its verdict at once, so that
// what is measured is the border.
type oneKey struct {
	*ledger
	digest  domain.Digest
	verdict domain.Verdict
}

func (o *oneKey) Verify(v domain.Verification) (domain.Verdict, error) {
	if !o.digest.Equal(v.Digest) {
		return domain.Verdict{Outcome: domain.OutcomeNotFound}, nil
	}
	return o.verdict, nil
}

func (o *oneKey) Position() domain.Position { return 1 << 40 }

const benchKey = "bsk_live_a1b2c3d4e5f6a1b2c3d4e5f6a1b2c3d4"

func newOneKey() *oneKey {
	secret, err := domain.ParseSecret(benchKey)
	if err != nil {
		panic(err)
	}
	id, err := domain.ParseKeyID("018d0b1e-5f2a-7c3d-9e4f-0a1b2c3d4e5f")
	if err != nil {
		panic(err)
	}
	return &oneKey{newLedger(), secret.Digest(), domain.Verdict{
		Key: id, Organization: acme, Name: "Production Server", Scopes: domain.Scopes{domain.ScopeRead, domain.ScopeWrite}, Version: 1, Position: 123456,
		Limit: domain.Limit{PerMinute: 1000, Remaining: 999, Reset: noon.Add(time.Minute)},
	}}
}

// BenchmarkVerify compares the verification of a key with a bare Fiber route that
// returns a constant of the same size, over loopback connections, in turns.
func BenchmarkVerify(b *testing.B) {
	index := newOneKey()
	server, err := keyhttp.New(keyhttp.Options{
		Ledger: index.ledger, Verifier: index, Keys: index.ledger, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		b.Fatal(err)
	}
	ours := listen(b)
	go func() { _ = server.Serve(ours) }()
	b.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = server.Shutdown(ctx)
	})

	body := fmt.Sprintf(`{"key":%q,"scopes":["read"]}`, benchKey)
	request := func(address string) string {
		return fmt.Sprintf("POST /api/v1/keys/verify HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", address, len(body), body)
	}
	constant := readAnswer(b, ours.Addr().String(), request(ours.Addr().String()))
	bare := fiber.New(fiber.Config{DisableStartupMessage: true})
	bare.Post("/api/v1/keys/verify", func(c *fiber.Ctx) error {
		c.Set(fiber.HeaderContentType, fiber.MIMEApplicationJSON)
		return c.SendString(constant)
	})
	theirs := listen(b)
	go func() { _ = bare.Listener(theirs) }()
	b.Cleanup(func() { _ = bare.ShutdownWithTimeout(5 * time.Second) })

	for _, connections := range []int{1, 64} {
		b.Run(fmt.Sprintf("connections=%d", connections), func(b *testing.B) {
			mine := newLoad(b, ours.Addr().String(), request(ours.Addr().String()), connections)
			base := newLoad(b, theirs.Addr().String(), request(theirs.Addr().String()), connections)
			const rounds = 20
			n := max(b.N/rounds, connections)
			mine.run(b, n)
			base.run(b, n)
			b.ResetTimer()
			var mineTook, baseTook time.Duration
			var ratios, work []float64
			for i := range rounds {
				var m, t cost
				if i%2 == 0 {
					m, t = mine.run(b, n), base.run(b, n)
				} else {
					t, m = base.run(b, n), mine.run(b, n)
				}
				mineTook, baseTook = mineTook+m.took, baseTook+t.took
				ratios = append(ratios, t.took.Seconds()/m.took.Seconds())
				work = append(work, t.work.Seconds()/m.work.Seconds())
			}
			b.ReportMetric(median(ratios), "of-bare")
			b.ReportMetric(median(work), "of-bare-cpu") // steadier where others use the machine
			b.ReportMetric(float64(n*rounds)/mineTook.Seconds(), "verify/s")
			b.ReportMetric(float64(n*rounds)/baseTook.Seconds(), "bare/s")
		})
	}
}

func median(values []float64) float64 {
	sorted := append([]float64(nil), values...)
	for i := range sorted {
		for j := i; j > 0 && sorted[j] < sorted[j-1]; j-- {
			sorted[j], sorted[j-1] = sorted[j-1], sorted[j]
		}
	}
	return sorted[len(sorted)/2]
}

func listen(b testing.TB) net.Listener {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	return l
}

// load is a client that costs next to nothing: it writes the same bytes, and reads
// as many as the first answer had.
type load struct {
	request []byte
	conns   []net.Conn
	readers []*bufio.Reader
}

func newLoad(b testing.TB, address, request string, connections int) *load {
	b.Helper()
	l := &load{request: []byte(request)}
	for range connections {
		c, err := net.Dial("tcp", address)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = c.Close() })
		l.conns = append(l.conns, c)
		l.readers = append(l.readers, bufio.NewReaderSize(c, 4096))
	}
	return l
}

// cost is what n requests took, and the processor time of both their ends.
type cost struct{ took, work time.Duration }

func processorTime(b testing.TB) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func (l *load) run(b testing.TB, n int) cost {
	b.Helper()
	worked := processorTime(b)
	var left atomic.Int64
	left.Store(int64(n))
	var group sync.WaitGroup
	started := time.Now()
	for i, c := range l.conns {
		group.Go(func() {
			for left.Add(-1) >= 0 {
				if _, err := c.Write(l.request); err != nil {
					b.Error(err)
					return
				}
				if err := skipAnswer(l.readers[i]); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	group.Wait()
	return cost{time.Since(started), processorTime(b) - worked}
}

// skipAnswer reads one answer with a Content-Length.
func skipAnswer(r *bufio.Reader) error {
	length := 0
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return err
		}
		if len(line) == 2 {
			break
		}
		if len(line) > 16 && string(line[:16]) == "Content-Length: " {
			for _, c := range line[16 : len(line)-2] {
				length = length*10 + int(c-'0')
			}
		}
	}
	_, err := r.Discard(length)
	return err
}

func readAnswer(b testing.TB, address, request string) string {
	b.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if _, err := c.Write([]byte(request)); err != nil {
		b.Fatal(err)
	}
	buf := make([]byte, 4096)
	n, err := c.Read(buf)
	if err != nil {
		b.Fatal(err)
	}
	_, body, ok := strings.Cut(string(buf[:n]), "\r\n\r\n")
	if !ok || !strings.Contains(body, `"valid":true`) {
		b.Fatalf("got %s", buf[:n])
	}
	return body
}
