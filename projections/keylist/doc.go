// Package keylist is the list of an organization's keys: a fold of the lifecycle
// lane into one table of Postgres.
//
// # What it promises
//
//   - A row is exactly what domain.EvolveKey makes of the key's stream: the fold
//     calls it, and has no rules of its own.
//   - A list is never older than the log's head when the request arrived. Where the
//     projection is behind, the reader drives it there.
//   - Newest first by (created_at, id), a total order: pages neither repeat nor
//     miss a key that was there when the first page was read, whatever is created meanwhile.
//   - Last use and number of uses are those that the usage lane tells; they trail the
//     uses by a flush.
//
// # Reading the table as a whole
//
// A rebuild replaces the table by another one of the same name. Who reads table
// and checkpoint in a REPEATABLE READ transaction must therefore say LOCK TABLE
// keylist IN ACCESS SHARE MODE first. The snapshot is taken before the first query
// gets its locks: should that wait for a swap, it reads the new table with a
// snapshot from before it, and rows that the checkpoint stands for are not there.
package keylist
