package datadir

import (
	"syscall"
	"testing"
)

// A process that is just being started has copies of all descriptors until its
// exec: the copy here stands for that moment.
func TestAReleasedLockIsFreeWhileAnotherProcessIsBeingStarted(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	lock, err := AcquireLock(dir)
	if err != nil {
		t.Fatal(err)
	}
	inherited, err := syscall.Dup(int(lock.file.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Close(inherited) })
	if err := lock.Release(); err != nil {
		t.Fatal(err)
	}
	if pid, held, err := holder(dir); held || err != nil {
		t.Errorf("it is still held by %d (%v)", pid, err)
	}
}
