package domain

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
)

const (
	// SecretCharacters is how many lower-case hex characters follow a key's
	// prefix: 128 bits.
	SecretCharacters = 32
	// visibleCharacters of those are shown for ever as part of the visible
	// prefix. 112 bits stay secret, the least for which NIST SP 800-63B accepts an
	// approved hash without salt or stretching.
	visibleCharacters = 4
	// mostSecretBytes bounds what is hashed for a stranger.
	mostSecretBytes = 256

	redacted = "[redacted]"
)

// Secret is a plain key. It prints, logs and marshals as a fixed text.
type Secret struct{ text string }

// NewSecret draws a key such as bsk_live_ and 32 hex characters. entropy is
// crypto/rand's reader everywhere but in tests.
func NewSecret(format KeyFormat, test bool, entropy io.Reader) (Secret, error) {
	var random [SecretCharacters / 2]byte
	if _, err := io.ReadFull(entropy, random[:]); err != nil {
		return Secret{}, fmt.Errorf("draw a key: %w", err)
	}
	return Secret{format.environment(test) + hex.EncodeToString(random[:])}, nil
}

// ParseSecret takes what a client presented. Any text of reasonable length may
// be a key, since imported keys have formats of their own: only the index knows.
func ParseSecret(text string) (Secret, error) {
	if text == "" || len(text) > mostSecretBytes {
		return Secret{}, Invalid("key", "must be 1 to %d bytes", mostSecretBytes)
	}
	for i := range len(text) {
		if text[i] <= ' ' || text[i] > '~' {
			return Secret{}, Invalid("key", "must be printable ASCII without spaces")
		}
	}
	return Secret{text}, nil
}

// Reveal gives the plain key away. It is called in the answer that shows a new
// key once, and nowhere else.
func (s Secret) Reveal() string { return s.text }

// Digest is what is stored of a key.
func (s Secret) Digest() Digest {
	// Converted to bytes, a text of this length would be allocated, once for each
	// key that is presented. No secret is longer than the copy on the stack.
	var text [mostSecretBytes]byte
	return sha256.Sum256(text[:copy(text[:], s.text)])
}

// VisiblePrefix is what is shown of a key for ever: the first 13 characters of
// bsk_live_ keys.
func (s Secret) VisiblePrefix(format KeyFormat) string {
	n := len(format.environment(false)) + visibleCharacters
	return s.text[:min(n, len(s.text)/2)]
}

// IsZero says whether there is no secret at all.
func (s Secret) IsZero() bool { return s.text == "" }

func (Secret) String() string                 { return redacted }
func (Secret) GoString() string               { return redacted }
func (Secret) Format(f fmt.State, _ rune)     { _, _ = io.WriteString(f, redacted) }
func (Secret) LogValue() slog.Value           { return slog.StringValue(redacted) }
func (Secret) MarshalText() ([]byte, error)   { return []byte(redacted), nil }
func (Secret) MarshalJSON() ([]byte, error)   { return []byte(`"` + redacted + `"`), nil }
func (Secret) MarshalBinary() ([]byte, error) { return []byte(redacted), nil }

// KeyFormat is the configurable first word of keys: bsk.
type KeyFormat string

// DefaultKeyFormat makes bsk_live_ and bsk_test_ keys.
const DefaultKeyFormat KeyFormat = "bsk"

// ParseKeyFormat accepts 1 to 16 lower-case letters and digits.
func ParseKeyFormat(text string) (KeyFormat, error) {
	if text == "" || len(text) > 16 {
		return "", Invalid("key-prefix", "must be 1 to 16 lower-case letters or digits")
	}
	for i := range len(text) {
		if c := text[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return "", Invalid("key-prefix", "must be 1 to 16 lower-case letters or digits")
		}
	}
	return KeyFormat(text), nil
}

func (f KeyFormat) environment(test bool) string {
	if test {
		return string(f) + "_test_"
	}
	return string(f) + "_live_"
}

// Digest is the SHA-256 of a plain key, without salt: keys carry 112 secret bits
// of their own, and a digest made elsewhere can be imported.
type Digest [sha256.Size]byte

// Equal compares in constant time.
func (d Digest) Equal(other Digest) bool { return subtle.ConstantTimeCompare(d[:], other[:]) == 1 }

// Hex gives the digest as events write it.
func (d Digest) Hex() string { return hex.EncodeToString(d[:]) }

// ParseDigest reads 64 lower-case hex characters.
func ParseDigest(text string) (Digest, error) {
	var d Digest
	if len(text) != hex.EncodedLen(len(d)) {
		return Digest{}, Invalid("digest", "must be %d hex characters", hex.EncodedLen(len(d)))
	}
	if _, err := hex.Decode(d[:], []byte(text)); err != nil {
		return Digest{}, Invalid("digest", "must be %d hex characters", hex.EncodedLen(len(d)))
	}
	return d, nil
}
