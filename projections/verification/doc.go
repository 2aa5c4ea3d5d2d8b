// Package verification is the projection that answers whether a key may be used:
// an index of all keys in memory, and the accountant of their uses.
//
// # What it promises
//
//   - A verdict is the domain's: what [domain.Key.Judge] says of the key as the log
//     tells it up to the verdict's position, then the limit. The position is never more than
//     what was known.
//   - The index is complete, so a miss is an answer. Before it has loaded everything up
//     to where the log ended, it answers nothing ([domain.CodeUnavailable]), and so it does when what it
//     holds turns out to belong to another history.
//   - [Index.Verify] takes no lock, allocates nothing, and writes to no memory that cores share,
//     but for the tally of the key itself.
//   - On one node a key with a limit of L a minute is accepted at most L times in any 60
//     seconds: see limit.go for how, and what that costs.
//   - Every use of a known key is counted, whatever the outcome, and recorded exactly once
//     unless the process is killed: then what was not flushed is missing, at most one window
//     and the flush under way. [Accountant.VerifyDurable] answers only when
//     the use is recorded. First and last of a flush may be those of a use that is counted
//     in the next one; the counts are exact.
//   - Memory: under 100 bytes a key with a name of 16 characters, and a cache line more
//     while it is in use. None of it holds pointers, so the garbage collector's
//     work does not grow with the number of keys. Growing copies nothing but one of
//     a thousand shards at a time.
//
// # The shape
//
//	index.go      Verify, from top to bottom; who is ready, and who waits
//	entry.go      a key in one cache line; how it is read while it changes
//	table.go      digest -> entry, and the other tables
//	slab.go       memory that grows by segments and never moves
//	profile.go    what keys have in common; scopes.go their scopes
//	limit.go      the limit in two words
//	tally.go      what is remembered of a key in use; use.go counts and collects, refusal.go the refused
//	contents.go   how keys come, change and go
//	apply.go      the fold of the log; load.go and copy.go the snapshot; follow.go both
//	accountant.go counts to KeyUsed events
//
// # Terms
//
// A later check of a lease belongs into [Index.Verify]'s first comparison: verdicts are given
// before a moment that one atomic word holds, today never or for ever.
package verification
