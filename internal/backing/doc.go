// Package backing finds or starts the two services that Keyledger stands on:
// Postgres, which holds the log, and NATS, which fans it out. Each is either a
// deployment's own or the embedded one; nothing above this package can tell
// which.
//
// A server brings them up with [StartDatabase] and [StartNATS]. Every other
// command uses [Find], which takes what is configured, else what a server that
// runs on the data directory uses, else starts the embedded parts for as long as
// the command takes.
package backing
