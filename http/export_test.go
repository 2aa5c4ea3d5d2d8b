package http

import (
	"time"

	"keyledger/domain"
)

// What fuzz tests look at from inside.

// Scan reads a question the fast way; false says that the slow way must read it.
func Scan(body []byte) (v domain.Verification, durable, ok bool) {
	var q question
	if !q.scan(body) {
		return domain.Verification{}, false, false
	}
	v, err := q.verification()
	return v, q.durable, err == nil
}

// Decode reads a question the slow way.
func Decode(body []byte) (v domain.Verification, durable bool, err error) {
	var q question
	if err := q.decode(body); err != nil {
		return domain.Verification{}, false, err
	}
	v, err = q.verification()
	return v, q.durable, err
}

// Cursor reads a cursor, and writes it again.
func Cursor(key []byte, organization domain.OrganizationID, text string) (domain.KeyID, string, error) {
	id, err := cursors{key}.read(organization, text)
	return id, cursors{key}.write(organization, id), err
}

// WriteCursor makes a cursor.
func WriteCursor(key []byte, organization domain.OrganizationID, id domain.KeyID) string {
	return cursors{key}.write(organization, id)
}

// ReadCreations reads the body of a create request in all dialects.
func ReadCreations(body []byte) (seed, ship, own error) {
	_, seed = readBullseyeCreation(body)
	_, ship = readBunshipCreation(body)
	_, own = readNativeCreation(body)
	return seed, ship, own
}

// AppendText is how every text goes into an answer.
func AppendText(text string) []byte { return appendText(nil, text) }

// LooksLikeToken tells tokens from keys.
func LooksLikeToken(text string) bool { return looksLikeToken(text) }

// TraceID reads a traceparent.
func TraceID(parent string) string { return traceID(parent) }

// SetTimeouts makes a server that does not serve yet impatient.
func SetTimeouts(s *Server, request, idle time.Duration) {
	s.connections.request, s.connections.idle = request, idle
}

// SetLastUse replaces how long an answer waits for a key's uses.
func SetLastUse(s *Server, within time.Duration) { s.lastUseWithin = within }

// SetStreams makes a server impatient with its streams.
func SetStreams(s *Server, heartbeat, judgeAgain, stall time.Duration) {
	s.streams.heartbeat, s.streams.judgeAgain, s.connections.stall = heartbeat, judgeAgain, stall
}
