package backing

import (
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"os"

	"keyledger/eventstore"
	"keyledger/internal/config"
	"keyledger/internal/datadir"
)

// The generated secrets, as hexadecimal text: KEYLEDGER_MASTER_KEY_FILE and
// KEYLEDGER_JWT_SECRET_FILE can name these very files.
const (
	masterKeyFile = "master.key"
	jwtSecretFile = "jwt.secret"
)

// Origin says where a secret came from.
type Origin int

const (
	Configured Origin = iota // flag, variable or file that the deployment named
	Kept                     // drawn by an earlier start, in the data directory
	Drawn                    // drawn just now, into the data directory
)

// MasterKey gives the key that wraps the data keys. It is drawn where there is
// none and draw says so.
func MasterKey(dir *datadir.Dir, c config.Config, draw bool) ([]byte, Origin, error) {
	if c.MasterKey.IsSet() {
		key, err := parseMasterKey(c.MasterKey.Reveal())
		return key, Configured, err
	}
	origin := Kept
	if _, err := os.Stat(dir.Path(masterKeyFile)); err != nil {
		if origin = Drawn; !draw {
			return nil, origin, errors.New("the master key of the ledger is needed: set KEYLEDGER_MASTER_KEY or KEYLEDGER_MASTER_KEY_FILE, " +
				"or name its server's data directory with --data-dir")
		}
	}
	key, err := dir.ReadOrCreateSecret(masterKeyFile, eventstore.MasterKeySize)
	return key, origin, err
}

// parseMasterKey reads 32 bytes as hex or as base64 of any alphabet, and repeats
// nothing of what it cannot read.
func parseMasterKey(text string) ([]byte, error) {
	if key, err := hex.DecodeString(text); err == nil && len(key) == eventstore.MasterKeySize {
		return key, nil
	}
	for _, encoding := range []*base64.Encoding{base64.StdEncoding, base64.RawStdEncoding, base64.URLEncoding, base64.RawURLEncoding} {
		if key, err := encoding.DecodeString(text); err == nil && len(key) == eventstore.MasterKeySize {
			return key, nil
		}
	}
	return nil, fmt.Errorf("--master-key (KEYLEDGER_MASTER_KEY) must be %d bytes as base64 or hex, such as `openssl rand -base64 32` prints", eventstore.MasterKeySize)
}

// JWTSecret gives the secret of HS256 tokens, drawn where there is none. With a
// JWKS and no secret there are no such tokens, and the secret is nil.
func JWTSecret(dir *datadir.Dir, c config.Config) ([]byte, Origin, error) {
	switch {
	case c.JWTSecret.IsSet():
		return []byte(c.JWTSecret.Reveal()), Configured, nil
	case c.JWKSURL != "":
		return nil, Configured, nil
	}
	origin := Kept
	if _, err := os.Stat(dir.Path(jwtSecretFile)); err != nil {
		origin = Drawn
	}
	secret, err := dir.ReadOrCreateSecret(jwtSecretFile, sha256.Size)
	// The text is the secret, as it is when it is handed on by a variable or a file.
	return []byte(hex.EncodeToString(secret)), origin, err
}

// CursorKey derives the key that authenticates cursors of lists, so that all
// nodes of a ledger accept each other's.
func CursorKey(masterKey []byte) ([]byte, error) {
	key, err := hkdf.Key(sha256.New, masterKey, nil, "keyledger list cursors 1", sha256.Size)
	if err != nil {
		return nil, fmt.Errorf("derive the key of cursors: %w", err)
	}
	return key, nil
}

// WebhookKey derives the key under which the secrets of webhooks are stored.
func WebhookKey(masterKey []byte) ([]byte, error) {
	key, err := hkdf.Key(sha256.New, masterKey, nil, "keyledger webhook secrets 1", sha256.Size)
	if err != nil {
		return nil, fmt.Errorf("derive the key of webhooks: %w", err)
	}
	return key, nil
}
