// Command bench measures Keyledger against what it stands on, in one run on one
// machine, and prints ratios: absolute figures of a shared machine mean little,
// and a ratio of two things that took turns means the same everywhere.
//
//	go run ./bench               everything, some minutes
//	go run ./bench -only append  one section
//
// Every pair takes turns, A B A B ..., on a Postgres and a NATS of its own with
// the settings that keyledger serve uses; the median of the pairs' ratios is what counts. How each
// number is made, and what it means, stands in docs/performance.md.
package main
