package postgres

import "testing"

// Installed lists the installations of this machine.
func Installed() []string { return installed() }

// WriteProgram writes a file that can be run at once.
func WriteProgram(t *testing.T, path string, content []byte) { writeProgram(t, path, content) }
