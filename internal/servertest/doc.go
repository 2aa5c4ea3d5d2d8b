// Package servertest runs the real program for tests: the built binary as a
// process of its own, on a data directory of its own, so that it can be killed,
// paused and started again as the world does it.
//
//	server := servertest.Start(t, servertest.Options{})
//	key := server.Bootstrap("org_abc123")
//	server.Kill()
//	server = servertest.Start(t, servertest.Options{DataDir: server.DataDir()})
//
// The binary is built once for all test processes of a machine, with the race
// detector when the tests have it. Nothing of the developer's environment
// reaches the server but PATH, HOME and TMPDIR. A server ends with its test, and
// with its test process if that is killed.
package servertest
