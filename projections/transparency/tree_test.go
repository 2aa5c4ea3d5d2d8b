package transparency_test

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"keyledger/domain"
	"keyledger/internal/testkit"
	"keyledger/projections/internal/logtest"
	"keyledger/projections/transparency"
)

func TestMain(m *testing.M) { testkit.Main(m) }

var seed = sha256.Sum256([]byte("a key of tests"))

func privateKey() ed25519.PrivateKey { return ed25519.NewKeyFromSeed(seed[:]) }

func newTree(t testing.TB, l *logtest.Log, lane domain.Lane, change ...func(*transparency.Options)) *transparency.Tree {
	t.Helper()
	o := transparency.Options{Pool: l.Pool, Log: l.Store, Lane: lane, Keys: []ed25519.PrivateKey{privateKey()}, Logger: testkit.Logger(t)}
	for _, c := range change {
		c(&o)
	}
	tree, err := transparency.New(o)
	logtest.Must(t, err)
	return tree
}

// client knows the log's public key and the paths of C2SP tlog-tiles, and uses
// the library of Go's checksum database for everything else.
type client struct {
	t      testing.TB
	reader *transparency.Reader
	lane   domain.Lane
	tree   tlog.Tree
}

func (c *client) Height() int                     { return 8 }
func (c *client) SaveTiles([]tlog.Tile, [][]byte) {}
func (c *client) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	data := make([][]byte, len(tiles))
	for i, tile := range tiles {
		var err error
		if data[i], err = c.reader.Tile(c.t.Context(), c.lane, tile.L, tile.N, tile.W); err != nil {
			return nil, err
		}
	}
	return data, nil
}

// open verifies the newest checkpoint as anybody could.
func open(t testing.TB, l *logtest.Log, lane domain.Lane) *client {
	t.Helper()
	c := &client{t: t, reader: transparency.NewReader(l.Pool, l.Store), lane: lane}
	signed, err := c.reader.Checkpoint(t.Context(), lane)
	logtest.Must(t, err)
	ledger, epoch := l.Ledger()
	origin := fmt.Sprintf("keyledger/%s/%d/%s", ledger.UUID(), epoch, lane)
	text, err := note.NewEd25519VerifierKey(origin, privateKey().Public().(ed25519.PublicKey))
	logtest.Must(t, err)
	verifier, err := note.NewVerifier(text)
	logtest.Must(t, err)
	n, err := note.Open(signed, note.VerifierList(verifier))
	logtest.Must(t, err)
	lines := strings.Split(n.Text, "\n")
	if lines[0] != origin {
		t.Fatalf("the origin is %s, not %s", lines[0], origin)
	}
	_, err = fmt.Sscan(lines[1], &c.tree.N)
	logtest.Must(t, err)
	c.tree.Hash, err = tlog.ParseHash(lines[2])
	logtest.Must(t, err)
	return c
}

func TestAClientThatKnowsOnlyTheLibraryVerifiesEveryEvent(t *testing.T) {
	t.Parallel()
	l := logtest.New(t)
	tree := newTree(t, l, domain.Lifecycle)
	for i := range 300 {
		l.Create("org_a", fmt.Sprint("key ", i))
		if i == 4 || i == 255 {
			logtest.Must(t, tree.Advance(t.Context()))
		}
	}
	earlier := open(t, l, domain.Lifecycle)
	logtest.Must(t, tree.Advance(t.Context()))
	c := open(t, l, domain.Lifecycle)
	if c.tree.N != 300 {
		t.Fatalf("the checkpoint covers %d events of 300", c.tree.N)
	}
	hashes := tlog.TileHashReader(c.tree, c)
	for r, err := range l.Read(t.Context(), domain.Lifecycle, 0) {
		logtest.Must(t, err)
		proof, err := tlog.ProveRecord(c.tree.N, int64(r.Position-1), hashes)
		logtest.Must(t, err)
		logtest.Must(t, tlog.CheckRecord(proof, c.tree.N, c.tree.Hash, int64(r.Position-1), tlog.RecordHash(r.Envelope())))
		_, given, err := c.reader.Inclusion(t.Context(), domain.Lifecycle, r.Position, domain.Position(c.tree.N))
		logtest.Must(t, err)
		if len(given) != len(proof) {
			t.Fatalf("the proof of %d has %d hashes, not %d", r.Position, len(given), len(proof))
		}
		for i := range given {
			if proof[i] != given[i] {
				t.Fatalf("the proof of %d is another one", r.Position)
			}
		}
	}
	proof, err := tlog.ProveTree(c.tree.N, earlier.tree.N, hashes)
	logtest.Must(t, err)
	logtest.Must(t, tlog.CheckTree(proof, c.tree.N, c.tree.Hash, earlier.tree.N, earlier.tree.Hash))
	entries, err := c.reader.Entries(t.Context(), domain.Lifecycle, 1, 44)
	logtest.Must(t, err)
	if len(entries) != 44 {
		t.Errorf("the second bundle has %d entries", len(entries))
	}
	if _, err := c.reader.Entries(t.Context(), domain.Lifecycle, 1, 45); domain.CodeOf(err) != domain.CodeNotFound {
		t.Errorf("an entry that nothing covers was given: %v", err)
	}
}

func TestTilesAreThoseOfTheLibraryAtEverySize(t *testing.T) {
	t.Parallel()
	const most = 66_000 // beyond a full tile at level 1
	var stored []tlog.Hash
	read := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		hashes := make([]tlog.Hash, len(indexes))
		for i, index := range indexes {
			hashes[i] = stored[index]
		}
		return hashes, nil
	})
	leaves := make([]tlog.Hash, most)
	for i := range leaves {
		leaves[i] = tlog.RecordHash(binary.BigEndian.AppendUint64(nil, uint64(i)))
		hashes, err := tlog.StoredHashesForRecordHash(int64(i), leaves[i], read)
		logtest.Must(t, err)
		stored = append(stored, hashes...)
	}
	for _, size := range []int{0, 1, 2, 255, 256, 257, 511, 512, 65_535, 65_536, 65_537, most} {
		tiles, root, err := transparency.Grow(leaves[:size])
		logtest.Must(t, err)
		want, err := tlog.TreeHash(int64(size), read)
		logtest.Must(t, err)
		if root != want {
			t.Fatalf("the root of size %d is %s, not %s", size, root, want)
		}
		for id, data := range tiles {
			library, err := tlog.ReadTileData(tlog.Tile{H: 8, L: id.Level, N: id.Number, W: len(data) / 32}, read)
			logtest.Must(t, err)
			if string(library) != string(data) {
				t.Fatalf("tile %v at size %d is another one", id, size)
			}
			if id.Width(int64(size)) != len(data)/32 {
				t.Fatalf("tile %v at size %d has the width %d", id, size, len(data)/32)
			}
		}
		again, err := transparency.Regrow(int64(size), tiles, leaves[size:])
		logtest.Must(t, err)
		if whole, _ := tlog.TreeHash(most, read); again != whole {
			t.Fatalf("what grew on from size %d has another root", size)
		}
	}
}

func TestManyNodesDriveOneTree(t *testing.T) {
	t.Parallel()
	l := logtest.New(t)
	var trees sync.WaitGroup
	for range 4 {
		tree := newTree(t, l, domain.Lifecycle)
		trees.Go(func() {
			for range 20 {
				if err := tree.Advance(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for i := range 120 {
		l.Create("org_a", fmt.Sprint("key ", i))
	}
	trees.Wait()
	logtest.Must(t, newTree(t, l, domain.Lifecycle).Advance(t.Context()))
	c := open(t, l, domain.Lifecycle)
	_, err := tlog.TileHashReader(c.tree, c).ReadHashes([]int64{tlog.StoredHashIndex(0, 119)})
	logtest.Must(t, err)
	if c.tree.N != 120 {
		t.Errorf("the checkpoint covers %d events of 120", c.tree.N)
	}
}

func TestACheckpointFollowsWithinASecond(t *testing.T) {
	t.Parallel()
	l := logtest.New(t)
	registry := prometheus.NewRegistry()
	tree := newTree(t, l, domain.Lifecycle, func(o *transparency.Options) { o.Registerer = registry })
	logtest.Background(t, "the tree", tree.Run)
	l.Create("org_a", "a key")
	recorded := time.Now()
	reader := transparency.NewReader(l.Pool, l.Store)
	for {
		size, err := reader.Size(t.Context(), domain.Lifecycle)
		logtest.Must(t, err)
		if size == 1 {
			break
		}
		if time.Since(recorded) > 20*time.Second {
			t.Fatal("no checkpoint covers the event")
		}
	}
	if took := time.Since(recorded); took > time.Second {
		t.Logf("the checkpoint came after %s: this machine is busy", took)
	}
	if families, err := registry.Gather(); err != nil || len(families) != 4 {
		t.Errorf("%d of 4 metrics are published (%v)", len(families), err)
	}
}

// note that a test keeps instead of a file.
type memory struct{ signed []byte }

func (m *memory) Recall(domain.Lane) ([]byte, error)          { return m.signed, nil }
func (m *memory) Remember(_ domain.Lane, signed []byte) error { m.signed = signed; return nil }

func TestAForkIsRefused(t *testing.T) {
	t.Parallel()
	for name, forge := range map[string]string{
		"the tree was rolled back": `UPDATE log_trees SET size = 5, root = (SELECT root FROM log_checkpoints WHERE lane = 'lifecycle' AND size = 5) WHERE lane = 'lifecycle';
			ALTER TABLE log_tiles DISABLE TRIGGER USER; UPDATE log_tiles SET hashes = substr(hashes, 1, 5 * 32) WHERE lane = 'lifecycle' AND level = 0`,
		"a tile was changed":   `ALTER TABLE log_tiles DISABLE TRIGGER USER; UPDATE log_tiles SET hashes = set_byte(hashes, 40, 255 - get_byte(hashes, 40)) WHERE lane = 'lifecycle'`,
		"the root was changed": `UPDATE log_trees SET root = sha256('another') WHERE lane = 'lifecycle'`,
		"events were taken from the end": `ALTER TABLE events_lifecycle DISABLE TRIGGER USER; DELETE FROM events WHERE lane = 'lifecycle' AND position > 7;
			UPDATE log_head SET position = 7 WHERE lane = 'lifecycle'`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := logtest.New(t)
			kept := &memory{}
			remembering := func(o *transparency.Options) { o.Memory = kept }
			tree := newTree(t, l, domain.Lifecycle, remembering)
			for i := range 10 {
				l.Create("org_a", fmt.Sprint("key ", i))
				if i == 4 {
					logtest.Must(t, tree.Advance(t.Context()))
				}
			}
			logtest.Must(t, tree.Advance(t.Context()))
			_, err := l.Owner().Exec(t.Context(), forge)
			logtest.Must(t, err)
			if name != "events were taken from the end" {
				l.Create("org_a", "one more")
			}
			for who, tree := range map[string]*transparency.Tree{"the one that signed": tree, "one that starts": newTree(t, l, domain.Lifecycle, remembering)} {
				if err := tree.Advance(t.Context()); !errors.Is(err, transparency.ErrFork) {
					t.Errorf("%s: %v", who, err)
				}
			}
		})
	}
}

func TestARaisedEpochIsAnotherLogWithTheSameBeginning(t *testing.T) {
	t.Parallel()
	l := logtest.New(t)
	tree := newTree(t, l, domain.Lifecycle)
	l.Create("org_a", "a key")
	logtest.Must(t, tree.Advance(t.Context()))
	_, err := l.Owner().Exec(t.Context(), `SELECT raise_epoch('a test')`)
	logtest.Must(t, err)
	again := logtest.Open(t, logtest.Pool(t, l.DB.URL))
	logtest.Must(t, newTree(t, l, domain.Lifecycle, func(o *transparency.Options) { o.Log = again }).Advance(t.Context()))
	signed, err := transparency.NewReader(l.Pool, again).Checkpoint(t.Context(), domain.Lifecycle)
	logtest.Must(t, err)
	c, err := transparency.Open(signed, transparency.Public([]ed25519.PrivateKey{privateKey()}))
	logtest.Must(t, err)
	if c.Epoch != 2 || c.Size != 1 {
		t.Errorf("the newest checkpoint is of epoch %d and size %d", c.Epoch, c.Size)
	}
}

func TestFullTilesCannotBeChangedByTheService(t *testing.T) {
	t.Parallel()
	l := logtest.New(t)
	l.Create("org_a", "a key")
	logtest.Must(t, newTree(t, l, domain.Lifecycle).Advance(t.Context()))
	for _, forbidden := range []string{
		`UPDATE log_tiles SET hashes = sha256('x')`, `DELETE FROM log_tiles`, `TRUNCATE log_tiles`, `UPDATE log_checkpoints SET size = 2`,
	} {
		if _, err := l.Pool.Exec(context.WithoutCancel(t.Context()), forbidden); err == nil {
			t.Errorf("%s was let through", forbidden)
		}
	}
}

func TestTwoKeysSignWhileKeysAreChanged(t *testing.T) {
	t.Parallel()
	l := logtest.New(t)
	l.Create("org_a", "a key")
	keys, err := transparency.ParsePrivateKeys(strings.Repeat("11", 32) + ", " + strings.Repeat("22", 32))
	logtest.Must(t, err)
	logtest.Must(t, newTree(t, l, domain.Lifecycle, func(o *transparency.Options) { o.Keys = keys }).Advance(t.Context()))
	signed, err := transparency.NewReader(l.Pool, l.Store).Checkpoint(t.Context(), domain.Lifecycle)
	logtest.Must(t, err)
	for _, key := range transparency.Public(keys) {
		back, err := transparency.ParsePublicKey(transparency.PublicKeyText(key))
		logtest.Must(t, err)
		c, err := transparency.Open(signed, transparency.Keys{back})
		logtest.Must(t, err)
		text, err := transparency.VerifierKey(c.Origin, key)
		logtest.Must(t, err)
		if again, err := transparency.ParsePublicKey(text); err != nil || !again.Equal(key) {
			t.Errorf("%s is not read back: %v", text, err)
		}
	}
	if _, err := transparency.Open(signed, transparency.Public([]ed25519.PrivateKey{privateKey()})); err == nil {
		t.Error("a key that did not sign is believed")
	}
}
