package datadir

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Dir is a data directory: locked by this process when it came from [Open], not
// when it came from [At].
type Dir struct {
	path string
	lock *Lock
}

// Open creates the directory where it is missing and locks it for this process.
func Open(path string) (*Dir, error) {
	dir := At(path)
	if err := dir.create(); err != nil {
		return nil, err
	}
	lock, err := AcquireLock(dir.path)
	if err != nil {
		return nil, err
	}
	dir.lock = lock
	return dir, nil
}

// At names a directory without locking or creating it.
func At(path string) *Dir {
	if absolute, err := filepath.Abs(path); err == nil {
		path = absolute
	}
	return &Dir{path: filepath.Clean(path)}
}

// Close releases the lock.
func (d *Dir) Close() error { return d.lock.Release() }

// Path joins elem to the directory's absolute path.
func (d *Dir) Path(elem ...string) string {
	return filepath.Join(append([]string{d.path}, elem...)...)
}

// Holder returns the process that has the directory open, if one has.
func (d *Dir) Holder() (pid int, held bool, err error) { return holder(d.path) }

// create makes the directory, or checks that it is one of ours and closes it to
// others. The lock file is also the mark by which it is recognised.
func (d *Dir) create() error {
	if err := os.MkdirAll(filepath.Dir(d.path), 0o755); err != nil {
		return fmt.Errorf("create the data directory: %w", err)
	}
	if err := os.Mkdir(d.path, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("create the data directory: %w", err)
	}
	if err := Sync(filepath.Dir(d.path)); err != nil {
		return err
	}
	ours, err := isOurs(d.path)
	if err != nil {
		return err
	}
	if !ours {
		// Its mode is about to be changed, and somebody may have said --data-dir /tmp.
		return fmt.Errorf("%s is neither empty nor a Keyledger data directory: choose another with --data-dir", d.path)
	}
	info, err := os.Stat(d.path)
	if err != nil {
		return fmt.Errorf("open the data directory: %w", err)
	}
	// A group that was let through stays.
	if info.Mode().Perm()&^0o710 != 0 {
		if err := os.Chmod(d.path, 0o700); err != nil {
			return fmt.Errorf("close the data directory to others: %w", err)
		}
	}
	mark, err := os.OpenFile(d.Path(LockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("mark the data directory: %w", err)
	}
	return mark.Close()
}

func isOurs(path string) (bool, error) {
	entries, err := os.ReadDir(path)
	if err != nil {
		return false, fmt.Errorf("read the data directory: %w", err)
	}
	empty := true
	for _, entry := range entries {
		switch entry.Name() {
		case LockName:
			return true, nil
		case "lost+found": // a fresh volume of its own
		default:
			empty = false
		}
	}
	return empty, nil
}

// LetThrough allows the members of a group to walk through the directory to
// what belongs to them below it. They still cannot list it. It refuses every
// folder that is not a data directory, so that no system folder is ever opened.
func LetThrough(path string, gid int) error {
	ours, err := isOurs(path)
	if err != nil {
		return err
	}
	if !ours {
		return fmt.Errorf("%s is not a data directory", path)
	}
	if err := os.Chown(path, -1, gid); err != nil {
		return fmt.Errorf("give the directory's group away: %w", err)
	}
	if err := os.Chmod(path, 0o710); err != nil {
		return fmt.Errorf("let the group through the directory: %w", err)
	}
	return nil
}
