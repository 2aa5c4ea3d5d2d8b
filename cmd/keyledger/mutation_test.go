package main_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"keyledger/domain"
	"keyledger/eventstore"
	"keyledger/internal/servertest"
	"keyledger/internal/testkit"
	"keyledger/projections/transparency"
)

// usualMutations are tried in every run; KEYLEDGER_SOAK tries so many times as many, up to 1,000.
const usualMutations = 20

func TestTheCommandLineFindsEveryMutationOfARealDatabase(t *testing.T) {
	t.Parallel()
	times := 1
	if text := os.Getenv("KEYLEDGER_SOAK"); text != "" {
		var err error
		if times, err = strconv.Atoi(text); err != nil {
			t.Fatalf("KEYLEDGER_SOAK must be a number: %v", err)
		}
	}
	db := testkit.Database(t)
	end, kept, public := signedLog(t, db)
	owner, err := pgx.Connect(t.Context(), db.AdminURL)
	if err != nil {
		t.Fatal(err)
	}
	defer owner.Close(t.Context()) //nolint:errcheck // the test ends
	forge := func(sql string) {
		t.Helper()
		if _, err := owner.Exec(t.Context(), `SET session_replication_role = replica; `+sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	save, restore := "", ""
	for _, table := range []string{"events_lifecycle", "log_head", "log_tiles", "log_trees", "log_checkpoints"} {
		save += fmt.Sprintf("CREATE TABLE saved_%s AS SELECT * FROM %[1]s; ", table)
		restore += fmt.Sprintf("DELETE FROM %s; INSERT INTO %[1]s SELECT * FROM saved_%[1]s; ", table)
	}
	forge(save)
	command := servertest.Command{
		Args: []string{"audit", "verify", "--json", "--key", public, "--checkpoint", kept},
		Env:  []string{"DATABASE_URL=" + db.URL, "KEYLEDGER_DATABASE_ADMIN_URL=" + db.AdminURL, "KEYLEDGER_DATA_DIR=" + filepath.Join(t.TempDir(), "nothing")},
	}
	audited := func() (v verified, code int) {
		t.Helper()
		result := servertest.Run(t, command)
		if err := json.Unmarshal([]byte(result.Stdout), &v); err != nil {
			t.Fatalf("it printed %s (%v): %s", result.Stdout, err, result.Stderr)
		}
		return v, result.Code
	}
	if v, code := audited(); !v.OK || code != 0 {
		t.Fatalf("the ledger itself has faults: %+v", v)
	}
	seed := uint64(time.Now().UnixNano())
	random := mathrand.New(mathrand.NewPCG(seed, 1)) //nolint:gosec // a test's
	for range min(usualMutations*times, 1000) {
		what, sql, positions := mutation(random, end)
		forge(sql)
		v, code := audited()
		if v.OK || code != 1 {
			t.Errorf("seed %d: %s: the ledger is found to be in order", seed, what)
		}
		for _, p := range positions {
			if !slices.ContainsFunc(v.Faults, func(f struct {
				Lane     string
				Position uint64
				Fault    string
			},
			) bool {
				return f.Lane == "lifecycle" && f.Position == uint64(p)
			}) {
				t.Errorf("seed %d: %s at %d is not found, but %+v", seed, what, p, v.Faults)
			}
		}
		forge(restore)
	}
	if v, code := audited(); !v.OK || code != 0 {
		t.Errorf("afterwards the ledger has faults: %+v", v)
	}
}

// mutation gives a change, as SQL, and the positions at which it must be found.
func mutation(r *mathrand.Rand, end int) (what, sql string, at []int) {
	p := 1 + r.IntN(end)
	row := fmt.Sprintf(" WHERE lane = 'lifecycle' AND position = %d", p)
	bit := func(column string) string {
		return fmt.Sprintf("%s = set_bit(%[1]s, %d %% (8 * octet_length(%[1]s)), 1 - get_bit(%[1]s, %[2]d %% (8 * octet_length(%[1]s))))", column, r.IntN(1<<20))
	}
	switch r.IntN(20) {
	case 0:
		return "a bit in the data", "UPDATE events SET " + bit("data") + row, []int{p}
	case 1:
		return "a bit in the metadata", "UPDATE events SET " + bit("metadata") + row, []int{p}
	case 2:
		return "a bit in what is sealed", "UPDATE events SET sealed = coalesce(sealed, '\\x00')" + row + "; UPDATE events SET " + bit("sealed") + row, []int{p}
	case 3:
		return "what is sealed is gone", "UPDATE events SET sealed = CASE WHEN sealed IS NULL THEN '\\x01'::bytea END" + row, []int{p}
	case 4:
		return "an id", "UPDATE events SET id = gen_random_uuid()" + row, []int{p}
	case 5:
		return "an epoch", "UPDATE events SET epoch = epoch + 1" + row, []int{p}
	case 6:
		return "a stream", "UPDATE events SET stream = stream || 'x'" + row, []int{p}
	case 7:
		return "a version", "UPDATE events SET version = version + 100" + row, []int{p}
	case 8:
		return "an organization", "UPDATE events SET organization = organization || 'x'" + row, []int{p}
	case 9:
		return "a type", "UPDATE events SET type = CASE type WHEN 'KeyCreated' THEN 'KeyRevoked' ELSE 'KeyCreated' END" + row, []int{p}
	case 10:
		return "a schema", "UPDATE events SET schema = schema + 1" + row, []int{p}
	case 11:
		return "a time", fmt.Sprintf("UPDATE events SET recorded_at = recorded_at + %d * interval '1 microsecond'", 1+r.IntN(1_000_000)) + row, []int{p}
	case 12:
		return "a deletion", "DELETE FROM events" + row, []int{p}
	case 13:
		q := 1 + (p+r.IntN(end-1))%end
		return "an exchange", fmt.Sprintf(`UPDATE events_lifecycle SET position = 1000000 WHERE position = %d; UPDATE events_lifecycle SET position = %[1]d WHERE position = %[2]d;
			UPDATE events_lifecycle SET position = %[2]d WHERE position = 1000000`, p, q), []int{p, q}
	case 14:
		return "an insertion", fmt.Sprintf(`UPDATE events_lifecycle SET position = position + 1000000 WHERE position >= %d; UPDATE events_lifecycle SET position = position - 999999 WHERE position >= 1000000;
			INSERT INTO events SELECT lane, %[1]d, epoch, gen_random_uuid(), stream || '2', version, organization, type, schema, recorded_at, data, metadata, sealed
			  FROM events WHERE lane = 'lifecycle' AND position = %d; UPDATE log_head SET position = position + 1 WHERE lane = 'lifecycle'`, p, p+1), []int{p}
	case 15:
		return "an end that was cut off", fmt.Sprintf("DELETE FROM events WHERE lane = 'lifecycle' AND position >= %d; UPDATE log_head SET position = %[1]d - 1 WHERE lane = 'lifecycle'", p), []int{p}
	case 16:
		return "an older copy, whole in itself", fmt.Sprintf(`DELETE FROM events WHERE lane = 'lifecycle' AND position >= %d; UPDATE log_head SET position = %[1]d - 1 WHERE lane = 'lifecycle';
			DELETE FROM log_tiles WHERE lane = 'lifecycle'; DELETE FROM log_checkpoints WHERE lane = 'lifecycle';
			UPDATE log_trees SET size = 0, root = sha256(''), epoch = 0, ledger_id = '00000000-0000-0000-0000-000000000000' WHERE lane = 'lifecycle'`, p), []int{p}
	case 17:
		return "a bit in a tile", fmt.Sprintf(`UPDATE log_tiles SET hashes = set_bit(hashes, %d, 1 - get_bit(hashes, %[1]d)) WHERE lane = 'lifecycle' AND level = 0`, 256*(p-1)+r.IntN(256)), []int{p}
	case 18:
		return "a stored checkpoint", fmt.Sprintf(`UPDATE log_checkpoints SET note = replace(note, E'\n%d\n', E'\n%d\n') WHERE lane = 'lifecycle'`, end, end-1), []int{end}
	}
	return "the root of the tree", fmt.Sprintf(`UPDATE log_trees SET root = sha256('%d') WHERE lane = 'lifecycle'`, r.Int64()), []int{end}
}

// signedLog makes a log of some events with a tree over it, and keeps its checkpoint.
func signedLog(t *testing.T, db testkit.DB) (end int, kept, public string) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	pool, err := eventstore.Connect(t.Context(), db.URL, eventstore.ConnectOptions{MaxConns: 4})
	must(err)
	defer pool.Close()
	store, err := eventstore.Open(t.Context(), eventstore.Options{Pool: pool, MasterKey: make([]byte, 32)})
	must(err)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- store.Run(ctx) }()
	defer func() { stop(); must(<-done) }()
	for i := range 20 {
		id, err := domain.NewID(time.Now(), rand.Reader)
		must(err)
		at := time.Now().UTC().Truncate(time.Microsecond)
		organization := domain.OrganizationID(fmt.Sprint("org_", i%3))
		key, _, err := store.ChangeKey(t.Context(), domain.Request{}, domain.KeyID(id), domain.CreateKey{
			Now: at, Key: domain.KeyID(id), Organization: organization, Digest: domain.Digest{byte(i), 1}, Prefix: "bsk_live_0000", Name: fmt.Sprint("key ", i),
			Scopes: domain.Scopes{domain.ScopeRead}, Granter: domain.Scopes{domain.ScopeAll},
		})
		must(err)
		if i%2 == 0 {
			_, _, err := store.ChangeKey(t.Context(), domain.Request{}, key.ID, domain.RevokeKey{Now: at, Organization: organization, Reason: "leaked"})
			must(err)
		}
	}
	private := ed25519.NewKeyFromSeed([]byte("32 bytes of which a key is made.."[:32]))
	tree, err := transparency.New(transparency.Options{Pool: pool, Log: store, Lane: domain.Lifecycle, Keys: []ed25519.PrivateKey{private}})
	must(err)
	must(tree.Advance(t.Context()))
	note, err := transparency.NewReader(pool, store).Checkpoint(t.Context(), domain.Lifecycle)
	must(err)
	kept = filepath.Join(t.TempDir(), "kept.note")
	must(os.WriteFile(kept, note, 0o600))
	head, err := store.Head(t.Context(), domain.Lifecycle)
	must(err)
	return int(head.Position), kept, base64.StdEncoding.EncodeToString(private.Public().(ed25519.PublicKey)) //nolint:forcetypeassert // it always is one
}
