package datadir

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// LockName is the file that holds the lock and, as text, the holder's process id.
const LockName = "lock"

// ErrLocked says that another process holds the lock of a folder.
var ErrLocked = errors.New("already in use")

// Lock is an exclusive flock on one folder. The kernel releases it when the
// process ends, however it ends, so a lock is never stale.
type Lock struct{ file *os.File }

// AcquireLock takes the exclusive lock of dir, or fails with [ErrLocked] naming
// the process that has it.
func AcquireLock(dir string) (*Lock, error) {
	path := filepath.Join(dir, LockName)
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the lock file: %w", err)
	}
	// A command that looks whether a server runs holds a shared lock for some
	// microseconds, and a killed server's lock goes a moment after its process:
	// neither is a reason to refuse.
	for range 10 {
		if err = flock(file, syscall.LOCK_EX|syscall.LOCK_NB); !errors.Is(err, syscall.EWOULDBLOCK) {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if errors.Is(err, syscall.EWOULDBLOCK) {
		pid := readPid(file)
		_ = file.Close()
		return nil, lockedError(dir, pid)
	}
	if err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	if err := writePid(file); err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("write the process id to %s: %w", path, err)
	}
	return &Lock{file: file}, nil
}

func lockedError(dir string, pid int) error {
	holder := "by another process"
	if pid > 0 {
		holder = fmt.Sprintf("by process %d", pid)
	}
	return fmt.Errorf("%s is %w %s: stop that server first, or choose another directory with --data-dir", dir, ErrLocked, holder)
}

// Release gives the lock back. The file stays: removing it would let two
// processes lock two files of the same name.
func (l *Lock) Release() error {
	if l == nil || l.file == nil {
		return nil
	}
	file := l.file
	l.file = nil
	_ = file.Truncate(0)
	// Unlocked by name and not by closing alone: a process that another goroutine
	// is just starting has a copy of the descriptor from its fork until its exec,
	// and an flock lives until the last copy is closed.
	if err := errors.Join(flock(file, syscall.LOCK_UN), file.Close()); err != nil {
		return fmt.Errorf("release the lock: %w", err)
	}
	return nil
}

// holder returns whether somebody holds the lock of dir, and the process id it left.
func holder(dir string) (pid int, held bool, err error) {
	file, err := os.Open(filepath.Join(dir, LockName))
	if errors.Is(err, os.ErrNotExist) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("open the lock file: %w", err)
	}
	defer func() { _ = file.Close() }()
	err = flock(file, syscall.LOCK_SH|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return readPid(file), true, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("look at the lock of %s: %w", dir, err)
	}
	// By name, as in Release: nobody is to wait for a look.
	_ = flock(file, syscall.LOCK_UN)
	return 0, false, nil
}

func flock(file *os.File, how int) error {
	for {
		err := syscall.Flock(int(file.Fd()), how)
		if !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}

func writePid(file *os.File) error {
	if err := file.Truncate(0); err != nil {
		return err
	}
	_, err := file.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	return err
}

func readPid(file *os.File) int {
	text, err := io.ReadAll(io.NewSectionReader(file, 0, 32))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return 0
	}
	return pid
}
