// Package testkit gives tests real infrastructure: Postgres and NATS, quickly,
// and gone when the tests are.
//
// A test process that needs a database starts one Postgres, migrates one
// database of it, and clones that for every test, so that tests run in parallel
// and see no locks, rows or notifications of each other. A package that uses it
// says
//
//	func TestMain(m *testing.M) { testkit.Main(m) }
//
// which stops Postgres after the last test and fails when goroutines were left
// behind. What must be told its port before it listens has one from Port, which nobody
// else is given meanwhile. A test process that is killed takes its Postgres with it; what it
// leaves on disk, the next one removes.
package testkit
