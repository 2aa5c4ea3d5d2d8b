package testkit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"keyledger/internal/datadir"
)

const (
	rootPattern = "keyledger-test-*"
	// A folder is only taken for abandoned when it had time to be locked.
	abandonedAfter = time.Minute
	// startWithin bounds what a busy machine may need; nothing waits this long.
	startWithin = 2 * time.Minute
)

// Main runs the tests of a package, stops what they shared and exits. After
// tests that passed it looks for goroutines that are still running, except those
// that options ignore.
func Main(m *testing.M, options ...goleak.Option) {
	code := m.Run()
	if err := stopShared(); err != nil {
		fmt.Fprintln(os.Stderr, "testkit:", err)
		code = max(code, 1)
	}
	if code == 0 {
		// fasthttp formats the date for its responses in a goroutine that never ends.
		options = append(options, goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.updateServerDate.func1"))
		if err := goleak.Find(options...); err != nil {
			fmt.Fprintln(os.Stderr, "testkit:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// Dir returns a folder for a data directory. Unlike t.TempDir, the user under
// whom a root's database runs can reach it.
func Dir(t testing.TB) string {
	t.Helper()
	root, err := sharedRoot()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp(root.path, "dir-")
	if err == nil {
		err = os.Chmod(dir, 0o711)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("testkit: %v", err)
		}
	})
	return dir
}

// root is the folder of this test process, locked while the process lives.
type root struct {
	path string
	lock *datadir.Lock
}

// What a test process shares cannot belong to any one test, so it is the one
// state of this package.
var shared struct {
	mu       sync.Mutex
	root     *root
	database *template
	seed     string // a stopped server's directory, to be copied
	failed   error  // the first failure, which every later test repeats at once
}

func sharedRoot() (*root, error) {
	shared.mu.Lock()
	defer shared.mu.Unlock()
	return sharedRootLocked()
}

func sharedRootLocked() (*root, error) {
	if shared.root != nil {
		return shared.root, nil
	}
	removeAbandoned()
	path, err := os.MkdirTemp("", rootPattern)
	if err != nil {
		return nil, fmt.Errorf("testkit: make a folder for the tests: %w", err)
	}
	// The database's user, if it is another, must be able to walk through.
	if err := os.Chmod(path, 0o711); err != nil {
		return nil, fmt.Errorf("testkit: open the folder of the tests: %w", err)
	}
	lock, err := datadir.AcquireLock(path)
	if err != nil {
		return nil, fmt.Errorf("testkit: %w", err)
	}
	shared.root = &root{path: path, lock: lock}
	return shared.root, nil
}

func sharedSeed() (string, error) {
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.seed != "" || shared.failed != nil {
		return shared.seed, shared.failed
	}
	root, err := sharedRootLocked()
	if err == nil {
		dir := filepath.Join(root.path, "seed")
		if err = makeSeed(dir); err == nil {
			shared.seed = dir
		}
	}
	if err != nil {
		shared.failed = fmt.Errorf("testkit: %w", err)
	}
	return shared.seed, shared.failed
}

// removeAbandoned removes the folders of test processes that were killed.
func removeAbandoned() {
	paths, err := filepath.Glob(filepath.Join(os.TempDir(), rootPattern))
	if err != nil {
		return
	}
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil || time.Since(info.ModTime()) < abandonedAfter {
			continue
		}
		if _, held, err := datadir.At(path).Holder(); err == nil && !held {
			_ = os.RemoveAll(path)
		}
	}
}

func stopShared() error {
	shared.mu.Lock()
	defer shared.mu.Unlock()
	var err error
	if shared.database != nil {
		ctx, cancel := context.WithTimeout(context.Background(), startWithin)
		defer cancel()
		err = shared.database.stop(ctx)
		shared.database = nil
	}
	if shared.root != nil {
		err = errors.Join(err, os.RemoveAll(shared.root.path), shared.root.lock.Release())
		shared.root = nil
	}
	return err
}
