// Package faults holds the tests that break a running Keyledger and then audit
// what it left: SIGKILL and SIGSTOP of servers and of Postgres, streams that are
// wiped, always under concurrent creates and revokes.
//
// A fault strikes after a random number of acknowledged commands, never after a
// time. make test runs five rounds of each, make soak as many as
// KEYLEDGER_SOAK says.
package faults
