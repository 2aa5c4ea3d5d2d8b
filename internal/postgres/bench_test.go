package postgres_test

import (
	"context"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"

	"keyledger/internal/postgres"
	"keyledger/internal/testkit"
)

func BenchmarkColdStart(b *testing.B) {
	for b.Loop() {
		server := startFor(b, filepath.Join(testkit.Dir(b), "postgres"))
		b.StopTimer()
		_ = server.Stop(b.Context())
		b.StartTimer()
	}
}

func BenchmarkWarmStart(b *testing.B) {
	dir := filepath.Join(testkit.Dir(b), "postgres")
	_ = startFor(b, dir).Stop(b.Context())
	for b.Loop() {
		server := startFor(b, dir)
		b.StopTimer()
		_ = server.Stop(b.Context())
		b.StartTimer()
	}
}

func BenchmarkReturnAfterKill(b *testing.B) {
	server := startFor(b, filepath.Join(testkit.Dir(b), "postgres"))
	for b.Loop() {
		pid := server.Pid()
		_ = syscall.Kill(pid, syscall.SIGKILL)
		if _, err := server.AwaitReady(b.Context(), pid); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRoundTrip(b *testing.B) {
	server := startFor(b, filepath.Join(testkit.Dir(b), "postgres"))
	for name, url := range map[string]string{"tcp": server.URL(), "socket": server.SocketURL()} {
		b.Run(name, func(b *testing.B) {
			conn, err := pgx.Connect(b.Context(), url)
			if err != nil {
				b.Fatal(err)
			}
			defer func() { _ = conn.Close(context.WithoutCancel(b.Context())) }()
			for b.Loop() {
				var one int
				if err := conn.QueryRow(b.Context(), "SELECT 1").Scan(&one); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func startFor(b *testing.B, dir string) *postgres.Server {
	b.Helper()
	server, err := postgres.Start(b.Context(), postgres.Options{Dir: dir})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = server.Stop(context.WithoutCancel(b.Context())) })
	return server
}
