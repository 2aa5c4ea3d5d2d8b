// Package api holds the documents that describe the service to programs.
//
// asyncapi.yaml is AsyncAPI 3 for everything that is said over NATS: subjects,
// headers and payloads, with JSON Schemas. The tests hold it against real messages of every type.
package api

import _ "embed"

// AsyncAPI is the document as it is served.
//
//go:embed asyncapi.yaml
var AsyncAPI []byte
