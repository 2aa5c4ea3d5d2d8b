// Package webhooks sends an organization's events to where it wants to have them.
//
// # What it promises
//
//   - At least once, in the order of the log, to each endpoint for itself: an event is not
//     sent before the one before it was taken or given up. A dead endpoint holds up nobody else.
//   - The checkpoint of an endpoint is in its row and moves by compare-and-set: any node
//     delivers, a node that was killed is replaced when its claim has run out (an attempt's time
//     and a little more), and one that was paused cannot move anything any more.
//   - Every attempt is signed as Standard Webhooks asks; its id is the event's and the same
//     in every attempt. Nothing personal is sent, and no digest.
//   - What is not taken is tried again with growing pauses, until the event is a day old; then it is a dead
//     letter, to be looked at and sent again. An endpoint that has failed for three days is disabled.
//   - Nothing inside is reached: addresses are judged when the connection is made, after
//     the name was resolved. Redirects are not followed, and answers are not read.
//
// # The shape
//
//	deliver.go   one endpoint's turn: claim, send, move on; driver.go finds whose turn it is
//	send.go      one attempt; sign.go: its signature, and how secrets are stored
//	address.go   which addresses are public
//	registry.go  what an organization sets; deadletter.go: what was given up
package webhooks
