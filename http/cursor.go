package http

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"

	"keyledger/domain"
)

// cursors makes and reads the cursors of lists. A cursor names the last key of a
// page and is authenticated together with the organization, so that it neither
// can be made up nor leads into another list.
type cursors struct{ key []byte }

const (
	cursorVersion = 1
	cursorMAC     = 16
)

func (c cursors) mac(organization domain.OrganizationID, id domain.KeyID) []byte {
	h := hmac.New(sha256.New, c.key)
	h.Write([]byte("keyledger cursor"))
	h.Write([]byte{cursorVersion})
	h.Write(id[:])
	h.Write([]byte(organization))
	return h.Sum(nil)[:cursorMAC]
}

func (c cursors) write(organization domain.OrganizationID, id domain.KeyID) string {
	raw := append([]byte{cursorVersion}, id[:]...)
	return base64.RawURLEncoding.EncodeToString(append(raw, c.mac(organization, id)...))
}

func (c cursors) read(organization domain.OrganizationID, text string) (domain.KeyID, error) {
	var id domain.KeyID
	malformed := domain.Invalid("cursor", "must be the cursor of an earlier page of this list")
	if base64.RawURLEncoding.DecodedLen(len(text)) != 1+len(id)+cursorMAC {
		return id, malformed
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || raw[0] != cursorVersion {
		return id, malformed
	}
	copy(id[:], raw[1:])
	if !hmac.Equal(raw[1+len(id):], c.mac(organization, id)) {
		return domain.KeyID{}, malformed
	}
	return id, nil
}
