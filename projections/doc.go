// Package projections drives folds of the log.
//
// # What it promises
//
//   - A projection is applied in order, one position after the other: a gap stops it
//     with an error, and nothing is ever skipped.
//   - Every event counts exactly once. The checkpoint moves by compare-and-set in the same statement
//     as the effect, so that of two who apply the same events one wins and the
//     other one's statement does nothing.
//   - Any process can drive any projection at any moment, and none waits for another one
//     that is paused: see [Move].
//   - A checkpoint names the ledger and the epoch that it belongs to. Where they are not
//     the log's, the projection stops and says that a rebuild is needed.
//   - [Rebuild] folds the whole log again beside what stands there, says whether
//     the two are equal, and swaps the new state in while servers run.
//
// # The shape
//
//	projection.go   what a projection and a log are, and what stops one for good
//	follower.go     Run follows the log, CatchUp drives it in the caller's goroutine
//	checkpoint.go   the compare-and-set
//	rebuild.go      the fold beside the live one; compare.go and swap.go are its last steps
//	state.go        the state of a fold as a number, at every thousandth position
//	tables.go       tables made like others, and put in their place
//	lag.go          how far behind, for Prometheus
//
// The projections themselves are in packages of their own.
package projections
