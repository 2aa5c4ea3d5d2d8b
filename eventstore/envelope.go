package eventstore

import (
	"encoding/binary"
	"errors"
	"time"

	"keyledger/domain"
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

// ParseEnvelope reads canonical bytes back. What does not write the very same
// bytes again is refused.
func ParseEnvelope(envelope []byte) (Recorded, error) {
	d := envelopeReader{rest: envelope}
	var r Recorded
	if string(d.take(4)) != "KLE1" {
		return r, errors.New("the envelope does not begin with KLE1")
	}
	copy(r.Ledger[:], d.take(16))
	r.Epoch = uint32(d.number(4))
	r.Lane = domain.Lane(d.text())
	r.Position = domain.Position(d.number(8))
	copy(r.ID[:], d.take(16))
	r.Stream = Stream(d.text())
	r.Version = d.number(8)
	r.Organization = domain.OrganizationID(d.text())
	r.Type = string(d.text())
	r.Schema = uint16(d.number(2))
	r.RecordedAt = time.UnixMicro(int64(d.number(8))).UTC()
	r.Data = d.text()
	r.Metadata = d.text()
	if d.number(1) == 1 {
		if r.Sealed = d.text(); r.Sealed == nil {
			r.Sealed = []byte{}
		}
	}
	if d.short || len(d.rest) > 0 || string(r.Envelope()) != string(envelope) {
		return Recorded{}, errors.New("the envelope is malformed")
	}
	return r, nil
}

type envelopeReader struct {
	rest  []byte
	short bool
}

func (d *envelopeReader) take(n uint64) []byte {
	if n > uint64(len(d.rest)) {
		d.short, d.rest = true, nil
		return nil
	}
	taken := d.rest[:n:n]
	d.rest = d.rest[n:]
	return taken
}

func (d *envelopeReader) number(bytes uint64) uint64 {
	var b [8]byte
	copy(b[8-bytes:], d.take(bytes))
	return binary.BigEndian.Uint64(b[:])
}

func (d *envelopeReader) text() []byte { return d.take(d.number(4)) }

// microseconds is the precision of every time in the log.
func microseconds(t time.Time) time.Time {
	if t.IsZero() {
		return t
	}
	return t.UTC().Truncate(time.Microsecond)
}
