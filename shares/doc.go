// Package shares lets several nodes keep the limits of keys together: it tells the others
// what this node has accepted, and its index what they have.
//
// # What it promises
//
//   - With n nodes, a key with a limit of L a minute is accepted at most L + n * [index.Chunk](L) times
//     in any 60 seconds by all of them together, whatever messages are lost, late or doubled, and
//     whichever nodes can reach each other. index/share.go says how.
//   - A node that is alone pays nothing: its index counts for itself.
//   - A node that others cannot reach goes on: with a chunk of each key at first, and with limit / n once
//     the minute has passed that both sides remember. A node that has gone is not waited for.
//   - Nothing is stored. Who starts has accepted nothing; what another run of the same
//     server accepted in the minute before is known to the others alone.
//
// # How
//
// Who the others are says the table of verifiers, which every node joins before it answers; and
// whoever is heard of is one of them, too. In a round, a node tells all of them what it has accepted of
// the keys of which it has accepted half a chunk since they heard of it last, and each answers with what
// it has accepted of these itself. A round counts when all have answered; one that is not over in time is
// given up, and another one begins. So nothing depends on a message that arrives, and no order of messages does harm.
//
// Every quarter of a second a node says that it is there, and how long ago it heard of whom. A node is only left
// alone with its part when nobody who can be reached has heard of it for longer than limits are remembered.
package shares
