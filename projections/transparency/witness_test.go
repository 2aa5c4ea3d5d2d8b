package transparency_test

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
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"keyledger/domain"
	"keyledger/projections/internal/logtest"
	"keyledger/projections/transparency"
)

// witness is one as C2SP tlog-witness and tlog-cosignature describe it, written against
// their text and the library of Go's checksum database alone.
type witness struct {
	name    string
	private ed25519.PrivateKey
	logs    note.Verifiers

	mu    sync.Mutex
	trees map[string]tlog.Tree // by origin
	asked int
}

func (w *witness) key() []byte {
	return append([]byte{4}, w.private.Public().(ed25519.PublicKey)...)
}

func (w *witness) id() []byte {
	sum := sha256.Sum256(append([]byte(w.name+"\n"), w.key()...))
	return sum[:4]
}

func (w *witness) vkey() string {
	return fmt.Sprintf("%s+%x+%s", w.name, w.id(), base64.StdEncoding.EncodeToString(w.key()))
}

func (w *witness) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked++
	body, _ := io.ReadAll(r.Body)
	head, signed, _ := bytes.Cut(body, []byte("\n\n"))
	lines := strings.Split(string(head), "\n")
	var old int64
	if _, err := fmt.Sscanf(lines[0], "old %d", &old); err != nil || r.URL.Path != "/prefix/add-checkpoint" || r.Method != http.MethodPost {
		rw.WriteHeader(http.StatusBadRequest)
		return
	}
	opened, err := note.Open(signed, w.logs)
	if err != nil {
		rw.WriteHeader(http.StatusForbidden)
		return
	}
	text := strings.Split(opened.Text, "\n")
	var tree tlog.Tree
	_, _ = fmt.Sscan(text[1], &tree.N)
	tree.Hash, _ = tlog.ParseHash(text[2])
	known := w.trees[text[0]]
	switch {
	case old > tree.N:
		rw.WriteHeader(http.StatusBadRequest)
		return
	case old != known.N, old == tree.N && tree.N > 0 && known.Hash != tree.Hash:
		rw.Header().Set("Content-Type", "text/x.tlog.size")
		rw.WriteHeader(http.StatusConflict)
		_, _ = fmt.Fprintln(rw, known.N)
		return
	}
	var proof tlog.TreeProof
	for _, line := range lines[1:] {
		h, err := tlog.ParseHash(line)
		if err != nil {
			rw.WriteHeader(http.StatusBadRequest)
			return
		}
		proof = append(proof, h)
	}
	if old > 0 && old < tree.N && tlog.CheckTree(proof, tree.N, tree.Hash, old, known.Hash) != nil || (old == 0 || old == tree.N) && len(proof) > 0 {
		rw.WriteHeader(http.StatusUnprocessableEntity)
		return
	}
	w.trees[text[0]] = tree
	now := uint64(time.Now().Unix())
	signature := ed25519.Sign(w.private, fmt.Appendf(nil, "cosignature/v1\ntime %d\n%s", now, opened.Text))
	line := append(binary.BigEndian.AppendUint64(w.id(), now), signature...)
	_, _ = fmt.Fprintf(rw, "— %s %s\n", w.name, base64.StdEncoding.EncodeToString(line))
}

func TestAWitnessCosignsWhatContinuesAndRefusesAFork(t *testing.T) {
	t.Parallel()
	l := logtest.New(t)
	tree := newTree(t, l, domain.Lifecycle)
	ledger, epoch := l.Ledger()
	origin := transparency.Origin{Ledger: ledger, Epoch: epoch, Lane: domain.Lifecycle}
	text, err := transparency.VerifierKey(origin, privateKey().Public().(ed25519.PublicKey))
	logtest.Must(t, err)
	verifier, err := note.NewVerifier(text)
	logtest.Must(t, err)
	seed := sha256.Sum256([]byte("a witness of tests"))
	w := &witness{name: "witness.example/w1", private: ed25519.NewKeyFromSeed(seed[:]), logs: note.VerifierList(verifier), trees: map[string]tlog.Tree{}}
	server := httptest.NewServer(w)
	t.Cleanup(server.Close)
	configured, err := transparency.ParseWitness(w.vkey() + "=" + server.URL + "/prefix/")
	logtest.Must(t, err)
	cosigner := func() *transparency.Cosigner {
		c, err := transparency.NewCosigner(transparency.CosignerOptions{Pool: l.Pool, Lane: domain.Lifecycle, Witness: configured})
		logtest.Must(t, err)
		return c
	}
	reader := transparency.NewReader(l.Pool, l.Store)
	newest := func() []byte {
		signed, err := reader.Checkpoint(t.Context(), domain.Lifecycle)
		logtest.Must(t, err)
		return signed
	}
	key, err := transparency.ParseWitnessKey(w.vkey())
	logtest.Must(t, err)

	first := cosigner()
	logtest.Must(t, first.Submit(t.Context())) // there is nothing yet
	for i := range 3 {
		for range 100 {
			l.Create("org_a", "a key")
		}
		logtest.Must(t, tree.Advance(t.Context()))
		if _, ok := key.Cosigned(newest()); ok {
			t.Fatal("a checkpoint waits for its cosignature")
		}
		c := first
		if i == 2 {
			c = cosigner() // one that does not know where the witness stands
		}
		logtest.Must(t, c.Submit(t.Context()))
		at, ok := key.Cosigned(newest())
		if !ok || time.Since(at) > time.Minute {
			t.Fatalf("the checkpoint is not cosigned: %v\n%s", at, newest())
		}
		// Those who know nothing of witnesses read it as before.
		if _, err := transparency.Open(newest(), transparency.Public([]ed25519.PrivateKey{privateKey()})); err != nil {
			t.Error(err)
		}
	}
	asked := w.asked
	logtest.Must(t, cosigner().Submit(t.Context()))
	if w.asked != asked {
		t.Error("a witness is asked for what it has cosigned")
	}
	cosigned := string(newest())
	for name, forged := range map[string]string{
		"another size": strings.Replace(cosigned, "\n300\n", "\n301\n", 1),
		"another name": strings.Replace(cosigned, "— witness.example/w1", "— witness.example/w2", 1),
		"none":         cosigned[:strings.LastIndex(cosigned, "— witness")],
	} {
		if _, ok := key.Cosigned([]byte(forged)); ok {
			t.Errorf("%s is taken for cosigned", name)
		}
	}

	// Whoever owns database and key writes history anew. The witness has seen the other one.
	owner := l.Owner()
	forge := func(sql string) {
		t.Helper()
		_, err := owner.Exec(t.Context(), `SET session_replication_role = replica; `+sql+`; SET session_replication_role = DEFAULT`)
		logtest.Must(t, err)
	}
	forge(`UPDATE events SET id = gen_random_uuid() WHERE lane = 'lifecycle' AND position = 4; DELETE FROM log_tiles; DELETE FROM log_checkpoints;
		UPDATE log_trees SET size = 0, root = sha256(''), epoch = 0, ledger_id = '00000000-0000-0000-0000-000000000000'`)
	logtest.Must(t, newTree(t, l, domain.Lifecycle).Advance(t.Context()))
	if err := cosigner().Submit(t.Context()); err == nil || !strings.Contains(err.Error(), "written anew") {
		t.Errorf("a fork of the same size gives %v", err)
	}
	l.Create("org_a", "one more")
	logtest.Must(t, newTree(t, l, domain.Lifecycle).Advance(t.Context()))
	if err := cosigner().Submit(t.Context()); err == nil || !strings.Contains(err.Error(), "written anew") {
		t.Errorf("a fork that has grown gives %v", err)
	}
	if _, ok := key.Cosigned(newest()); ok {
		t.Error("a fork is cosigned")
	}
}
