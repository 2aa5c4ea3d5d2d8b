package transparency

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// A witness is somebody else who signs a checkpoint after they have seen that it continues
// the last one that they signed (C2SP tlog-cosignature and tlog-witness). Whoever
// trusts one of them need not keep checkpoints to find a history that was written anew.

// WitnessKey is the public key of a witness, as a verifier key of a signed note has
// it: name+hash+key.
type WitnessKey struct {
	Name string
	id   [4]byte
	key  ed25519.PublicKey
}

const (
	cosignatureAlgorithm = 4 // timestamped Ed25519, in a verifier key
	cosignatureSize      = 4 + 8 + ed25519.SignatureSize
)

// ParseWitnessKey reads a verifier key of the algorithm cosignature/v1.
func ParseWitnessKey(text string) (WitnessKey, error) {
	malformed := fmt.Errorf("the key of a witness is name+hash+key, with a timestamped Ed25519 key (cosignature/v1)")
	parts := strings.SplitN(strings.TrimSpace(text), "+", 3)
	if len(parts) != 3 || parts[0] == "" || strings.ContainsAny(parts[0], " \t\n") {
		return WitnessKey{}, malformed
	}
	raw, err := base64.StdEncoding.DecodeString(parts[2])
	if err != nil || len(raw) != 1+ed25519.PublicKeySize || raw[0] != cosignatureAlgorithm {
		return WitnessKey{}, malformed
	}
	w := WitnessKey{Name: parts[0], key: raw[1:]}
	sum := sha256.Sum256(append([]byte(w.Name+"\n"), raw...))
	copy(w.id[:], sum[:])
	if stated, err := strconv.ParseUint(parts[1], 16, 32); err != nil || len(parts[1]) != 8 || uint32(stated) != binary.BigEndian.Uint32(w.id[:]) {
		return WitnessKey{}, malformed
	}
	return w, nil
}

// Cosigned says whether the witness has cosigned a checkpoint, and when.
func (w WitnessKey) Cosigned(signed []byte) (at time.Time, ok bool) {
	i := bytes.LastIndex(signed, []byte("\n\n"))
	if i < 0 {
		return at, false
	}
	for line := range strings.Lines(string(signed[i+2:])) {
		if at, ok = w.verify(string(signed[:i+1]), line); ok {
			return at, true
		}
	}
	return at, false
}

// Missing names a witness who has not cosigned a checkpoint, empty when all have.
func Missing(signed []byte, witnesses []WitnessKey) string {
	for _, w := range witnesses {
		if _, ok := w.Cosigned(signed); !ok {
			return w.Name
		}
	}
	return ""
}

// verify says whether a line is the witness's cosignature of a checkpoint's text.
func (w WitnessKey) verify(text, line string) (at time.Time, ok bool) {
	encoded, found := strings.CutPrefix(line, "— "+w.Name+" ")
	if !found {
		return at, false
	}
	raw, err := base64.StdEncoding.DecodeString(strings.TrimSuffix(encoded, "\n"))
	if err != nil || len(raw) != cosignatureSize || [4]byte(raw) != w.id {
		return at, false
	}
	seconds := binary.BigEndian.Uint64(raw[4:])
	message := "cosignature/v1\ntime " + strconv.FormatUint(seconds, 10) + "\n" + text
	if seconds>>62 != 0 || !ed25519.Verify(w.key, []byte(message), raw[12:]) {
		return at, false
	}
	return time.Unix(int64(seconds), 0).UTC(), true
}
