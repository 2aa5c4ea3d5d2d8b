// Command bench measures Keyledger against what it stands on, in one run on one
// machine, and prints ratios: absolute figures of a shared machine mean little,
// and a ratio of two things that took turns means the same everywhere.
//
//	go run ./bench               everything, some minutes
//	go run ./bench -only append  one section
//	go run ./bench -full         with ten million keys as well
//	go run ./bench -plots docs/plots
//
// Everything that is compared takes turns, A B C A B C ..., on a Postgres and a
// NATS of its own with the settings that keyledger serve uses; the median of the
// rounds' ratios is what counts. How each number is made, and what it means, stands
// in docs/performance.md.
//
// Baselines and the index that is measured without HTTP run in processes of their
// own: this program starts itself again with -child.
package main
