package wire

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"
	"unsafe"

	"keyledger/domain"
)

// Version is said by every header. Readers refuse another one.
const Version = 1

// MostFrame bounds a frame's payload.
const MostFrame = 1 << 20

// MediaType is the content type of snapshots, changes and reports.
const MediaType = "application/vnd.keyledger.frames"

// Kind says what a frame is.
type Kind uint8

// The kinds. The numbers are part of the format.
const (
	KindHeader       Kind = 1 // of a snapshot or of changes
	KindOrganization Kind = 2 // an id, numbered from 0 in their order
	KindScopes       Kind = 3 // a set, numbered likewise
	KindKeys         Kind = 4 // some keys
	KindCursor       Kind = 5 // everything before it is complete: go on from here
	KindEnd          Kind = 6 // the snapshot is complete

	KindCreated  Kind = 16 // a key was created
	KindRevoked  Kind = 17 // a key was revoked
	KindTouched  Kind = 18 // something about a key that no verdict depends on
	KindPosition Kind = 19 // something else, or nothing up to here
	KindAsked    Kind = 20 // confirm this position
	KindAlive    Kind = 21 // nothing has happened
	KindErased   Kind = 22 // the names of an organization's keys are to be forgotten

	KindReport Kind = 32 // of uses
	KindUses   Kind = 33

	// Readers that know nothing of quotas must not pass these over: they would say yes to keys
	// whose quota is used up.
	KindQuotaKeys    Kind = 128 // some keys with a quota
	KindQuotaCreated Kind = 129 // a key with a quota was created

	mostIgnored Kind = 127
)

// Ignorable says whether a reader that does not know a kind passes it over.
func (k Kind) Ignorable() bool { return k <= mostIgnored }

// ErrMalformed is what every refusal of a frame is.
var ErrMalformed = errors.New("the frame is malformed")

// AppendFrame appends a frame. body appends the payload.
func AppendFrame(dst []byte, kind Kind, body func([]byte) []byte) []byte {
	const room = 4 // a varint of four bytes holds every length up to MostFrame
	at := len(dst)
	dst = append(dst, byte(kind), 0, 0, 0, 0)
	start := len(dst)
	dst = body(dst)
	length := len(dst) - start
	// Padded to the room that was left: varints may have leading zeros at their end.
	for i := range room - 1 {
		dst[at+1+i] = byte(length>>(7*i))&0x7f | 0x80
	}
	dst[at+room] = byte(length >> (7 * (room - 1)))
	return dst
}

// Reader reads frames.
type Reader struct {
	r       *bufio.Reader
	payload []byte
}

// NewReader reads frames from r.
func NewReader(r io.Reader) *Reader { return &Reader{r: bufio.NewReaderSize(r, 64<<10)} }

// Buffered says whether more has come than was read.
func (r *Reader) Buffered() bool { return r.r.Buffered() > 0 }

// Next gives the next frame, whose payload is valid until the next call. io.EOF stands between
// two frames; within one it is io.ErrUnexpectedEOF.
func (r *Reader) Next() (Kind, []byte, error) {
	kind, err := r.r.ReadByte()
	if err != nil {
		return 0, nil, err
	}
	length, err := binary.ReadUvarint(r.r)
	if err != nil {
		return 0, nil, unexpected(err)
	}
	if length > MostFrame {
		return 0, nil, fmt.Errorf("%w: a length of %d bytes", ErrMalformed, length)
	}
	// Grown with what comes, not with what is claimed.
	r.payload = r.payload[:0]
	for len(r.payload) < int(length) {
		n := min(int(length)-len(r.payload), 64<<10)
		at := len(r.payload)
		r.payload = append(r.payload, make([]byte, n)...)
		if _, err := io.ReadFull(r.r, r.payload[at:]); err != nil {
			return 0, nil, unexpected(err)
		}
	}
	return Kind(kind), r.payload, nil
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// cursor reads a payload. After a mistake it gives zeros, and bad is set.
type cursor struct {
	rest []byte
	bad  bool
}

func (c *cursor) bytes(n int) []byte {
	if n < 0 || n > len(c.rest) {
		c.rest, c.bad = nil, true
		return nil
	}
	b := c.rest[:n:n]
	c.rest = c.rest[n:]
	return b
}

func (c *cursor) byte() byte {
	if b := c.bytes(1); b != nil {
		return b[0]
	}
	return 0
}

func (c *cursor) uint() uint64 {
	v, n := binary.Uvarint(c.rest)
	if n <= 0 {
		c.rest, c.bad = nil, true
		return 0
	}
	c.rest = c.rest[n:]
	return v
}

// text is a view of the payload.
func (c *cursor) text() string {
	n := c.uint()
	if n > uint64(len(c.rest)) {
		c.rest, c.bad = nil, true
		return ""
	}
	b := c.bytes(int(n))
	return unsafe.String(unsafe.SliceData(b), len(b))
}

func (c *cursor) scopes() (scopes domain.Scopes) {
	for n := c.uint(); n > 0 && !c.bad; n-- {
		scopes = append(scopes, domain.Scope(c.text()))
	}
	return scopes
}

// quota reads a quota, of a key that has one.
func (c *cursor) quota() (q domain.Quota) {
	q.Limit = c.uint()
	if n := int(c.byte()); n < len(refills) {
		q.Refill = refills[n]
	} else {
		c.bad = true
	}
	if !q.Given() || q.Limit > domain.MostQuota {
		c.bad = true
	}
	return q
}

// moment reads microseconds since 1970, 0 for none.
func (c *cursor) moment() time.Time {
	micros := c.uint()
	if micros == 0 || micros > 1<<62 {
		return time.Time{}
	}
	return time.UnixMicro(int64(micros)).UTC()
}

func (c *cursor) end(what string) error {
	if c.bad || len(c.rest) > 0 {
		return fmt.Errorf("%w: %s", ErrMalformed, what)
	}
	return nil
}

func appendText(dst []byte, text string) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(text))), text...)
}

func appendScopes(dst []byte, scopes domain.Scopes) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(scopes)))
	for _, s := range scopes {
		dst = appendText(dst, string(s))
	}
	return dst
}

// refills are numbered.
var refills = [...]domain.Refill{domain.RefillNone, domain.RefillDay, domain.RefillMonth}

func appendQuota(dst []byte, q domain.Quota) []byte {
	return append(binary.AppendUvarint(dst, q.Limit), byte(slices.Index(refills[:], q.Refill)))
}

func appendMoment(dst []byte, t time.Time) []byte {
	if t.IsZero() {
		return append(dst, 0)
	}
	return binary.AppendUvarint(dst, uint64(max(t.UnixMicro(), 1)))
}
