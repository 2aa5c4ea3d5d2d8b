package verification

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// copyReader reads what COPY ... TO STDOUT (FORMAT binary) writes, in whatever
// pieces it comes, and hands every row on. It holds at most one row.
//
// The format: an 11-byte signature, 4 bytes of flags, an extension with its length; then
// tuples: a 16-bit count of fields, and each field with a 32-bit length before it
// (-1: null); a count of -1 ends it. All numbers are big-endian.
type copyReader struct {
	fields int
	row    func(fields [][]byte) error // fields are valid until it returns; nil is null

	held   []byte // an incomplete piece
	values [][]byte
	begun  bool
	ended  bool
}

// mostRowBytes is far beyond any row of ours. It bounds what is held of a stream
// that lies about its lengths.
const mostRowBytes = 1 << 20

var errCopy = errors.New("the binary COPY stream is malformed")

var copySignature = [11]byte{'P', 'G', 'C', 'O', 'P', 'Y', '\n', 0xff, '\r', '\n', 0}

// Write takes the next piece.
func (r *copyReader) Write(piece []byte) (int, error) {
	rest := piece
	if len(r.held) > 0 {
		r.held = append(r.held, piece...)
		rest = r.held
	}
	for len(rest) > 0 {
		n, err := r.take(rest)
		if err != nil {
			return 0, err
		}
		if n == 0 {
			break
		}
		rest = rest[n:]
	}
	if len(rest) > mostRowBytes {
		return 0, fmt.Errorf("%w: a row of more than %d bytes", errCopy, mostRowBytes)
	}
	r.held = append(r.held[:0], rest...)
	return len(piece), nil
}

// take reads one header, row or trailer, and says how long it was: 0 when it is
// not complete yet.
func (r *copyReader) take(b []byte) (int, error) {
	if r.ended {
		return 0, fmt.Errorf("%w: bytes after its end", errCopy)
	}
	if !r.begun {
		return r.header(b)
	}
	if len(b) < 2 {
		return 0, nil
	}
	count := int16(binary.BigEndian.Uint16(b))
	if count == -1 {
		r.ended = true
		return 2, nil
	}
	if int(count) != r.fields {
		return 0, fmt.Errorf("%w: a row of %d fields where %d were asked for", errCopy, count, r.fields)
	}
	at := 2
	r.values = r.values[:0]
	for range r.fields {
		if len(b)-at < 4 {
			return 0, nil
		}
		length := int32(binary.BigEndian.Uint32(b[at:]))
		at += 4
		switch {
		case length == -1:
			r.values = append(r.values, nil)
			continue
		case length < 0 || length > mostRowBytes:
			return 0, fmt.Errorf("%w: a field of %d bytes", errCopy, length)
		case len(b)-at < int(length):
			return 0, nil
		}
		r.values = append(r.values, b[at:at+int(length):at+int(length)])
		at += int(length)
	}
	return at, r.row(r.values)
}

func (r *copyReader) header(b []byte) (int, error) {
	const fixed = len(copySignature) + 8
	if len(b) < fixed {
		return 0, nil
	}
	if [11]byte(b) != copySignature {
		return 0, fmt.Errorf("%w: another signature", errCopy)
	}
	if flags := binary.BigEndian.Uint32(b[11:]); flags&0xffff0000 != 0 {
		return 0, fmt.Errorf("%w: unknown flags", errCopy)
	}
	extension := binary.BigEndian.Uint32(b[15:])
	if extension > mostRowBytes {
		return 0, fmt.Errorf("%w: an extension of %d bytes", errCopy, extension)
	}
	if len(b) < fixed+int(extension) {
		return 0, nil
	}
	r.begun = true
	return fixed + int(extension), nil
}

// end says whether the stream was complete.
func (r *copyReader) end() error {
	if !r.ended || len(r.held) > 0 {
		return fmt.Errorf("%w: it broke off", errCopy)
	}
	return nil
}

// The values of a field, each of which says whether it is one.

func copyInt64(b []byte) (int64, bool) {
	if len(b) != 8 {
		return 0, false
	}
	return int64(binary.BigEndian.Uint64(b)), true
}

func copyInt32(b []byte) (int32, bool) {
	if len(b) != 4 {
		return 0, false
	}
	return int32(binary.BigEndian.Uint32(b)), true
}

func copyBool(b []byte) (value, ok bool) {
	if len(b) != 1 || b[0] > 1 {
		return false, false
	}
	return b[0] == 1, true
}

// postgresEpoch is 2000-01-01 in Unix microseconds.
const postgresEpoch = 946_684_800_000_000

// copyTime reads a timestamptz. Null is the zero time, and so is infinity: it
// never comes.
func copyTime(b []byte) (time.Time, bool) {
	if b == nil {
		return time.Time{}, true
	}
	micros, ok := copyInt64(b)
	switch {
	case !ok:
		return time.Time{}, false
	case micros == 1<<63-1:
		return time.Time{}, true
	case micros > 1<<62 || micros < -1<<62:
		return time.Time{}, false
	}
	return time.UnixMicro(micros + postgresEpoch).UTC(), true
}

// copyTexts reads a text[] without nulls, and hands its elements on.
func copyTexts(b []byte, element func([]byte)) bool {
	if len(b) < 12 {
		return false
	}
	switch binary.BigEndian.Uint32(b) { // dimensions
	case 0:
		return len(b) == 12
	case 1:
	default:
		return false
	}
	if len(b) < 20 {
		return false
	}
	count := binary.BigEndian.Uint32(b[12:])
	b = b[20:]
	for range count {
		if len(b) < 4 {
			return false
		}
		length := binary.BigEndian.Uint32(b)
		if b = b[4:]; uint64(length) > uint64(len(b)) {
			return false
		}
		element(b[:length])
		b = b[length:]
	}
	return len(b) == 0
}
