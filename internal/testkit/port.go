package testkit

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
)

// Ports are given from a range below the one in which the kernel looks for a free
// port by itself, for a connection or for a listener on port 0: nobody is given one
// by chance between the moment when it is chosen and the one when it is used, or
// while its server is down.
const (
	firstPort = 20_000
	lastPort  = 29_999
)

// ports are those that this process has. A lock of a byte for each tells the test
// processes of a machine from one another; it ends with the process.
var ports struct {
	mu    sync.Mutex
	locks *os.File
	taken map[int]bool
}

// Port is a free port of 127.0.0.1 that no other test is given while this one runs:
// for what is told its port before it listens, or listens there again.
func Port(t testing.TB) int {
	t.Helper()
	port, err := takePort()
	if err != nil {
		t.Fatalf("testkit: find a port: %v", err)
	}
	t.Cleanup(func() { returnPort(port) })
	return port
}

func takePort() (int, error) {
	ports.mu.Lock()
	defer ports.mu.Unlock()
	if ports.locks == nil {
		path := filepath.Join(os.TempDir(), fmt.Sprintf("keyledger-ports-%d", os.Getuid()))
		locks, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return 0, err
		}
		ports.locks, ports.taken = locks, map[int]bool{}
	}
	for range lastPort - firstPort {
		port := firstPort + rand.IntN(lastPort-firstPort+1)
		if ports.taken[port] || lockPort(port, syscall.F_WRLCK) != nil {
			continue
		}
		if listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			ports.taken[port] = true
			return port, listener.Close()
		}
		_ = lockPort(port, syscall.F_UNLCK) // it is somebody else's
	}
	return 0, errors.New("all are taken")
}

func returnPort(port int) {
	ports.mu.Lock()
	defer ports.mu.Unlock()
	delete(ports.taken, port)
	_ = lockPort(port, syscall.F_UNLCK)
}

func lockPort(port int, kind int16) error {
	return syscall.FcntlFlock(ports.locks.Fd(), syscall.F_SETLK, &syscall.Flock_t{Type: kind, Whence: io.SeekStart, Start: int64(port), Len: 1})
}
