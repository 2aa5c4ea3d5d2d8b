package main_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"keyledger/internal/servertest"
)

func TestAServersCheckpointsAreCosigned(t *testing.T) {
	t.Parallel()
	private := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, ed25519.SeedSize))
	key := append([]byte{4}, private.Public().(ed25519.PublicKey)...) //nolint:forcetypeassert // it always is one
	id := sha256.Sum256(append([]byte("witness.example\n"), key...))
	// One that believes everything: what a real one looks at is tested where it is asked.
	witness := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		_, note, _ := strings.Cut(string(body), "\n\n")
		text, _, _ := strings.Cut(note, "\n\n")
		now := uint64(time.Now().Unix())
		signature := ed25519.Sign(private, fmt.Appendf(nil, "cosignature/v1\ntime %d\n%s\n", now, text))
		line := append(binary.BigEndian.AppendUint64(bytes.Clone(id[:4]), now), signature...)
		_, _ = fmt.Fprintf(w, "— witness.example %s\n", base64.StdEncoding.EncodeToString(line))
	}))
	t.Cleanup(witness.Close)
	vkey := fmt.Sprintf("witness.example+%x+%s", id[:4], base64.StdEncoding.EncodeToString(key))
	server := servertest.Start(t, servertest.Options{Env: []string{"KEYLEDGER_WITNESS=" + vkey + "=" + witness.URL}})
	server.Bootstrap("org_1")
	awaitCheckpoint(t, server, "1")
	poll := time.NewTicker(50 * time.Millisecond)
	defer poll.Stop()
	for started := time.Now(); !strings.Contains(call(t, http.MethodGet, server.URL()+"/api/v1/log/lifecycle/checkpoint", "").body, "— witness.example "); <-poll.C {
		if time.Since(started) > time.Minute {
			t.Fatal("no checkpoint is cosigned")
		}
	}
	proof := filepath.Join(t.TempDir(), "proof.json")
	succeed(t, server, "audit", "prove", "1", "--output", proof)
	public := strings.TrimSpace(succeed(t, server, "audit", "key").Stdout)
	succeed(t, server, "audit", "check", proof, "--key", public, "--witness", vkey)
	if v := verify(t, server, 0, "--key", public, "--witness", vkey); !v.OK {
		t.Errorf("the audit says %+v", v)
	}
	other := bytes.Replace([]byte(vkey), []byte("witness.example"), []byte("witness.another"), 1)
	if result := server.Run("audit", "check", proof, "--key", public, "--witness", string(other)); result.Code != 2 {
		t.Errorf("a key whose hash is another name's is taken: %d %s", result.Code, result.Stderr)
	}
}
