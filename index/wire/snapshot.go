package wire

import (
	"encoding/binary"
	"fmt"
	"time"

	"keyledger/domain"
)

// Header begins a snapshot, and changes.
type Header struct {
	Ledger   domain.ID
	Epoch    uint32
	Position domain.Position // what follows is applied to everything up to here
	Keys     uint64          // about so many are in the snapshot; 0 for changes
}

// AppendHeader appends it.
func AppendHeader(dst []byte, h Header) []byte {
	return AppendFrame(dst, KindHeader, func(b []byte) []byte {
		b = append(b, Version)
		b = append(b, h.Ledger[:]...)
		b = binary.AppendUvarint(b, uint64(h.Epoch))
		b = binary.AppendUvarint(b, uint64(h.Position))
		return binary.AppendUvarint(b, h.Keys)
	})
}

// ReadHeader reads it, and refuses another version.
func ReadHeader(payload []byte) (h Header, err error) {
	c := cursor{rest: payload}
	if version := c.byte(); version != Version {
		return h, fmt.Errorf("%w: version %d, and this is for version %d", ErrMalformed, version, Version)
	}
	copy(h.Ledger[:], c.bytes(len(h.Ledger)))
	epoch := c.uint()
	h.Epoch, h.Position, h.Keys = uint32(epoch), domain.Position(c.uint()), c.uint()
	if epoch >= 1<<32 {
		c.bad = true
	}
	return h, c.end("a header")
}

// AppendOrganization appends the id that has the next number.
func AppendOrganization(dst []byte, id string) []byte {
	return AppendFrame(dst, KindOrganization, func(b []byte) []byte { return append(b, id...) })
}

// AppendScopes appends the set that has the next number.
func AppendScopes(dst []byte, scopes domain.Scopes) []byte {
	return AppendFrame(dst, KindScopes, func(b []byte) []byte { return appendScopes(b, scopes) })
}

// ReadScopes reads a set. Its texts are views of the payload.
func ReadScopes(payload []byte) (domain.Scopes, error) {
	c := cursor{rest: payload}
	scopes := c.scopes()
	return scopes, c.end("a set of scopes")
}

// Key is a key in a snapshot. Organization and Scopes are the numbers of frames before it.
type Key struct {
	Digest       domain.Digest
	ID           domain.KeyID
	Revoked      bool
	Disabled     bool
	Organization uint64
	Scopes       uint64
	Limit        uint32
	Quota        domain.Quota // given for the keys of a frame of KindQuotaKeys
	Version      uint64
	ExpiresAt    time.Time
	Name         string // when read, a view of the payload
}

const (
	flagRevoked  = 1
	flagDisabled = 2
)

// AppendKey appends a key to the payload of a frame of keys: of KindQuotaKeys when it has a
// quota, of KindKeys otherwise.
func AppendKey(b []byte, k *Key) []byte {
	b = append(b, k.Digest[:]...)
	b = append(b, k.ID[:]...)
	var flags byte
	if k.Revoked {
		flags |= flagRevoked
	}
	if k.Disabled {
		flags |= flagDisabled
	}
	b = append(b, flags)
	b = binary.AppendUvarint(b, k.Organization)
	b = binary.AppendUvarint(b, k.Scopes)
	b = binary.AppendUvarint(b, uint64(k.Limit))
	b = binary.AppendUvarint(b, k.Version)
	b = appendMoment(b, k.ExpiresAt)
	b = appendText(b, k.Name)
	if k.Quota.Given() {
		b = appendQuota(b, k.Quota)
	}
	return b
}

// ReadKeys hands on the keys of a frame, of either kind.
func ReadKeys(kind Kind, payload []byte, each func(*Key) error) error {
	c := cursor{rest: payload}
	var k Key
	for len(c.rest) > 0 {
		copy(k.Digest[:], c.bytes(len(k.Digest)))
		copy(k.ID[:], c.bytes(len(k.ID)))
		flags := c.byte()
		k.Revoked, k.Disabled = flags&flagRevoked != 0, flags&flagDisabled != 0
		k.Organization, k.Scopes = c.uint(), c.uint()
		limit := c.uint()
		k.Limit, k.Version, k.ExpiresAt, k.Name = uint32(limit), c.uint(), c.moment(), c.text()
		if kind == KindQuotaKeys {
			k.Quota = c.quota()
		}
		if c.bad || limit >= 1<<32 || k.Version == 0 {
			return fmt.Errorf("%w: a key", ErrMalformed)
		}
		if err := each(&k); err != nil {
			return err
		}
	}
	return nil
}

// AppendCursor appends how far the snapshot is complete.
func AppendCursor(dst []byte, text string) []byte {
	return AppendFrame(dst, KindCursor, func(b []byte) []byte { return append(b, text...) })
}

// AppendEnd ends a snapshot: some of its keys show what happened up to here.
func AppendEnd(dst []byte, position domain.Position) []byte {
	return appendPosition(dst, KindEnd, position)
}

func appendPosition(dst []byte, kind Kind, position domain.Position) []byte {
	return AppendFrame(dst, kind, func(b []byte) []byte { return binary.AppendUvarint(b, uint64(position)) })
}

// ReadPosition reads the payload of KindEnd, KindPosition and KindAsked.
func ReadPosition(payload []byte) (domain.Position, error) {
	c := cursor{rest: payload}
	position := c.uint()
	return domain.Position(position), c.end("a position")
}
