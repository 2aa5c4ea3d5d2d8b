// Package usage counts the uses of keys: a fold of the usage lane into two tables of
// Postgres, one row per key, and one per key, hour and outcome.
//
// # What it promises
//
//   - Every KeyUsed event counts exactly once, whoever applies it and however often
//     it is tried.
//   - A window of uses that spans two hours counts in the hour of its last use.
//   - The time of last use is that of the last accepted one; refused uses have a time
//     of their own.
package usage
