package eventstore

import (
	"encoding/binary"
	"time"
)

// Envelope gives the canonical bytes of an event. They cover every column and
// the ledger's id, and are what hashes and proofs stand on; the format never
// changes under its magic number, and test vectors stand in testdata/envelope.
//
//	magic         4 bytes, "KLE1"
//	ledger        16 bytes
//	epoch         uint32
//	lane          text
//	position      uint64
//	id            16 bytes
//	stream        text
//	version       uint64
//	organization  text
//	type          text
//	schema        uint16
//	recorded_at   int64, microseconds since 1970 in UTC
//	data          text
//	metadata      text
//	sealed        one byte: 0 for none; or 1, then text
//
// Integers are big-endian; a text is a uint32 with its length in bytes, then the bytes. The fields'
// order and lengths make it injective: two different events never have the same
// envelope.
func (r Recorded) Envelope() []byte { return r.AppendEnvelope(nil) }

// AppendEnvelope appends what Envelope gives.
func (r Recorded) AppendEnvelope(b []byte) []byte {
	b = append(b, "KLE1"...)
	b = append(b, r.Ledger[:]...)
	b = binary.BigEndian.AppendUint32(b, r.Epoch)
	b = appendText(b, r.Lane)
	b = binary.BigEndian.AppendUint64(b, uint64(r.Position))
	b = append(b, r.ID[:]...)
	b = appendText(b, r.Stream)
	b = binary.BigEndian.AppendUint64(b, r.Version)
	b = appendText(b, r.Organization)
	b = appendText(b, r.Type)
	b = binary.BigEndian.AppendUint16(b, r.Schema)
	b = binary.BigEndian.AppendUint64(b, uint64(r.RecordedAt.UnixMicro()))
	b = appendText(b, r.Data)
	b = appendText(b, r.Metadata)
	if r.Sealed == nil {
		return append(b, 0)
	}
	return appendText(append(b, 1), r.Sealed)
}

func appendText[T ~string | ~[]byte](b []byte, text T) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(text)))
	return append(b, text...)
}

// microseconds is the precision of every time in the log.
func microseconds(t time.Time) time.Time {
	if t.IsZero() {
		return t
	}
	return t.UTC().Truncate(time.Microsecond)
}
