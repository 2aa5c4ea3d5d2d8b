package postgres

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// dieWithParent asks the kernel for a fast shutdown of the child when the thread
// that starts it ends.
func dieWithParent(attributes *syscall.SysProcAttr) { attributes.Pdeathsig = syscall.SIGINT }

// processesIn returns the Postgres processes that work in a data directory:
// every one of them has it as its working directory. So backends whose
// postmaster is dead are found as well.
func processesIn(dataDir string) []int {
	procs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil
	}
	var pids []int
	for _, proc := range procs {
		pid, err := strconv.Atoi(filepath.Base(proc))
		if err != nil {
			continue
		}
		// A shell that stands in the folder is not ours to kill.
		if comm, err := os.ReadFile(proc + "/comm"); err != nil || string(comm) != "postgres\n" {
			continue
		}
		cwd, err := os.Readlink(proc + "/cwd")
		if err != nil {
			// Root in a container may not look at another user's folder, but everyone
			// may read the arguments, and the postmaster's name its data directory.
			arguments, err := os.ReadFile(proc + "/cmdline")
			if err != nil || !slices.Contains(strings.Split(string(arguments), "\x00"), dataDir) {
				continue
			}
			cwd = dataDir
		}
		if cwd == dataDir {
			pids = append(pids, pid)
		}
	}
	return pids
}
