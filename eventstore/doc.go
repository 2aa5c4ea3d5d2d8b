// Package eventstore is the append-only log in Postgres, and the only package
// that writes events.
//
// # What it promises
//
//   - Positions of a lane are 1, 2, 3, ... without a gap, and events become visible
//     in that order: whoever has read position N has seen everything before it.
//   - Acknowledged means durable. After a doubtful commit the outcome is looked up
//     by command id, never guessed.
//   - A command commits only at the stream version at which it was decided, and
//     only while the stream that authorised it still stands where it stood.
//   - Events are stored exactly as they were written and are never changed. The
//     canonical envelope ([Recorded.Envelope]) covers every column.
//   - Personal fields are sealed under a data key of the organization. It is destroyed in the
//     statement that appends OrganizationErased, and none is ever made again.
//
// # The shape
//
//	store.go     Open, the write side's loop (load, decide, append, retry on conflict)
//	appender.go  group commit: what queued up during the last commit is the next batch
//	read.go      Read, ReadStream, Follow, Head
//	tail.go      the log's end in memory, and who waits for more
//	letter.go    what was committed, on its way to the other processes
//	codec.go     events <-> bytes, the envelope
//	keyring.go   data keys, sealing
//	erase.go     what this process forgets of an erased organization
//	errors.go    SQLSTATE -> the vocabulary of package domain
package eventstore
