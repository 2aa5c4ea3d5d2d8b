// Command subscriber reacts to revocations: it prints a line for every key that
// is revoked, in order, and goes on where it stopped when it is started again.
//
//	go run ./examples/subscriber                              # the server of ./.keyledger
//	NATS_URL=nats://... go run ./examples/subscriber -state . # any other
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"keyledger/client"
)

func main() {
	endpoints := flag.String("endpoints", ".keyledger/endpoints.json", "where a running server says how to reach it; NATS_URL goes first")
	state := flag.String("state", ".keyledger", "the folder in which we keep how far we have come")
	name := flag.String("name", "revocations-example", "under which name")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	url, err := natsURL(*endpoints)
	if err == nil {
		err = subscribe(ctx, url, *name, client.FileStore(*state), os.Stdout)
	}
	if err != nil && ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, "subscriber:", err)
		os.Exit(1)
	}
}

// subscribe prints revocations until ctx ends, or until it must not go on: when the
// ledger was restored, what was derived from it is to be thrown away, and the file
// of the position with it.
//
// The effect here is a printed line, so the library keeps the position: a crash
// between the two prints that line again. Whoever writes to a database keeps
// e.Cursor there in the same transaction, and hands it in as After at the next
// start; then every event takes effect exactly once.
func subscribe(ctx context.Context, url, name string, store client.PositionStore, out io.Writer) error {
	return client.Subscribe(ctx, client.SubscribeOptions{
		URL:    url,
		Filter: client.Filter{Types: []string{client.TypeKeyRevoked}},
		Name:   name,
		Store:  store,
		Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	}, func(_ context.Context, e client.Event) error {
		_, err := fmt.Fprintf(out, "%s  %s of %s is revoked  (position %d)\n", e.Time.Format(time.RFC3339), e.Key, e.Organization, e.Position)
		return err
	})
}

func natsURL(endpoints string) (string, error) {
	if url := os.Getenv("NATS_URL"); url != "" {
		return url, nil
	}
	text, err := os.ReadFile(endpoints)
	if err != nil {
		return "", fmt.Errorf("set NATS_URL, or start a server first: %w", err)
	}
	var e struct{ NATS string }
	if err := json.Unmarshal(text, &e); err != nil {
		return "", fmt.Errorf("read %s: %w", endpoints, err)
	}
	return e.NATS, nil
}
