// Command verifier is a program with an embedded verifier in it, for the proof of
// revocation: it answers on loopback whether the key in a request's body may be used.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"keyledger/client"
)

const mostKey = 1 << 10

func main() {
	logger := slog.New(slog.NewJSONHandler(os.Stderr, nil))
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := run(ctx, logger); err != nil {
		logger.Error("the verifier ends", "error", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, logger *slog.Logger) error {
	verifier, err := client.NewVerifier(client.VerifierOptions{
		URL: os.Getenv("VERIFIER_URL"), Key: os.Getenv("VERIFIER_KEY"), Name: "prove", Logger: logger,
	})
	if err != nil {
		return err
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", os.Getenv("KEYLEDGER_LISTEN"))
	if err != nil {
		return err
	}
	server := &http.Server{Handler: handler(verifier), ReadHeaderTimeout: time.Minute}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	go func() {
		if verifier.WaitReady(ctx) == nil {
			logger.Info("keyledger is ready") // what servertest looks for
		}
	}()
	// It reports its last uses where it can, and nobody waits for that here.
	if err := verifier.Run(ctx); err != nil {
		logger.Warn("the verifier has ended", "error", err)
	}
	err = server.Close()
	if ended := <-served; !errors.Is(ended, http.ErrServerClosed) {
		err = errors.Join(err, ended)
	}
	return err
}

func handler(verifier *client.Verifier) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		key, err := io.ReadAll(io.LimitReader(r.Body, mostKey))
		if err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		verdict, err := verifier.Verify(r.Context(), client.Question{Key: string(key)})
		if err != nil {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"valid": verdict.Valid, "code": verdict.Code})
	}
}
