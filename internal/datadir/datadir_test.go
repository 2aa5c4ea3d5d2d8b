package datadir_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"keyledger/internal/datadir"
)

// helperVariable makes the test binary a process that holds a data directory.
const helperVariable = "KEYLEDGER_TEST_HOLD"

func TestMain(m *testing.M) {
	if path := os.Getenv(helperVariable); path != "" {
		if _, err := datadir.Open(path); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("held")
		_, _ = io.Copy(io.Discard, os.Stdin)
		return
	}
	os.Exit(m.Run())
}

func TestASecondServerIsToldWhoHasTheDirectory(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "deep", "data")
	holder := hold(t, path)
	_, err := datadir.Open(path)
	if !errors.Is(err, datadir.ErrLocked) {
		t.Fatalf("got %v, want that it is in use", err)
	}
	for _, part := range []string{path, strconv.Itoa(holder.Process.Pid), "--data-dir"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q does not name %s", err, part)
		}
	}
	pid, held, err := datadir.At(path).Holder()
	if err != nil || !held || pid != holder.Process.Pid {
		t.Errorf("got holder %d, %v (%v), want %d", pid, held, err, holder.Process.Pid)
	}
}

func TestAKilledServersLockIsFree(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "data")
	holder := hold(t, path)
	if err := holder.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = holder.Wait()
	if _, held, err := datadir.At(path).Holder(); err != nil || held {
		t.Errorf("the dead hold it: %v (%v)", held, err)
	}
	open(t, path)
}

func TestACommandThatLooksDoesNotKeepAServerOut(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "data")
	var looking sync.WaitGroup
	done := make(chan struct{})
	looking.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
				_, _, _ = datadir.At(path).Holder()
			}
		}
	})
	for range 20 {
		dir, err := datadir.Open(path)
		if err != nil {
			t.Error(err)
			break
		}
		if err := dir.Close(); err != nil {
			t.Error(err)
		}
	}
	close(done)
	looking.Wait()
}

func TestEverythingIsClosedToOthers(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "data")
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
	dir := open(t, path)
	if err := dir.WriteFile("file", []byte("content")); err != nil {
		t.Fatal(err)
	}
	if _, err := dir.ReadOrCreateSecret("secret", 16); err != nil {
		t.Fatal(err)
	}
	if err := dir.WriteEndpoints(datadir.Endpoints{}); err != nil {
		t.Fatal(err)
	}
	want := map[string]fs.FileMode{".": 0o700, "lock": 0o600, "file": 0o600, "secret": 0o600, "endpoints.json": 0o600}
	got := map[string]fs.FileMode{}
	err := fs.WalkDir(os.DirFS(path), ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err == nil {
			got[name] = info.Mode().Perm()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestAFolderOfSomebodyElseIsNotTakenOver(t *testing.T) {
	t.Parallel()
	path := t.TempDir()
	if err := os.Chmod(path, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(path, "thesis.txt"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := datadir.Open(path); err == nil {
		t.Error("it was taken over")
	}
	if err := datadir.LetThrough(path, os.Getgid()); err == nil {
		t.Error("it was opened to a group")
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o755 {
		t.Errorf("its mode is now %v", info.Mode())
	}
	if _, err := datadir.Open(filepath.Join(path, "thesis.txt")); err == nil {
		t.Error("a file was opened as a directory")
	}
}

func TestAFreshVolumesOwnFolderIsNoObstacle(t *testing.T) {
	t.Parallel()
	path := t.TempDir()
	if err := os.Mkdir(filepath.Join(path, "lost+found"), 0o700); err != nil {
		t.Fatal(err)
	}
	open(t, path)
}

func TestAGroupLetThroughStaysAndOthersDoNot(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "data")
	dir := open(t, path)
	if err := datadir.LetThrough(path, os.Getgid()); err != nil {
		t.Fatal(err)
	}
	if err := dir.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, path)
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o710 {
		t.Errorf("its mode is %v", info.Mode())
	}
}

func TestASecretIsTheSameForAllWhoAskAtOnce(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "data")
	secrets := make([][]byte, 8)
	var asking sync.WaitGroup
	for i := range secrets {
		asking.Go(func() {
			secret, err := datadir.At(path).ReadOrCreateSecret("secret", 32)
			if err != nil {
				t.Error(err)
			}
			secrets[i] = secret
		})
	}
	asking.Wait()
	for _, secret := range secrets {
		if len(secret) != 32 || !bytes.Equal(secret, secrets[0]) {
			t.Errorf("got %d bytes, different from the first's or not 32", len(secret))
		}
	}
	// No temporary file is left, and a server can open what a command has begun.
	open(t, path)
	entries, err := os.ReadDir(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 2 {
		t.Errorf("the directory holds %v, want the lock and the secret", entries)
	}
}

func TestADamagedSecretIsAnErrorThatDoesNotShowIt(t *testing.T) {
	t.Parallel()
	dir := open(t, filepath.Join(t.TempDir(), "data"))
	for _, damaged := range []string{"", "0badc0de", "not hexadecimal, sesame"} {
		if err := dir.WriteFile("secret", []byte(damaged)); err != nil {
			t.Fatal(err)
		}
		_, err := dir.ReadOrCreateSecret("secret", 16)
		if err == nil {
			t.Errorf("%q was accepted", damaged)
			continue
		}
		if damaged != "" && strings.Contains(err.Error(), damaged) || strings.Contains(err.Error(), "sesame") {
			t.Errorf("the error shows it: %v", err)
		}
	}
}

func TestEndpointsAreReadOnlyWhileTheirServerRuns(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "data")
	reader := datadir.At(path)
	if _, err := reader.ReadEndpoints(); !errors.Is(err, datadir.ErrNotRunning) {
		t.Errorf("got %v before the server ever ran", err)
	}
	dir := open(t, path)
	if _, err := reader.ReadEndpoints(); !errors.Is(err, datadir.ErrNotRunning) {
		t.Errorf("got %v before the server wrote them", err)
	}
	want := datadir.Endpoints{HTTP: "http://h", Database: "postgres://d", DatabaseAdmin: "postgres://a", NATS: "nats://n"}
	if err := dir.WriteEndpoints(want); err != nil {
		t.Fatal(err)
	}
	if got, err := reader.ReadEndpoints(); err != nil || got != want {
		t.Errorf("got %+v (%v), want %+v", got, err, want)
	}
	text, err := dir.ReadFile(datadir.EndpointsName)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{`"http"`, `"database"`, `"database_admin"`, `"nats"`} {
		if !bytes.Contains(text, []byte(name)) {
			t.Errorf("%s lacks %s", text, name)
		}
	}
	// A server that was killed takes nothing back.
	if err := dir.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := reader.ReadEndpoints(); !errors.Is(err, datadir.ErrNotRunning) {
		t.Errorf("got %v after the server was killed", err)
	}
	for range 2 {
		if err := dir.RemoveEndpoints(); err != nil {
			t.Error(err)
		}
	}
}

func TestAFailedWriteLeavesTheOldContent(t *testing.T) {
	t.Parallel()
	dir := open(t, filepath.Join(t.TempDir(), "data"))
	if err := os.Mkdir(dir.Path("taken"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir.Path("taken", "content"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := dir.WriteFile("taken", []byte("new")); err == nil {
		t.Error("a folder was overwritten")
	}
	entries, err := os.ReadDir(dir.Path())
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 2 {
		t.Errorf("the failed write left %v", entries)
	}
}

func open(t *testing.T, path string) *datadir.Dir {
	t.Helper()
	dir, err := datadir.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = dir.Close() })
	return dir
}

// hold opens a directory in another process.
func hold(t *testing.T, path string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), helperVariable+"="+path)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = stdin.Close()
		_ = cmd.Wait()
	})
	line := make([]byte, 256)
	n, err := stdout.Read(line)
	if err != nil || string(line[:n]) != "held\n" {
		t.Fatalf("the holder says %q (%v)", line[:n], err)
	}
	return cmd
}
