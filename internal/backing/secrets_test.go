package backing_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"keyledger/internal/backing"
	"keyledger/internal/config"
	"keyledger/internal/datadir"
)

func load(t *testing.T, environ ...string) config.Config {
	t.Helper()
	c, err := config.Load(pflag.NewFlagSet("test", pflag.ContinueOnError), environ)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestAMasterKeyIsReadInEverySpelling(t *testing.T) {
	t.Parallel()
	key := bytes.Repeat([]byte{0xfb, 0xff}, 16) // has characters in which the alphabets differ
	for _, text := range []string{
		hex.EncodeToString(key), strings.ToUpper(hex.EncodeToString(key)),
		base64.StdEncoding.EncodeToString(key), base64.RawStdEncoding.EncodeToString(key),
		base64.URLEncoding.EncodeToString(key), base64.RawURLEncoding.EncodeToString(key),
	} {
		got, origin, err := backing.MasterKey(datadir.At(t.TempDir()), load(t, "KEYLEDGER_MASTER_KEY="+text), false)
		if err != nil || origin != backing.Configured || !bytes.Equal(got, key) {
			t.Errorf("%s gives %x, %v", text, got, err)
		}
	}
	for _, text := range []string{"too-short", hex.EncodeToString(key[:31]), base64.StdEncoding.EncodeToString(append(key, 1))} {
		_, _, err := backing.MasterKey(datadir.At(t.TempDir()), load(t, "KEYLEDGER_MASTER_KEY="+text), true)
		if err == nil || strings.Contains(err.Error(), text) || !strings.Contains(err.Error(), "32 bytes as base64 or hex") {
			t.Errorf("a wrong key gives %v", err)
		}
	}
}

func TestADrawnSecretIsKeptAndCanBeHandedOnAsAFile(t *testing.T) {
	t.Parallel()
	dir := datadir.At(filepath.Join(t.TempDir(), "data"))
	if _, _, err := backing.MasterKey(dir, load(t), false); err == nil || !strings.Contains(err.Error(), "KEYLEDGER_MASTER_KEY_FILE") {
		t.Errorf("without leave to draw one, a missing key gives %v", err)
	}
	drawn, origin, err := backing.MasterKey(dir, load(t), true)
	if err != nil || origin != backing.Drawn {
		t.Fatalf("it was not drawn: %v", err)
	}
	if kept, origin, err := backing.MasterKey(dir, load(t), false); err != nil || origin != backing.Kept || !bytes.Equal(kept, drawn) {
		t.Errorf("it was not kept: %v", err)
	}
	elsewhere := datadir.At(t.TempDir())
	handed, _, err := backing.MasterKey(elsewhere, load(t, "KEYLEDGER_MASTER_KEY_FILE="+dir.Path("master.key")), false)
	if err != nil || !bytes.Equal(handed, drawn) {
		t.Errorf("the file does not give the key: %v", err)
	}

	secret, origin, err := backing.JWTSecret(dir, load(t))
	if err != nil || origin != backing.Drawn || len(secret) < 32 {
		t.Fatalf("the JWT secret was not drawn: %v", err)
	}
	same, _, err := backing.JWTSecret(elsewhere, load(t, "KEYLEDGER_JWT_SECRET_FILE="+dir.Path("jwt.secret")))
	if err != nil || !bytes.Equal(same, secret) {
		t.Errorf("the file does not give the JWT secret: %v", err)
	}
	for _, name := range []string{"master.key", "jwt.secret"} {
		if info, err := os.Stat(dir.Path(name)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s is not private: %v", name, err)
		}
	}
}

func TestWithAJWKSNoSecretIsDrawn(t *testing.T) {
	t.Parallel()
	dir := datadir.At(t.TempDir())
	secret, _, err := backing.JWTSecret(dir, load(t, "KEYLEDGER_JWKS_URL=https://issuer.example/jwks.json"))
	if err != nil || secret != nil {
		t.Errorf("there is a secret, or %v", err)
	}
	if _, err := os.Stat(dir.Path("jwt.secret")); err == nil {
		t.Error("a secret was drawn that nobody needs")
	}
}
