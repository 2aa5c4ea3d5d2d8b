// Package domain holds what Keyledger knows about keys and organizations:
// commands, events, the two pure functions between them, and the vocabulary
// (ids, secrets, scopes, names, errors) that every other package speaks.
//
// # What it promises
//
//   - Decide and Evolve are pure and total. They read no clock, draw no random
//     number and do no I/O: commands carry Now and the ids and digests that they
//     need, so a replay of the log decides nothing anew. What they do not know is
//     an error, never a silent skip.
//   - The set of events is sealed. Adding one breaks the build of every switch
//     over them that a linter can see, and every other one at its first test.
//   - A secret redacts itself. Whatever prints, logs, marshals or formats a
//     [Secret] writes a fixed text; only [Secret.Reveal] gives it away.
//   - Everything that comes from outside is parsed here once (ParseKeyID,
//     ParseOrganizationID, ParseScopes, ParseName, ...): a value of one of these types is valid.
//
// The package imports nothing of this project.
package domain
