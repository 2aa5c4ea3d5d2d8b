// Package index answers whether a key may be used: all keys of a ledger in memory. The
// server's nodes and the verifiers that others embed answer from the same code.
//
// # What it promises
//
//   - A verdict is the domain's: what [domain.Key.Judge] says of the key as the log
//     tells it, then the quota and the limit. The verdict's position is never ahead of what was known.
//   - The index is complete, so a miss is an answer. Before it has everything up to
//     where the log ended when it was loaded, it answers nothing
//     ([domain.CodeUnavailable]), and again when what it holds turns out to belong to
//     another history.
//   - An index that is leased says yes only while a lease counts: for as long as [Options].Lease
//     after the moment before somebody asked the primary where the log ends, once it
//     has applied everything up to there. So what was revoked is accepted no longer than that, though no
//     message arrives. MaxStale is the explicit choice to go on, and marks each such
//     verdict.
//   - [Index.Verify] allocates nothing, asks nobody, and writes to no memory that keys
//     share. It takes no lock, but for one of many for a few instructions where
//     a use is refused, is a key's first one after a minute, or is of a key with a quota.
//   - In one index a key with a limit of L a minute is accepted at most L times in any
//     60 seconds: limit.go says how, and what that costs. Indexes that were told of each other
//     ([Index.Share]) keep limits together: share.go. A verification of a key that is used
//     faster than the others hear of it then waits for them, 50 ms at most.
//   - In one index a key with a quota is never accepted more often in a period than that, what it was told
//     of other indexes' uses included: quota.go. Keys without one pay nothing for that.
//   - Every use of a known key is counted, whatever the outcome, until a [Collector] takes
//     the count out. Counts are exact; the first and last moment may be those
//     of a use that is collected the next time.
//   - Of keys that have the same digest, which only imports can bring, the oldest is
//     found and the others never are.
//   - A key with a name of 16 characters takes less than 100 bytes, and a cache line
//     more for as long as it is in use. The memory holds no pointers, so that the garbage
//     collector's work does not grow with the number of keys. Growing moves nothing
//     but one of 512 parts of a table at a time, and no reader waits for it.
//
// # The shape
//
//	index.go      Verify, from top to bottom; who is ready, and who waits
//	entry.go      a key in one cache line; how it is read while it changes
//	table.go      digest -> entry, and the other tables
//	slab.go       memory that grows by segments and never moves
//	profile.go    what keys have in common; scopes.go their scopes
//	lease.go      until when verdicts may be given
//	limit.go      the limit in two words; share.go limits of several nodes
//	quota.go      the quotas of those that have one
//	tally.go      what is remembered of a key in use; use.go counts, refusal.go the refused
//	collect.go    how counts leave the index
//	contents.go   how keys come, change and go
//	load.go       the snapshot; apply.go the fold of the log
//	walk.go       all keys, for a snapshot of somebody else's
package index
