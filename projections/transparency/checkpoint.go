package transparency

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"keyledger/domain"
)

// Origin names one log: a lane of a ledger in one epoch of its history.
type Origin struct {
	Ledger domain.ID
	Epoch  uint32
	Lane   domain.Lane
}

func (o Origin) String() string {
	return "keyledger/" + o.Ledger.UUID() + "/" + strconv.FormatUint(uint64(o.Epoch), 10) + "/" + string(o.Lane)
}

// ParseOrigin reads what String wrote.
func ParseOrigin(text string) (Origin, error) {
	parts := strings.Split(text, "/")
	if len(parts) == 4 && parts[0] == "keyledger" {
		ledger, err := domain.ParseID(parts[1])
		epoch, err2 := strconv.ParseUint(parts[2], 10, 32)
		o := Origin{ledger, uint32(epoch), domain.Lane(parts[3])}
		if err == nil && err2 == nil && (o.Lane == domain.Lifecycle || o.Lane == domain.Usage) && o.String() == text {
			return o, nil
		}
	}
	return Origin{}, fmt.Errorf("%q is not the origin of a ledger's checkpoint", text)
}

// Checkpoint is what a signed note says: that a log had this root when it had
// this size.
type Checkpoint struct {
	Origin
	Size domain.Position
	Root tlog.Hash
}

// Text is what is signed.
func (c Checkpoint) Text() string {
	return c.Origin.String() + "\n" + strconv.FormatUint(uint64(c.Size), 10) + "\n" + c.Root.String() + "\n"
}

// ParseCheckpoint reads the text of a checkpoint. Extension lines are refused: we
// sign none, and what nobody looks at should not be carried about.
func ParseCheckpoint(text string) (Checkpoint, error) {
	lines := strings.Split(text, "\n")
	if len(lines) != 4 || lines[3] != "" {
		return Checkpoint{}, errors.New("a checkpoint is three lines: origin, size and root")
	}
	origin, err := ParseOrigin(lines[0])
	if err != nil {
		return Checkpoint{}, err
	}
	size, err := strconv.ParseUint(lines[1], 10, 63)
	if err != nil {
		return Checkpoint{}, errors.New("the size of the checkpoint is not a number")
	}
	root, err := tlog.ParseHash(lines[2])
	if err != nil {
		return Checkpoint{}, errors.New("the root of the checkpoint is not a hash")
	}
	c := Checkpoint{Origin: origin, Size: domain.Position(size), Root: root}
	if c.Text() != text {
		return Checkpoint{}, errors.New("the checkpoint is not written in its canonical form")
	}
	return c, nil
}

// Read reads a signed note without looking at its signatures.
func Read(signed []byte) (Checkpoint, error) {
	// The text ends with the last empty line: signatures follow it.
	i := bytes.LastIndex(signed, []byte("\n\n"))
	if i < 0 {
		return Checkpoint{}, errors.New("the checkpoint is not a signed note")
	}
	return ParseCheckpoint(string(signed[:i+1]))
}

// Open reads a signed note, of which one of the keys must have signed the text
// under the name of its own origin.
func Open(signed []byte, keys Keys) (Checkpoint, error) {
	c, err := Read(signed)
	if err != nil {
		return Checkpoint{}, err
	}
	verifiers, err := keys.verifiers(c.Origin.String())
	if err != nil {
		return Checkpoint{}, err
	}
	if _, err := note.Open(signed, note.VerifierList(verifiers...)); err != nil {
		return Checkpoint{}, fmt.Errorf("the checkpoint of size %d: %w", c.Size, err)
	}
	return c, nil
}

// Keys are public keys of which each may have signed a checkpoint.
type Keys []ed25519.PublicKey

func (k Keys) verifiers(origin string) ([]note.Verifier, error) {
	verifiers := make([]note.Verifier, 0, len(k))
	for _, key := range k {
		text, err := note.NewEd25519VerifierKey(origin, key)
		if err != nil {
			return nil, fmt.Errorf("make a verifier of %s: %w", origin, err)
		}
		v, err := note.NewVerifier(text)
		if err != nil {
			return nil, fmt.Errorf("make a verifier of %s: %w", origin, err)
		}
		verifiers = append(verifiers, v)
	}
	return verifiers, nil
}

// VerifierKey is a public key as tools for signed notes take it, for one origin.
func VerifierKey(origin Origin, key ed25519.PublicKey) (string, error) {
	return note.NewEd25519VerifierKey(origin.String(), key)
}

// PublicKeyText is a public key as people hand it on: one for both lanes and all epochs.
func PublicKeyText(key ed25519.PublicKey) string { return base64.StdEncoding.EncodeToString(key) }

// ParsePublicKey reads what PublicKeyText wrote, or a verifier key of a signed
// note (name+hash+key).
func ParsePublicKey(text string) (ed25519.PublicKey, error) {
	const algorithm = 1 // Ed25519, in a verifier key
	text = strings.TrimSpace(text)
	if _, err := note.NewVerifier(text); err == nil {
		// Neither a name nor a hash has a plus, and what is behind them is base64, which has.
		parts := strings.SplitN(text, "+", 3)
		if raw, err := base64.StdEncoding.DecodeString(parts[2]); err == nil && len(raw) == 1+ed25519.PublicKeySize && raw[0] == algorithm {
			return raw[1:], nil
		}
	}
	if raw, err := base64.StdEncoding.DecodeString(text); err == nil && len(raw) == ed25519.PublicKeySize {
		return raw, nil
	}
	return nil, errors.New("a public key is 32 bytes as base64, or a verifier key of a signed note")
}

// ParsePrivateKeys reads the seeds of Ed25519 keys, 32 bytes each as hex or base64, separated by
// commas or white space. Each of them signs: while keys are changed there are
// two. Nothing of what cannot be read is repeated.
func ParsePrivateKeys(text string) ([]ed25519.PrivateKey, error) {
	var keys []ed25519.PrivateKey
	for _, word := range strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == ' ' || r == '\n' || r == '\r' || r == '\t' }) {
		seed, err := hex.DecodeString(word)
		if err != nil || len(seed) != ed25519.SeedSize {
			seed, err = base64.StdEncoding.DecodeString(word)
		}
		if err != nil || len(seed) != ed25519.SeedSize {
			return nil, fmt.Errorf("a checkpoint key is %d bytes as hex or base64, such as `openssl rand -hex 32` prints", ed25519.SeedSize)
		}
		keys = append(keys, ed25519.NewKeyFromSeed(seed))
	}
	if len(keys) == 0 {
		return nil, errors.New("there is no checkpoint key")
	}
	return keys, nil
}

// Public gives the public halves.
func Public(private []ed25519.PrivateKey) Keys {
	keys := make(Keys, len(private))
	for i, key := range private {
		keys[i] = key.Public().(ed25519.PublicKey) //nolint:forcetypeassert // it always is one
	}
	return keys
}

// sign writes the note of a checkpoint, signed by every key.
func sign(c Checkpoint, keys []ed25519.PrivateKey) ([]byte, error) {
	origin := c.Origin.String()
	signers := make([]note.Signer, len(keys))
	for i, key := range keys {
		verifiers, err := Public([]ed25519.PrivateKey{key}).verifiers(origin)
		if err != nil {
			return nil, err
		}
		signers[i] = signer{origin, verifiers[0].KeyHash(), key}
	}
	signed, err := note.Sign(&note.Note{Text: c.Text()}, signers...)
	if err != nil {
		return nil, fmt.Errorf("sign the checkpoint of size %d: %w", c.Size, err)
	}
	return signed, nil
}

// signer signs notes under the name of an origin. The library's own signers are
// made of a text that holds key and name, and our key signs for several origins.
type signer struct {
	name string
	hash uint32
	key  ed25519.PrivateKey
}

func (s signer) Name() string                     { return s.name }
func (s signer) KeyHash() uint32                  { return s.hash }
func (s signer) Sign(text []byte) ([]byte, error) { return ed25519.Sign(s.key, text), nil }
