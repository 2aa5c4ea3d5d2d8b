package audit_test

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"keyledger/audit"
	"keyledger/domain"
	"keyledger/projections/transparency"
)

const mutations = 4000

// soak gives how often something random is tried: KEYLEDGER_SOAK says how many
// times as often as usual.
func soak(t testing.TB, usual, most int) int {
	t.Helper()
	text := os.Getenv("KEYLEDGER_SOAK")
	if text == "" {
		return usual
	}
	times, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("KEYLEDGER_SOAK must be a number: %v", err)
	}
	return min(usual*times, most)
}

func TestEveryRandomMutationOfALogIsFoundAtItsPosition(t *testing.T) {
	t.Parallel()
	sample := audit.NewSample(30)
	if faults := sample.Clean(); len(faults) > 0 {
		t.Fatalf("the log itself has faults: %v", faults)
	}
	seed := uint64(time.Now().UnixNano())
	random := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // a test's
	kinds := map[string]int{}
	for range soak(t, mutations, 1_000_000) {
		what, at, faults := sample.Mutate(random)
		kinds[what]++
		for _, position := range at {
			if !slices.ContainsFunc(faults, func(f audit.Fault) bool { return f.Position == position }) {
				t.Fatalf("seed %d: %s at %d is not found, but %v", seed, what, position, faults)
			}
		}
	}
	if len(kinds) < 16 {
		t.Errorf("only %d kinds of mutations were tried: %v", len(kinds), kinds)
	}
}

// columns are what can be changed in a row of a real database, as SQL. Every one
// of them leaves the row acceptable to the table.
var columns = []struct{ name, change string }{
	{"epoch", `epoch = epoch + 1`},
	{"id", `id = gen_random_uuid()`},
	{"stream", `stream = stream || 'x'`},
	{"version", `version = version + 100`},
	{"organization", `organization = organization || 'x'`},
	{"type", `type = CASE type WHEN 'KeyCreated' THEN 'KeyRevoked' ELSE 'KeyCreated' END`},
	{"schema", `schema = schema + 1`},
	{"recorded_at", `recorded_at = recorded_at + interval '1 microsecond'`},
	{"data", `data = set_byte(data, octet_length(data) - 2, get_byte(data, octet_length(data) - 2) # 1)`},
	{"metadata", `metadata = set_byte(metadata, octet_length(metadata) - 2, get_byte(metadata, octet_length(metadata) - 2) # 4)`},
	{"sealed", `sealed = set_byte(sealed, octet_length(sealed) - 1, get_byte(sealed, octet_length(sealed) - 1) # 128)`},
	{"sealed, gone", `sealed = NULL`},
}

func TestEveryMutationOfARealDatabaseIsFoundAtItsPosition(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	l.fill(30)
	kept := l.sign()
	owner := l.Owner()
	restore := l.save(owner)
	if report := l.verify(audit.Options{Keys: l.public()}); !report.OK {
		t.Fatalf("the ledger itself has faults: %v", report.Faults)
	}
	random := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 2)) //nolint:gosec // a test's
	end := int(l.End(domain.Lifecycle))
	try := func(what, sql string, positions ...int) {
		t.Helper()
		l.forge(owner, sql)
		report := l.verify(audit.Options{Keys: l.public(), Trusted: []audit.Trusted{{Note: kept, Source: "a file"}}})
		for _, p := range positions {
			if !slices.ContainsFunc(report.Faults, func(f audit.Fault) bool {
				return f.Lane == domain.Lifecycle && f.Position == domain.Position(p)
			}) {
				t.Errorf("%s at %d is not found, but %v", what, p, report.Faults)
			}
		}
		if report.OK {
			t.Errorf("%s: the ledger is found to be in order", what)
		}
		restore()
	}
	at := func(p int) string { return " WHERE lane = 'lifecycle' AND position = " + strconv.Itoa(p) }
	for range soak(t, 2, 60) {
		for _, c := range columns {
			p := 1 + random.IntN(end)
			try(c.name, "UPDATE events SET "+c.change+at(p), p)
		}
		p, q := 1+random.IntN(end-1), end
		try("a deletion", "DELETE FROM events"+at(p), p)
		try("an exchange", fmt.Sprintf(`UPDATE events_lifecycle SET position = 1000000 WHERE position = %d; UPDATE events_lifecycle SET position = %[1]d WHERE position = %[2]d;
			UPDATE events_lifecycle SET position = %[2]d WHERE position = 1000000`, p, q), p, q)
		try("an insertion", fmt.Sprintf(`INSERT INTO events SELECT lane, %d, epoch, gen_random_uuid(), stream || '2', version, organization, type, schema, recorded_at, data, metadata, sealed FROM events`, end+1)+at(p), end+1)
		try("an insertion with its head", fmt.Sprintf(`UPDATE events_lifecycle SET position = position + 1000000 WHERE position >= %d;
			UPDATE events_lifecycle SET position = position - 999999 WHERE position >= 1000000;
			INSERT INTO events SELECT lane, %[1]d, epoch, gen_random_uuid(), stream || '2', version, organization, type, schema, recorded_at, data, metadata, sealed FROM events WHERE lane = 'lifecycle' AND position = %d;
			UPDATE log_head SET position = position + 1 WHERE lane = 'lifecycle'`, p, p+1), p)
		try("an end that was cut off", "DELETE FROM events WHERE lane = 'lifecycle' AND position >= "+strconv.Itoa(p), p)
		try("an end that was cut off with its head", fmt.Sprintf("DELETE FROM events WHERE lane = 'lifecycle' AND position >= %d; UPDATE log_head SET position = %[1]d - 1 WHERE lane = 'lifecycle'", p), p)
		try("a hash in a tile", fmt.Sprintf(`UPDATE log_tiles SET hashes = set_byte(hashes, %d, get_byte(hashes, %[1]d) # 1) WHERE lane = 'lifecycle' AND level = 0`, 32*(p-1)+random.IntN(32)), p)
		try("a stored checkpoint", fmt.Sprintf(`UPDATE log_checkpoints SET note = replace(note, E'\n%d\n', E'\n%d\n') WHERE lane = 'lifecycle'`, end, end-1), end)
		try("the root of the tree", `UPDATE log_trees SET root = sha256('x') WHERE lane = 'lifecycle'`, end)
	}
}

func TestAnOlderCopyIsFoundWithANewerCheckpointInHand(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	l.fill(10)
	l.sign()
	owner := l.Owner()
	older := l.save(owner)
	end := l.End(domain.Lifecycle)
	l.Create("org_a", "what somebody would like to forget")
	kept := l.sign()
	older()
	if report := l.verify(audit.Options{Keys: l.public()}); !report.OK {
		t.Fatalf("an older copy is a whole ledger, and nothing in it tells: %v", report.Faults)
	}
	report := l.verify(audit.Options{Keys: l.public(), Trusted: []audit.Trusted{{Note: kept, Source: "a file"}}})
	if len(report.Faults) != 1 || report.Faults[0].Position != end+1 {
		t.Errorf("with a newer checkpoint in hand, the audit says %v", report.Faults)
	}
}

func TestAHistoryThatWasWrittenAnewIsFoundWithTheOldCheckpoint(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	l.fill(10)
	kept := l.sign()
	owner := l.Owner()
	// Whoever owns the database and the key writes event and tree anew.
	l.forge(owner, `UPDATE events SET id = gen_random_uuid() WHERE lane = 'lifecycle' AND position = 4; DELETE FROM log_tiles; DELETE FROM log_checkpoints;
		UPDATE log_trees SET size = 0, root = sha256(''), epoch = 0, ledger_id = '00000000-0000-0000-0000-000000000000'`)
	l.sign()
	if report := l.verify(audit.Options{Keys: l.public()}); !report.OK {
		t.Fatalf("a history that was signed anew is whole in itself: %v", report.Faults)
	}
	report := l.verify(audit.Options{Keys: l.public(), Trusted: []audit.Trusted{{Note: kept, Source: "a file"}}})
	if report.OK {
		t.Error("the checkpoint of the first history is found to fit the second one")
	}
	other := ed25519.NewKeyFromSeed(make([]byte, 32)).Public().(ed25519.PublicKey)
	if report := l.verify(audit.Options{Keys: transparency.Keys{other}}); report.OK {
		t.Error("checkpoints that somebody else has signed are taken")
	}
}

func TestARevokedKeyThatActsIsAFault(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	key := l.Create("org_a", "first")
	l.Revoke(key)
	_, _, err := l.ChangeOrganization(t.Context(), domain.Request{Metadata: domain.Metadata{Actor: domain.Actor{Kind: domain.ActorKey, Key: key.ID}}}, "org_a",
		domain.AddMember{Now: time.Now().UTC(), Organization: "org_a", User: "u", Role: "member"})
	if err != nil {
		t.Fatal(err)
	}
	report := l.verify(audit.Options{})
	if len(report.Faults) != 1 || report.Faults[0].Position != 3 {
		t.Errorf("the audit says %v", report.Faults)
	}
}

// forge does what only the owner can, past the triggers.
func (l *ledger) forge(owner *pgxpool.Pool, sql string) {
	l.t.Helper()
	_, err := owner.Exec(context.WithoutCancel(l.t.Context()), `ALTER TABLE events DISABLE TRIGGER USER; ALTER TABLE events_lifecycle DISABLE TRIGGER USER;
		ALTER TABLE log_tiles DISABLE TRIGGER USER; SET session_replication_role = replica; `+sql+`; SET session_replication_role = DEFAULT`)
	if err != nil {
		l.t.Fatalf("%s: %v", sql, err)
	}
}

// save keeps a copy of log and tree, and gives what puts it back.
func (l *ledger) save(owner *pgxpool.Pool) (restore func()) {
	l.t.Helper()
	tables := []string{"events_lifecycle", "log_head", "log_tiles", "log_trees", "log_checkpoints"}
	save, back := "", ""
	for _, table := range tables {
		save += fmt.Sprintf("CREATE TABLE saved_%s AS SELECT * FROM %[1]s; ", table)
		back += fmt.Sprintf("DELETE FROM %s; INSERT INTO %[1]s SELECT * FROM saved_%[1]s; ", table)
	}
	l.forge(owner, save)
	return func() { l.forge(owner, back) }
}
