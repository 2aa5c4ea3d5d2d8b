//go:build !linux

package servertest

import "os/exec"

// Only Linux ends a child with its parent: a test process that is killed leaves
// its servers behind.
func dieWithParent(*exec.Cmd) {}
