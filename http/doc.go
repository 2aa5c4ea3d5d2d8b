// Package http is the service's border towards REST clients: a Fiber server
// that speaks three dialects over one ledger.
//
// # What it promises
//
//   - Bullseye's clients (/api/v1/organization/{id}/api-keys) and BunShip's
//     (/api/v1/organizations/{id}/api-keys) find the paths, headers, bodies and
//     statuses that they know; what neither has is our own, with errors as RFC 9457
//     problem details.
//   - Everything is copied out of Fiber's buffers in request.go, once, before it
//     reaches a command, the index or a log. No other file reads a request.
//   - Input is read strictly: what is ambiguous (duplicate names, invalid UTF-8, two
//     credentials) is refused and not guessed. A refusal names the field and never
//     repeats what was sent.
//   - A good credential is never answered with 401 because something of ours is
//     out of reach: that is 503 with Retry-After.
//   - A write's answer is sent when this node's index knows of the write: a key that
//     was created verifies, and one that was revoked does not.
//   - A handler that panics costs its own request, and nothing else.
//   - No log line, metric or error holds a credential.
//   - A key that is known is never delayed or refused because of where it comes from.
//     One that is not costs no query and no memory, and is refused like text that
//     cannot be a key; whoever presents many of them is slowed on those answers alone.
//   - What a gateway's client writes into its own path, query or headers never loosens
//     what the gateway asks for.
//
// # Choices
//
//   - A method that a path does not have is an unknown route: 404 in the dialect of
//     the path, with Allow. The seeds' error tables know no 405.
//   - The idempotency key of a write counts within (organization, actor, operation);
//     the fingerprint that tells a repetition from another request covers the
//     operation, its path with every id in one spelling, and the bytes of the body.
//   - An organization that does not exist and one that is not the caller's get the
//     same answer.
//
// # The shape
//
//	server.go     what the package needs and offers; lifecycle and routes
//	request.go    the edge: one request, copied; one answer
//	decode.go     strict JSON in; encode.go: JSON out, by appending
//	auth.go       who asks, and may they; jwt.go, jwks.go: tokens
//	keys.go       create, revoke, list, get: what the dialects share; cursor.go: pages
//	dialect.go    where the dialects differ, and the create request that they share
//	bullseye.go   one dialect each: bodies out, errors out
//	bunship.go
//	nativekeys.go
//	native.go     problem details, minimum positions; usage.go: counts of uses
//	verify.go     the verdict on a key; batch.go, forwardauth.go, message.go: other
//	              doors to it; throttle.go: sources of unknown keys
//	events.go     the feeds of events; stream.go: answers that go on; webhooks.go
//	health.go     probes, version, metrics
//	observe.go    request ids, access log, metrics; trace.go: spans; address.go: proxies
//	connections.go  deadlines, and connections that can be drained
package http
