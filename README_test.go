package keyledger_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
	"testing"

	"keyledger/internal/servertest"
	"keyledger/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// block is a piece of code in the README, and in which language it is.
type block struct{ language, text string }

func blocks(t *testing.T) []block {
	t.Helper()
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	var all []block
	for _, match := range regexp.MustCompile("(?ms)^```([a-z]+)\n(.*?)^```$").FindAllStringSubmatch(string(text), -1) {
		all = append(all, block{match[1], match[2]})
	}
	return all
}

// runnable says whether a block can run beside a server: it starts none, and
// needs no program that a machine may lack.
func (b block) runnable() bool {
	if b.language != "sh" {
		return false
	}
	for line := range strings.Lines(b.text) {
		if strings.HasPrefix(line, "make ") || strings.Contains(line, "keyledger serve") {
			return false
		}
	}
	return true
}

func TestTheCommandsOfTheREADMEDoWhatItSays(t *testing.T) {
	t.Parallel()
	server := servertest.Start(t, servertest.Options{Args: []string{"--bootstrap", "org_abc123"}})
	shell := startShell(t, server)
	all := blocks(t)
	ran, compared := 0, 0
	for i, b := range all {
		if !b.runnable() {
			continue
		}
		output := shell.run(t, b.text)
		ran++
		if i+1 < len(all) && all[i+1].language == "json" {
			said, got := decode(t, all[i+1].text), decode(t, output)
			if !reflect.DeepEqual(shape(said), shape(got)) {
				t.Errorf("the README shows\n%s\nand this is what comes:\n%s", all[i+1].text, output)
			}
			compared++
		}
	}
	if ran < 6 || compared < 5 {
		t.Errorf("only %d blocks of the README were run and %d answers compared", ran, compared)
	}
	alertsAreAboutMetrics(t, shell)
}

func TestTheSubscriberOfTheREADMEHearsOfRevocations(t *testing.T) {
	t.Parallel()
	server := servertest.Start(t, servertest.Options{})
	key := server.BootstrapKey("--organization", "org_abc123")
	all := blocks(t)
	source := all[slices.IndexFunc(all, func(b block) bool { return b.language == "go" })].text
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "main.go"), []byte(source), 0o600); err != nil {
		t.Fatal(err)
	}
	arguments := []string{"build", "-o", filepath.Join(dir, "subscriber")}
	if info, ok := debug.ReadBuildInfo(); ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"}) {
		arguments = append(arguments, "-race") // the dependencies are compiled that way already
	}
	if output, err := exec.CommandContext(t.Context(), "go", append(arguments, filepath.Join(dir, "main.go"))...).CombinedOutput(); err != nil {
		t.Fatalf("the README's subscriber does not compile: %v\n%s", err, output)
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	subscriber := exec.CommandContext(ctx, filepath.Join(dir, "subscriber"))
	subscriber.Dir = dir
	subscriber.Env = []string{"NATS_URL=" + server.Endpoints().NATS}
	stdout, err := subscriber.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	subscriber.Stderr = &stderr
	if err := subscriber.Start(); err != nil {
		t.Fatal(err)
	}
	startShell(t, server).run(t, fmt.Sprintf(`curl -X DELETE http://127.0.0.1:8080/api/v1/organization/org_abc123/api-keys/%s -H "X-API-Key: %s"`, key.ID, key.Key))
	line, err := bufio.NewReader(stdout).ReadString('\n')
	stop()
	_ = subscriber.Wait()
	if want := fmt.Sprintf("revoked: %s at position 2\n", key.ID); line != want {
		t.Errorf("the subscriber says %q (%v), not %q\n%s", line, err, want, stderr.String())
	}
}

// shell is a terminal in a checkout in which "make run" runs: one session, so
// that variables stay.
type shell struct {
	session *exec.Cmd
	stdin   *bufio.Writer
	stdout  *bufio.Reader
	stderr  *bytes.Buffer
	address string
}

func startShell(t *testing.T, server *servertest.Server) *shell {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "bin"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{".keyledger": server.DataDir(), "bin/keyledger": servertest.Build(t)} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	s := &shell{session: exec.CommandContext(t.Context(), "bash"), stderr: &bytes.Buffer{}, address: strings.TrimPrefix(server.URL(), "http://")}
	s.session.Dir = dir
	s.session.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME")}
	s.session.Stderr = s.stderr
	stdin, err := s.session.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := s.session.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	s.stdin, s.stdout = bufio.NewWriter(stdin), bufio.NewReader(stdout)
	if err := s.session.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = stdin.Close()
		_ = s.session.Wait()
	})
	// A status that is no success ends the session. The nats command is not
	// everybody's: what it is asked here is what the other test does.
	s.write(t, "set -euo pipefail\ncurl() { command curl --silent --show-error --fail-with-body \"$@\"; }\nnats() { :; }\n")
	return s
}

const endOfBlock = "--- end of block ---"

// run runs a block and gives what it has printed.
func (s *shell) run(t *testing.T, commands string) string {
	t.Helper()
	s.write(t, strings.ReplaceAll(commands, "127.0.0.1:8080", s.address)+"\necho\necho '"+endOfBlock+"'\n")
	var output strings.Builder
	for {
		line, err := s.stdout.ReadString('\n')
		if err != nil {
			_ = s.session.Wait()
			t.Fatalf("this failed:\n%s\n%s%s", commands, output.String(), s.stderr.String())
		}
		if strings.TrimSpace(line) == endOfBlock {
			return output.String()
		}
		output.WriteString(line)
	}
}

func (s *shell) write(t *testing.T, text string) {
	t.Helper()
	if _, err := s.stdin.WriteString(text); err != nil {
		t.Fatal(err)
	}
	if err := s.stdin.Flush(); err != nil {
		t.Fatalf("the shell has ended: %v", err)
	}
}

func decode(t *testing.T, text string) any {
	t.Helper()
	var value any
	if err := json.Unmarshal([]byte(text), &value); err != nil {
		t.Fatalf("this is no JSON: %v\n%s", err, text)
	}
	return value
}

// shape keeps the names of an answer and forgets its values, but for truth,
// which a README had better get right. Of a list it keeps the first entry.
func shape(value any) any {
	switch v := value.(type) {
	case map[string]any:
		shapes := map[string]any{}
		for name, field := range v {
			shapes[name] = shape(field)
		}
		return shapes
	case []any:
		if len(v) == 0 {
			return []any{}
		}
		return []any{shape(v[0])}
	case bool:
		return v
	}
	return nil
}
