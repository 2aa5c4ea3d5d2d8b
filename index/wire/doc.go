// Package wire is the bytes that a server and an embedded verifier exchange: the snapshot of
// all keys, the changes after it, and reports of uses. docs/verifiers.md
// documents them to the byte.
//
// # What it promises
//
//   - A stream is a sequence of frames: one byte for the kind, the length of the
//     payload as an unsigned varint, the payload. Kinds that a reader does not know
//     it passes over, unless they are above 127.
//   - A reader holds one frame at most, of [MostFrame] bytes, and refuses what is malformed;
//     it never panics and never allocates what a length merely claims.
//   - What is written is never changed for a version; another meaning is another version.
package wire
