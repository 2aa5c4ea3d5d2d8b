// Package fence makes a revocation hold everywhere before it is answered.
//
// # What it promises
//
//   - When [Fence.Hold] has returned without an error, no verifier accepts a key that
//     was revoked at the position or before, in any verification that starts from then on.
//     It does not matter which of them are paused, cut off or dead, nor whether NATS is there.
//   - It waits at most 1.01 L + 50 ms from the commit, where L is the longest lease of
//     those that do not confirm; about a round trip when all do.
//   - A verifier that cannot renew its lease stops saying yes when L has passed since it
//     last asked. [Fence.Run] renews this node's four times within L.
//
// # Why it holds
//
// A verifier joins by committing a row in the table verifiers on the primary, and renews by one
// statement there that also reads where the log ends. The lease counts from the verifier's own
// clock before it asked, and only when that end is applied (Gray and Cheriton, Leases, 1989).
// So a lease that does not know of a revocation was asked for before the revocation's
// commit returned, and ends by then + L.
//
// A revocation reads the table after its commit has returned. Whoever is not in it
// joins later, reads the log's end later still, and knows. Whoever is in it confirms, which
// is for good, since an index never goes back; or is waited for.
//
// So nothing depends on a message that arrives: asks and confirmations only make it
// fast. A row is reaped when it has not been renewed for twice its lease, by the
// reaper's monotonic clock and the number of its last renewal.
//
// # The shape
//
//	fence.go      Hold, from top to bottom; how asks and confirmations meet
//	lease.go      this node's own lease: join, renew, leave
//	registry.go   the table, in SQL
//	reaper.go     rows of those who are gone
//	desk.go       what embedded verifiers and observers ask of this node
//	record.go     how each fence ended, in the log
package fence
