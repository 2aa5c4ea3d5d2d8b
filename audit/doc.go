// Package audit reads a ledger as somebody who trusts nobody: the log is held
// against its own rules, against the Merkle tree over it, and against checkpoints that were kept
// elsewhere.
//
// # What it promises
//
//   - Everything that differs from what was signed is found and named by its
//     position: a changed bit in any column, a missing, moved, added or exchanged event.
//   - Envelopes are put together here from the columns, not by the code that wrote
//     them.
//   - Nothing is written. A database is read in one snapshot.
//   - An exported file carries what is needed to verify it alone.
//   - What nothing covers is said: events behind the newest checkpoint are only
//     held against the rules.
//
// # The shape
//
//	verify.go    what is verified, and the report
//	chain.go     the check of one lane, event by event, in order
//	row.go       one event: its envelope, and what its columns say of each other
//	pipeline.go  hashing on all processors, in order again behind it
//	database.go  a database as binary COPY gives it; copy.go splits that into rows
//	file.go      the exported file: its lines; export.go writes and import.go loads it
//	archive.go   parts of the usage lane that were detached to files
//	fence.go     uses held against revocations and their fences
//	proof.go     proof bundles, and where an event with an id stands
//	trail.go     what happened in one organization, page by page
//	state.go     the keys as they stood at a position, and what differs between two
package audit
