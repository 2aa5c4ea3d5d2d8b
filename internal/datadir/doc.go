// Package datadir is the one folder on disk that belongs to one running server.
//
// It promises three things. One server at a time: an exclusive flock covers the
// whole folder, because neither nats-server nor a restarted Postgres notices by
// itself that somebody else works on the same files. No half files: everything
// is written beside its name, synced and renamed. No readers but its owner: the
// folder is 0700 and every file in it 0600; as root, a group can be let through
// the folder (not into its list) so that a database that runs as another user
// can reach its own part.
//
// Commands that work beside a running server use [At], which takes no lock, and
// find the server through [Dir.ReadEndpoints].
package datadir
