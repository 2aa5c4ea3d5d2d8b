package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"keyledger/client"
	"keyledger/internal/servertest"
	"keyledger/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

const patience = time.Minute

// started runs the subscriber; end stops it and gives what it ended with.
func started(t *testing.T, url string, store client.PositionStore) (lines func(n int) []string, end func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	out, in := io.Pipe()
	done := make(chan error, 1)
	go func() {
		done <- subscribe(ctx, url, "test", store, in)
		_ = in.Close()
	}()
	scanner := bufio.NewScanner(out)
	lines = func(n int) (got []string) {
		for len(got) < n && scanner.Scan() {
			got = append(got, scanner.Text())
		}
		return got
	}
	end = func() error {
		cancel()
		_ = out.Close()
		return <-done
	}
	return lines, end
}

func TestEveryRevocationIsPrintedInOrderOverRestarts(t *testing.T) {
	t.Parallel()
	server := servertest.Start(t, servertest.Options{})
	c, err := client.New(server.URL(), server.Bootstrap("org_abc123"))
	if err != nil {
		t.Fatal(err)
	}
	store := client.FileStore(t.TempDir())
	revoke := func(n int) (want []string) {
		for range n {
			made, err := c.CreateKey(t.Context(), "org_abc123", client.NewKey{Name: "n", Scopes: client.Scopes{"read"}})
			if err != nil {
				t.Fatal(err)
			}
			ended, err := c.RevokeKey(t.Context(), "org_abc123", made.ID, "")
			if err != nil {
				t.Fatal(err)
			}
			want = append(want, fmt.Sprintf("%s of org_abc123 is revoked  (position %d)", made.ID, ended.Position.Position))
		}
		return want
	}
	for _, n := range []int{3, 1, 2} {
		want := revoke(n)
		lines, end := started(t, server.Endpoints().NATS, store)
		for i, line := range lines(n) {
			if !strings.HasSuffix(line, want[i]) {
				t.Errorf("line %d is %q, not of %q", i, line, want[i])
			}
		}
		awaitKept(t, store, want[n-1])
		_ = end()
	}
	// What it has handled is not what stands there any more.
	at, err := store.Load(t.Context(), "test")
	if err != nil {
		t.Fatal(err)
	}
	at.ID = "019bc09a-3e00-7aaa-8bbb-010203040506"
	if err := store.Save(t.Context(), "test", at); err != nil {
		t.Fatal(err)
	}
	lines, end := started(t, server.Endpoints().NATS, store)
	if more := lines(1); len(more) != 0 {
		t.Errorf("it went on with %q", more)
	}
	if err := end(); !errors.Is(err, client.ErrAnotherHistory) {
		t.Errorf("it ended with %v", err)
	}
}

// awaitKept returns when the position of a line is kept: the line comes first.
func awaitKept(t *testing.T, store client.PositionStore, line string) {
	t.Helper()
	poll := time.NewTicker(time.Millisecond)
	defer poll.Stop()
	for late := time.After(patience); ; {
		at, err := store.Load(t.Context(), "test")
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(line, fmt.Sprintf("(position %d)", at.Position)) {
			return
		}
		select {
		case <-poll.C:
		case <-late:
			t.Fatalf("%v is kept, and not that of %q", at, line)
		}
	}
}

func TestTheServersOwnFileSaysWhereNATSIs(t *testing.T) {
	t.Setenv("NATS_URL", "")
	file := filepath.Join(t.TempDir(), "endpoints.json")
	if err := os.WriteFile(file, []byte(`{"http":"http://h","database":"d","database_admin":"a","nats":"nats://u:p@127.0.0.1:4222"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if url, err := natsURL(file); err != nil || url != "nats://u:p@127.0.0.1:4222" {
		t.Errorf("the file says %q, %v", url, err)
	}
	t.Setenv("NATS_URL", "nats://other")
	if url, err := natsURL(file); err != nil || url != "nats://other" {
		t.Errorf("NATS_URL does not go first: %q, %v", url, err)
	}
}
