package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/maphash"

	"github.com/oklog/ulid/v2"
	"golang.org/x/mod/sumdb/tlog"

	"keyledger/domain"
)

// row is one event as a source has it. Its slices belong to the source's piece.
type row struct {
	position     uint64
	epoch        uint32
	id           [16]byte
	stream       []byte
	version      uint64
	organization []byte
	kind         []byte // its type
	schema       uint16
	at           int64 // Unix microseconds
	data         []byte
	metadata     []byte
	sealed       []byte // nil: none

	stated    tlog.Hash // the leaf's hash that stands beside the event in a file
	hasStated bool
	left      bool   // the file has only the leaf's hash of it
	damage    string // why the rest could not be read; empty when it was
}

// checked is what is left of a row for those checks that need the order.
type checked struct {
	position uint64
	epoch    uint32
	version  uint64
	at       int64
	leaf     tlog.Hash
	stated   tlog.Hash
	stream   string       // empty for a key's
	key      domain.KeyID // of the stream
	actor    domain.KeyID // zero: no key acted
	// organization is a hash of its id, since only a few are ever compared.
	organization uint64
	change       change

	sealed    bool
	hasStated bool
	left      bool
	fault     string // what the row says against itself
	late      string // what it says against a revocation
	fence     *domain.RevocationFenced
}

// change is what an event does to its key, or to its organization.
type change uint8

const (
	changesNothing change = iota
	creates
	revokes
	fences
	erases
	changesUnknown
)

// organizationSeed is for this process alone.
var organizationSeed = maphash.MakeSeed()

var (
	keyStream          = []byte("key/")
	organizationStream = []byte("organization/")
	usageStream        = []byte("usage/")
)

// check hashes a row and holds its columns against each other. buffer is for the
// envelope and is given back.
func (r *row) check(lane domain.Lane, ledger domain.ID, buffer []byte) (checked, []byte) {
	c := checked{position: r.position, epoch: r.epoch, version: r.version, at: r.at, stated: r.stated, hasStated: r.hasStated, left: r.left, fault: r.damage}
	if r.left || r.damage != "" {
		c.leaf = r.stated
		return c, buffer
	}
	buffer = r.envelope(append(buffer[:0], 0), lane, ledger) // RFC 6962: 0 before a leaf
	c.leaf = sha256.Sum256(buffer)
	c.organization, c.sealed = maphash.Bytes(organizationSeed, r.organization), r.sealed != nil
	if c.fault = r.columns(lane, &c); c.fault == "" && c.change == fences {
		c.fence = r.fenced()
	}
	return c, buffer
}

// envelope appends the canonical bytes, as they are documented with
// eventstore.Recorded.Envelope. It is written a second time on purpose: the auditor does
// not ask the one who is audited.
func (r *row) envelope(b []byte, lane domain.Lane, ledger domain.ID) []byte {
	text := func(b []byte, text []byte) []byte {
		return append(binary.BigEndian.AppendUint32(b, uint32(len(text))), text...)
	}
	b = append(b, "KLE1"...)
	b = append(b, ledger[:]...)
	b = binary.BigEndian.AppendUint32(b, r.epoch)
	b = binary.BigEndian.AppendUint32(b, uint32(len(lane)))
	b = append(b, lane...)
	b = binary.BigEndian.AppendUint64(b, r.position)
	b = append(b, r.id[:]...)
	b = text(b, r.stream)
	b = binary.BigEndian.AppendUint64(b, r.version)
	b = text(b, r.organization)
	b = text(b, r.kind)
	b = binary.BigEndian.AppendUint16(b, r.schema)
	b = binary.BigEndian.AppendUint64(b, uint64(r.at))
	b = text(b, r.data)
	b = text(b, r.metadata)
	if r.sealed == nil {
		return append(b, 0)
	}
	return text(append(b, 1), r.sealed)
}

// columns says what is wrong between the columns; empty when nothing is. The data
// is canonical JSON, so its beginning can be compared byte by byte, which costs
// a fraction of decoding it.
func (r *row) columns(lane domain.Lane, c *checked) string {
	c.change = changesUnknown
	switch string(r.kind) {
	case "KeyCreated":
		c.change = creates
	case "KeyRevoked":
		c.change = revokes
	case "RevocationFenced":
		c.change = fences
	case "MemberAdded", "MemberRemoved", "KeyUsed":
		c.change = changesNothing
	case "OrganizationErased":
		c.change = erases
	}
	var own []byte // how the data must begin
	var expected [160]byte
	switch {
	case bytes.HasPrefix(r.stream, keyStream):
		if !parseUUID(r.stream[len(keyStream):], (*[16]byte)(&c.key)) {
			return fmt.Sprintf("its stream is %q", r.stream)
		}
		if lane != domain.Lifecycle || c.change == changesNothing || c.change == erases {
			return fmt.Sprintf("a %s does not belong to the stream %s in the lane %s", r.kind, r.stream, lane)
		}
		own = append(expected[:0], `{"keyId":"key_`...)
		own = append(own, make([]byte, ulid.EncodedSize)...)
		_ = ulid.ULID(c.key).MarshalTextTo(own[len(own)-ulid.EncodedSize:]) // the size fits
		own = append(own, `","organizationId":"`...)
	case bytes.HasPrefix(r.stream, organizationStream):
		c.stream = string(r.stream)
		if lane != domain.Lifecycle || c.change == creates || c.change == revokes || c.change == fences || string(r.kind) == "KeyUsed" {
			return fmt.Sprintf("a %s does not belong to the stream %s in the lane %s", r.kind, r.stream, lane)
		}
		if !bytes.Equal(r.stream[len(organizationStream):], r.organization) {
			return fmt.Sprintf("the stream is %s, and the organization %s", r.stream, r.organization)
		}
		own = append(expected[:0], `{"organizationId":"`...)
	case bytes.HasPrefix(r.stream, usageStream):
		c.stream = string(r.stream)
		if lane != domain.Usage || string(r.kind) != "KeyUsed" {
			return fmt.Sprintf("a %s does not belong to the stream %s in the lane %s", r.kind, r.stream, lane)
		}
		own = append(expected[:0], `{"organizationId":"`...)
	default:
		c.stream = string(r.stream)
		return fmt.Sprintf("its stream is %q", r.stream)
	}
	own = append(append(own, r.organization...), '"')
	if !bytes.HasPrefix(r.data, own) {
		return "its data does not belong to its stream and organization"
	}
	return r.actor(c)
}

var actorKey = []byte(`{"actor":{"kind":"key","keyId":"key_`)

// actor reads which key acted.
func (r *row) actor(c *checked) string {
	if !bytes.HasPrefix(r.metadata, []byte(`{"actor":{"kind":"`)) {
		return "its metadata does not say who acted"
	}
	if !bytes.HasPrefix(r.metadata, actorKey) {
		return ""
	}
	text := r.metadata[len(actorKey):]
	var id ulid.ULID
	if len(text) < ulid.EncodedSize || id.UnmarshalText(text[:ulid.EncodedSize]) != nil {
		return "its metadata does not say which key acted"
	}
	c.actor = domain.KeyID(id)
	return ""
}

// parseUUID reads the lower-case form, without allocating.
func parseUUID(text []byte, into *[16]byte) bool {
	if len(text) != 36 || text[8] != '-' || text[13] != '-' || text[18] != '-' || text[23] != '-' {
		return false
	}
	var digits [32]byte
	copy(digits[0:], text[0:8])
	copy(digits[8:], text[9:13])
	copy(digits[12:], text[14:18])
	copy(digits[16:], text[19:23])
	copy(digits[20:], text[24:36])
	_, err := hex.Decode(into[:], digits[:])
	return err == nil
}
