//go:build unix && !linux

package postgres

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// dieWithParent has no counterpart here: the next start stops what was left.
func dieWithParent(*syscall.SysProcAttr) {}

// processesIn returns the postmaster that the data directory names, if the
// process of that id is a Postgres.
func processesIn(dataDir string) []int {
	text, err := os.ReadFile(filepath.Join(dataDir, pidFile))
	if err != nil {
		return nil
	}
	first, _, _ := strings.Cut(string(text), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(first))
	if err != nil || pid <= 1 {
		return nil
	}
	comm, err := exec.Command("ps", "-o", "comm=", "-p", strconv.Itoa(pid)).Output()
	if err != nil || !strings.HasPrefix(filepath.Base(strings.TrimSpace(string(comm))), "postgres") {
		return nil
	}
	return []int{pid}
}
