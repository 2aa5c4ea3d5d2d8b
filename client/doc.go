// Package client is what services import that use Keyledger: the REST API
// ([Client]), a durable subscription to its events ([Subscribe]), and a verifier
// that answers in memory, without a network hop. The packages httpauth and
// fiberauth below it put either kind of verification in front of handlers.
//
// # What it promises
//
//   - It imports nothing of the server: no Postgres, no Fiber. What it shares with it
//     are the pure packages domain and index, so that both judge keys by the same code.
//   - Whoever asks about a key gets a verdict, or an error that says nothing about the
//     key. Something of ours that is out of reach is [ErrUnavailable], never a refusal:
//     do not throw a key away because of it, and do not let it pass either.
//   - A write is named once ([Client] draws an idempotency key) and that name is used
//     again by every retry, so that it happens once however often it is sent. Only what
//     may be repeated is repeated.
//   - Every error of the service is an [Error], of one of the kinds that the sentinels
//     name: errors.Is(err, client.ErrNotFound).
//   - No error, log line or printed value holds a key. [Secret] and [Question] redact themselves.
//   - Nothing that a peer sends can grow without bound.
//   - Everything is safe for concurrent use, and ends when its context does.
package client
