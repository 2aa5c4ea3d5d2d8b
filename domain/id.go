package domain

import (
	"encoding/hex"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"
)

// KeyIDPrefix stands before the ULID form of a key's id.
const KeyIDPrefix = "key_"

// ID is 128 bits: 48 of Unix milliseconds, then the version and variant bits of
// a UUID of version 7 (RFC 9562) and 74 random bits. The same bits are therefore
// a valid ULID and a valid UUID, and sort by time in both spellings.
type ID [16]byte

// KeyID names a key, and its stream.
type KeyID ID

// NewID makes an id for a moment, with randomness from entropy.
func NewID(now time.Time, entropy io.Reader) (ID, error) {
	u, err := ulid.New(ulid.Timestamp(now), entropy)
	if err != nil {
		return ID{}, fmt.Errorf("make an id: %w", err)
	}
	u[6] = 0x70 | u[6]&0x0f
	u[8] = 0x80 | u[8]&0x3f
	return ID(u), nil
}

// UUID gives the id as RFC 9562 writes it, in lower case.
func (id ID) UUID() string {
	var b [36]byte
	hex.Encode(b[0:8], id[0:4])
	hex.Encode(b[9:13], id[4:6])
	hex.Encode(b[14:18], id[6:8])
	hex.Encode(b[19:23], id[8:10])
	hex.Encode(b[24:36], id[10:16])
	b[8], b[13], b[18], b[23] = '-', '-', '-', '-'
	return string(b[:])
}

// ULID gives the id as 26 characters of Crockford's base 32.
func (id ID) ULID() string { return ulid.ULID(id).String() }

// UUID gives the id as Bullseye's clients know it.
func (id KeyID) UUID() string { return ID(id).UUID() }

// String gives the id as BunShip's and our own clients know it: key_ and a ULID.
func (id KeyID) String() string { return KeyIDPrefix + ID(id).ULID() }

// IsZero says whether there is no id at all.
func (id KeyID) IsZero() bool { return id == KeyID{} }

// ParseID reads a ULID or a UUID.
func ParseID(text string) (ID, error) {
	if id, ok := parseID(text); ok {
		return id, nil
	}
	return ID{}, Invalid("id", "must be a UUID or a ULID")
}

// ParseKeyID reads any spelling of a key's id: key_ and a ULID, a bare ULID, or a UUID.
func ParseKeyID(text string) (KeyID, error) {
	if id, ok := parseID(strings.TrimPrefix(text, KeyIDPrefix)); ok {
		return KeyID(id), nil
	}
	return KeyID{}, Invalid("keyId", "must be a UUID or %s followed by a ULID", KeyIDPrefix)
}

func parseID(text string) (ID, bool) {
	switch len(text) {
	case 26:
		u, err := ulid.ParseStrict(strings.ToUpper(text))
		return ID(u), err == nil
	case 36:
		if text[8] != '-' || text[13] != '-' || text[18] != '-' || text[23] != '-' {
			return ID{}, false
		}
		var id ID
		_, err := hex.Decode(id[:], []byte(strings.ReplaceAll(text, "-", "")))
		return id, err == nil && strings.Count(text, "-") == 4
	}
	return ID{}, false
}

// OrganizationID names an organization. It is also a token of a NATS subject,
// hence the narrow alphabet.
type OrganizationID string

// SystemOrganization owns the keys that span organizations. It is reserved: no
// credential of an organization ever reaches it.
const SystemOrganization OrganizationID = "system"

// ParseOrganizationID accepts 1 to 64 letters, digits, "_" and "-".
func ParseOrganizationID(text string) (OrganizationID, error) {
	if !isToken(text, 64) {
		return "", Invalid("organizationId", "must be 1 to 64 letters, digits, underscores or hyphens")
	}
	return OrganizationID(text), nil
}

// UserID names a person in the system that issued it. It is personal data.
type UserID string

// ParseUserID accepts 1 to 128 printable characters without spaces.
func ParseUserID(text string) (UserID, error) {
	if text == "" || len(text) > 128 {
		return "", Invalid("userId", "must be 1 to 128 characters")
	}
	for _, r := range text {
		if !isPrintable(r) || r == ' ' {
			return "", Invalid("userId", "must not contain spaces or control characters")
		}
	}
	return UserID(text), nil
}

func isToken(text string, most int) bool {
	if text == "" || len(text) > most {
		return false
	}
	for i := range len(text) {
		c := text[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '_', c == '-':
		default:
			return false
		}
	}
	return true
}
