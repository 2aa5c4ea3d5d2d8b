// Package natsapi answers questions about keys over NATS request/reply, for those
// who have a connection to NATS already: the service keyledger-verify, on the
// subject svc.keyledger.verify.
//
// # What it promises
//
//   - A request has the body of POST /api/v1/keys/verify, and so has its reply. The
//     two doors share the code, the index and the limits.
//   - A reply without the header Nats-Service-Error-Code is a verdict. With it, it says
//     nothing about the key: 400 and 413 for a question that cannot be read, 401 and 403
//     for an asker without the right, 503 while the node knows too little to answer. The
//     body then holds problem details (RFC 9457).
//   - Nodes share the questions (queue group "keyledger"), and only those that know the keys
//     take part. Where there is none, NATS says "no responders" at once.
//   - The subject lies outside of every stream: a stream that covered it would store
//     presented keys, and answer in our place.
//   - nats micro ls, info and stats find the service, by the micro API of nats.go.
//
// Who may ask is a matter of NATS's own permissions, and of the header X-API-Key
// where the deployment asks verifiers for a key of their own.
package natsapi
