// Package prove holds the tests that try to break the promise about revocations:
// no verification that starts after a revoke call has returned is accepted,
// anywhere.
//
// They run the real programs, several servers and embedded verifiers on one
// Postgres and a cluster of NATS, every connection between them through a proxy
// that can cut it, hold it, lose what it carries or slow it down. Processes are
// stopped, continued and killed. Everything is measured on one monotonic clock, that of
// the test, from outside: a revocation holds from the moment its answer was read,
// a verification starts before its request is written.
//
// make test runs a short version; make prove-revocation ten minutes of it. The same
// harness finds bugs that were planted (planted_test.go), or it would prove nothing.
package prove
