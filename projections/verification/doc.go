// Package verification is the projection that keeps an [index.Index] at the end of the
// log, and the accountant of the uses that the index has counted.
//
// # What it promises
//
//   - [Projection.Run] loads the list of keys in one consistent snapshot and follows
//     the lifecycle lane from there. When Postgres is out of reach, the index goes on with what it
//     knows; when the log turns out to be another history, the index stops answering
//     and is loaded anew.
//   - Every use of a known key is recorded exactly once unless the process is killed:
//     then what was not recorded is missing, which is at most one window and the flush under way.
//     [Accountant.VerifyDurable] answers only when the use is recorded.
//   - What was spent of quotas, before this run and elsewhere, [Quotas] tells the index from the
//     log: each use once, and those of this run not again. A key with a quota is answered for once that is known.
//
// # The shape
//
//	follow.go     loading and following; load.go and copy.go the snapshot
//	accountant.go counts to KeyUsed events
//	quotas.go     KeyUsed events to what is spent of quotas
//	metrics.go    what is published of the index, accountmetrics.go of the uses
package verification
