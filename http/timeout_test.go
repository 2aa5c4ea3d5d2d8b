package http_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	keyhttp "keyledger/http"
)

// Who takes too long is cut off, and who does not is not.
func TestSlowClientsAreCutOff(t *testing.T) {
	t.Parallel()
	const patience, most = 3 * time.Second, time.Minute
	server, err := keyhttp.New(keyhttp.Options{Ledger: newLedger(), Verifier: newLedger(), Keys: newLedger()})
	if err != nil {
		t.Fatal(err)
	}
	keyhttp.SetTimeouts(server, patience, 2*patience)
	listener := listen(t)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := errors.Join(server.Shutdown(ctx), <-served); err != nil {
			t.Error(err)
		}
	})
	const whole = "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
	for name, test := range map[string]struct {
		sends   string
		answers int
		after   time.Duration
	}{
		"nothing is asked":    {"", 0, patience},
		"half a request":      {"GET /livez HTTP/1.1\r\nHo", 0, patience},
		"half a body":         {"POST /api/v1/keys/verify HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{", 0, patience},
		"nothing more":        {whole, 1, 2 * patience},
		"half a next request": {whole + "GET /li", 1, patience},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			started := time.Now()
			c, err := net.Dial("tcp", listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = c.Close() }()
			_ = c.SetDeadline(started.Add(most))
			if _, err := io.WriteString(c, test.sends); err != nil {
				t.Fatal(err)
			}
			reader := bufio.NewReader(c)
			for range test.answers {
				if err := skipAnswer(reader); err != nil {
					t.Fatal(err)
				}
			}
			_, err = io.Copy(io.Discard, reader)
			var timeout net.Error
			if errors.As(err, &timeout) && timeout.Timeout() {
				t.Fatal("the connection stays open")
			}
			if took := time.Since(started); took < test.after-time.Second {
				t.Errorf("cut off after %s", took)
			}
		})
	}
	t.Run("a client that goes on asking", func(t *testing.T) {
		t.Parallel()
		c, err := net.Dial("tcp", listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		_ = c.SetDeadline(time.Now().Add(most))
		reader := bufio.NewReader(c)
		asking := time.NewTicker(200 * time.Millisecond)
		defer asking.Stop()
		for started := time.Now(); time.Since(started) < 3*patience; <-asking.C {
			if _, err := io.WriteString(c, whole); err != nil {
				t.Fatal(err)
			}
			if err := skipAnswer(reader); err != nil {
				t.Fatal(err)
			}
		}
	})
}
