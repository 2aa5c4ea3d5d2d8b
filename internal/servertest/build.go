package servertest

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// Program is a main package of this module.
type Program struct {
	Package string // such as ./cmd/keyledger
	Tags    string // build tags, separated by commas
}

// Keyledger is the program that all others are about.
var Keyledger = Program{Package: "./cmd/keyledger"}

// What a test process has built cannot belong to any one test.
var built struct {
	mu       sync.Mutex
	programs map[Program]*building
}

type building struct {
	once sync.Once
	path string
	err  error
}

// Build returns the program, as the sources are now. The go command links it
// only when something has changed since it was built last.
func Build(t testing.TB) string {
	t.Helper()
	return Keyledger.Build(t)
}

// Build is Build for any program of the module.
func (p Program) Build(t testing.TB) string {
	t.Helper()
	built.mu.Lock()
	if built.programs == nil {
		built.programs = map[Program]*building{}
	}
	b := built.programs[p]
	if b == nil {
		b = &building{}
		built.programs[p] = b
	}
	built.mu.Unlock()
	b.once.Do(func() { b.path, b.err = p.build() })
	if b.err != nil {
		t.Fatalf("servertest: %v", b.err)
	}
	return b.path
}

func (p Program) build() (string, error) {
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256([]byte(root))
	dir := filepath.Join(os.TempDir(), fmt.Sprintf("keyledger-bin-%d-%s", os.Getuid(), hex.EncodeToString(sum[:4])))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("make a folder for the program: %w", err)
	}
	// Somebody else could have made it first, and put another program there.
	if info, err := os.Lstat(dir); err != nil || !info.IsDir() || info.Mode().Perm() != 0o700 || !ownedByUs(info) {
		return "", fmt.Errorf("%s is not a folder of our own: remove it", dir)
	}
	name, arguments := filepath.Base(p.Package), []string{"build"}
	if p.Tags != "" {
		name, arguments = name+"-"+strings.ReplaceAll(p.Tags, ",", "-"), append(arguments, "-tags", p.Tags)
	}
	if raceEnabled {
		name, arguments = name+"-race", append(arguments, "-race")
	}
	path := filepath.Join(dir, name)
	// The packages' tests run side by side, and two go commands would write one file.
	lock, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return "", fmt.Errorf("lock the program: %w", err)
	}
	defer func() { _ = lock.Close() }()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", fmt.Errorf("lock the program: %w", err)
	}
	cmd := exec.Command("go", append(arguments, "-o", path, p.Package)...)
	cmd.Dir = root
	if output, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the program: %w\n%s", err, output)
	}
	return path, nil
}

func ownedByUs(info os.FileInfo) bool {
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(stat.Uid) == os.Getuid()
}

func moduleRoot() (string, error) {
	output, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("find the module: %w", err)
	}
	return filepath.Dir(strings.TrimSpace(string(output))), nil
}
