// Package transparency keeps a Merkle tree over each lane of the log and signs
// what it has come to, so that nobody can rewrite history unnoticed.
//
// # What it promises
//
//   - The tree is that of RFC 6962 with SHA-256. Leaf number position-1 is the
//     event's canonical envelope (eventstore.Recorded.Envelope), so that the tree covers every column.
//   - Leaves are read from the database before anything is signed, never from the
//     memory of the process that appended them: what is signed is what is stored.
//   - A checkpoint is signed only when a proof shows that the tree continues the one
//     that was signed before, and the one that this process remembers. Anything else
//     is a fork: it is refused, and the tree stops with an alarm.
//   - Size and root move by compare-and-set in the statement that writes tiles and
//     checkpoint. Any number of nodes may drive a tree.
//   - Nothing of this is on the path of an append.
//
// Checkpoints are signed notes as C2SP tlog-checkpoint has them, and tiles those of C2SP tlog-tiles.
// The origin names the ledger, its epoch and the lane: a restored ledger whose
// epoch was raised is another log, which shares a beginning with the one before.
//
// # The shape
//
//	tree.go        drives the tree of one lane and signs
//	tiles.go       the arithmetic of tiles: growing them, reading hashes out of them
//	checkpoint.go  signed notes, origins and keys
//	reader.go      checkpoints, tiles, entries and proofs for those who ask
//	witness.go     asks witnesses to cosign; cosignature.go verifies what they sign
package transparency
