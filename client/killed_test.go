package client_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"keyledger/client"
	"keyledger/internal/servertest"
)

// What the process of a killed subscriber is told.
const (
	subscriberFile = "KEYLEDGER_TEST_SUBSCRIBER_FILE"
	subscriberNATS = "KEYLEDGER_TEST_SUBSCRIBER_NATS"
	subscriberKeep = "KEYLEDGER_TEST_SUBSCRIBER_KEEP" // where the library keeps the position; empty: the file does
)

// subscriberProcess appends a line an event to its file: the effect, and with it the position.
func subscriberProcess() int {
	path := os.Getenv(subscriberFile)
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	// The last line may have been cut off; then it never happened.
	text, err := io.ReadAll(file)
	whole := bytes.LastIndexByte(text, '\n') + 1
	var after client.Cursor
	if whole > 0 && err == nil {
		lines := strings.Split(string(text[:whole-1]), "\n")
		after, err = client.ParseCursor(strings.Fields(lines[len(lines)-1])[0])
	}
	if err := errors.Join(err, file.Truncate(int64(whole))); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if _, err := file.Seek(int64(whole), io.SeekStart); err != nil {
		return 1
	}
	o := client.SubscribeOptions{URL: os.Getenv(subscriberNATS), After: after}
	if keep := os.Getenv(subscriberKeep); keep != "" {
		o.After, o.Name, o.Store = client.Cursor{}, "killed", client.FileStore(keep)
	}
	err = client.Subscribe(context.Background(), o, func(_ context.Context, e client.Event) error {
		_, err := fmt.Fprintf(file, "%s %s %s\n", e.Cursor, e.Type, e.Key)
		return err
	})
	fmt.Fprintln(os.Stderr, err)
	return 1
}

func kills(t *testing.T) int {
	t.Helper()
	text := os.Getenv("KEYLEDGER_SOAK")
	if text == "" {
		return 5
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestASubscriberThatIsKilledHandlesEveryEventOnceInOrder(t *testing.T) {
	t.Parallel()
	server := servertest.Start(t, servertest.Options{})
	c := connect(t, server, acme)
	// Keys come and go all the time.
	writing, stop := context.WithCancel(t.Context())
	var writers sync.WaitGroup
	for range 2 {
		writers.Go(func() {
			for writing.Err() == nil {
				made, err := c.CreateKey(t.Context(), acme, client.NewKey{Name: "n", Scopes: client.Scopes{"read"}})
				if err == nil {
					_, err = c.RevokeKeyAsync(t.Context(), acme, made.ID, "")
				}
				if err != nil && t.Context().Err() == nil {
					t.Error(err)
					return
				}
			}
		})
	}
	// One keeps the position with its effect; for the other the library keeps it.
	own, kept := newVictim(t, server, ""), newVictim(t, server, t.TempDir())
	var group sync.WaitGroup
	group.Go(own.killAgainAndAgain)
	group.Go(kept.killAgainAndAgain)
	// And the stream is made again under them.
	own.await(5)
	if result := server.Run("stream", "rebuild", "--yes"); result.Code != 0 {
		t.Errorf("the stream was not made again: %s", result.Stderr)
	}
	group.Wait()
	stop()
	writers.Wait()
	if t.Failed() {
		return
	}
	page, err := clientOf(t, server.URL(), server.BootstrapKey("--system").Key).Events(t.Context(), client.EventOptions{Limit: 1})
	if err != nil {
		t.Fatal(err)
	}
	repeated := own.finish(page.Head)
	if repeated != 0 {
		t.Errorf("%d events were handled again", repeated)
	}
	// An event that a crash has cut off is handled again, and no other.
	if repeated = kept.finish(page.Head); repeated > kills(t) {
		t.Errorf("%d events were handled again, after %d kills", repeated, kills(t))
	}
	t.Logf("%d events, %d kills; where the library keeps the position, %d events were handled again", page.Head, kills(t), repeated)
}

// victim is a subscriber in a process of its own.
type victim struct {
	t      *testing.T
	path   string
	env    []string
	random *mathrand.Rand
}

func newVictim(t *testing.T, server *servertest.Server, keep string) *victim {
	t.Helper()
	path := filepath.Join(t.TempDir(), "events")
	return &victim{
		t: t, path: path, random: mathrand.New(mathrand.NewPCG(1, uint64(time.Now().UnixNano()))),
		env: []string{subscriberFile + "=" + path, subscriberKeep + "=" + keep, subscriberNATS + "=" + server.Endpoints().NATS, "GORACE=atexit_sleep_ms=0"},
	}
}

func (v *victim) start() (kill func()) {
	cmd := exec.CommandContext(v.t.Context(), os.Args[0])
	cmd.Env, cmd.Stderr = v.env, os.Stderr
	if err := cmd.Start(); err != nil {
		v.t.Error(err)
		return func() {}
	}
	return func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
}

// killAgainAndAgain kills it at any moment of its life: before it has begun, and in
// the middle.
func (v *victim) killAgainAndAgain() {
	for range kills(v.t) {
		kill := v.start()
		if more := v.random.IntN(30); more > 5 {
			v.await(v.lines() + more)
		} else {
			select {
			case <-time.After(time.Duration(more) * 10 * time.Millisecond):
			case <-v.t.Context().Done():
			}
		}
		kill()
	}
}

func (v *victim) lines() int {
	text, err := os.ReadFile(v.path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		v.t.Error(err)
	}
	return bytes.Count(text, []byte("\n"))
}

func (v *victim) await(n int) {
	poll := time.NewTicker(2 * time.Millisecond)
	defer poll.Stop()
	for late := time.After(patience); v.lines() < n; {
		select {
		case <-poll.C:
		case <-late:
			v.t.Errorf("%d events were handled, and not %d", v.lines(), n)
			return
		}
	}
}

// finish lets it come to the end, and looks at what it has handled: every position,
// in order. It gives how many were repeated, each at once.
func (v *victim) finish(head client.Position) (repeated int) {
	v.t.Helper()
	kill := v.start()
	defer kill()
	for {
		v.await(int(head) + repeated)
		if again := v.repeated(); again == repeated || v.t.Failed() {
			return repeated
		} else {
			repeated = again
		}
	}
}

func (v *victim) repeated() (n int) {
	v.t.Helper()
	text, err := os.ReadFile(v.path)
	if err != nil {
		v.t.Fatal(err)
	}
	at := client.Position(0)
	for line := range bytes.Lines(text[:bytes.LastIndexByte(text, '\n')+1]) {
		cursor, err := client.ParseCursor(strings.Fields(string(line))[0])
		switch {
		case err == nil && cursor.Position == at && at > 0:
			n++
		case err == nil && cursor.Position == at+1:
			at++
		default:
			v.t.Fatalf("behind %d stands %s (%v)", at, line, err)
		}
	}
	return n
}
