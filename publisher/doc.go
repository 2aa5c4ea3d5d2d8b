// Package publisher hands the log on to NATS: it relays events from each lane to
// a JetStream stream, and it tells other nodes when a lane has grown.
//
// # What it promises
//
//   - A stream's sequence is the log's position. Every message is the event of the same number,
//     byte for byte, in order, once: however many relays run, however long any of
//     them was paused, and however often NATS or the service was killed.
//   - There is no leader, no cursor and no outbox. Any relay on any node brings a
//     stream that lags, was truncated, was wiped or never existed to the log's head.
//   - A stream that contradicts the log is never repaired in silence. Its relay
//     stops with an alarm until [Relay.Rebuild].
//   - Nothing personal is published in a stream: what is sealed in the log stays there.
//
// The stream is a fan-out that can be rebuilt, never the truth. JetStream
// acknowledges before it syncs to disk, so messages may be lost at its end; the
// log has them, and the relay publishes them again under the same numbers.
//
// # The shape
//
//	relay.go    the relay: one function from the look at the stream to the acknowledgement
//	stream.go   what a stream looks like, how it is made, compared and rebuilt
//	message.go  an event as a message: CloudEvents 1.0 in headers, data as stored
//	names.go    streams, subjects, headers
//	status.go   what a relay says about itself: status and metrics
//	wake.go     core NATS messages that say how far a lane has come, and carry the log's letters
package publisher
