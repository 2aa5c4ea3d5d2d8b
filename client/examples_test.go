package client_test

import (
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"keyledger/internal/servertest"
)

// printed is what a function writes to standard output.
func printed(t *testing.T, f func()) string {
	t.Helper()
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout := os.Stdout
	os.Stdout = writer
	said := make(chan string)
	go func() {
		text, _ := io.ReadAll(reader)
		said <- string(text)
	}()
	f()
	os.Stdout = stdout
	_ = writer.Close()
	return <-said
}

// Whoever imports the client builds nothing of the server.
func TestTheClientPullsInNothingOfTheServer(t *testing.T) {
	for pkg, refused := range map[string][]string{
		"keyledger/client":           {"github.com/jackc", "github.com/gofiber", "github.com/valyala", "github.com/prometheus", "github.com/nats-io/nats-server"},
		"keyledger/client/httpauth":  {"github.com/jackc", "github.com/gofiber", "github.com/valyala"},
		"keyledger/client/fiberauth": {"github.com/jackc"},
	} {
		output, err := exec.CommandContext(t.Context(), "go", "list", "-deps", pkg).Output()
		if err != nil {
			t.Fatal(err)
		}
		for imported := range strings.Lines(string(output)) {
			imported = strings.TrimSpace(imported)
			ours := strings.HasPrefix(imported, "keyledger/") && !strings.HasPrefix(imported, "keyledger/client") && imported != "keyledger/domain" && !strings.HasPrefix(imported, "keyledger/index")
			if ours || slices.ContainsFunc(refused, func(prefix string) bool { return strings.HasPrefix(imported, prefix) }) {
				t.Errorf("%s imports %s", pkg, imported)
			}
		}
	}
}

func TestTheExamplesDoWhatTheySay(t *testing.T) {
	server := servertest.Start(t, servertest.Options{})
	t.Setenv("KEYLEDGER_URL", server.URL())
	t.Setenv("KEYLEDGER_KEY", server.Bootstrap("org_abc123"))
	t.Setenv("NATS_URL", server.Endpoints().NATS)
	for _, c := range []struct {
		name string
		run  func()
		want string
	}{
		{"Example", Example, "made: [redacted]\nverified: VALID\nrevoked everywhere: true\nverified: REVOKED <nil>\n"},
		{"ExampleClient_Keys", ExampleClient_Keys, "Production true [orders:read] revoked\nbootstrap true [admin *] active\n"},
		{"ExampleWithMinPosition", ExampleWithMinPosition, "Batch <nil>\n"},
		{"ExampleError", ExampleError, "expiresAt is wrong: must be in the future\n"},
		{"ExampleSubscribe", ExampleSubscribe, "keyledger.key.created at position 1\ntrue 1 true\n"},
	} {
		if got := printed(t, c.run); strings.TrimSpace(got) != strings.TrimSpace(c.want) {
			t.Errorf("%s says\n%s\nand not\n%s", c.name, got, c.want)
		}
	}
}
