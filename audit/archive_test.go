package audit_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"keyledger/audit"
	"keyledger/domain"
	"keyledger/projections"
	"keyledger/projections/usage"
)

// smallParts cuts an empty usage lane into parts of so many positions.
const smallParts = `DROP TABLE events_usage_000000, events_usage_000001;
DO $$ BEGIN FOR n IN 0..7 LOOP
	EXECUTE format('CREATE TABLE %%I PARTITION OF events_usage (PRIMARY KEY (position)) FOR VALUES FROM (%%s) TO (%%s)', 'events_usage_' || lpad(n::text, 6, '0'), n * %[1]d, (n + 1) * %[1]d);
	EXECUTE format('CREATE UNIQUE INDEX ON %%I (stream, version)', 'events_usage_' || lpad(n::text, 6, '0'));
END LOOP; END $$`

func TestADetachedPartIsStillVerified(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	owner := l.Owner()
	_, err := owner.Exec(t.Context(), fmt.Sprintf(smallParts, 40))
	must(t, err)
	key := l.Create("org_a", "a key")
	for range 150 {
		l.Use(key)
	}
	l.sign()
	must(t, projections.NewFollower(l.Store, usage.New(l.pool), projections.FollowerOptions{}).CatchUp(t.Context(), 150))
	admin, err := pgx.Connect(t.Context(), l.db.AdminURL)
	must(t, err)
	defer admin.Close(t.Context()) //nolint:errcheck // the test ends
	options := audit.Options{Keys: l.public()}
	dir := t.TempDir()
	archive := func(name string, first, last domain.Position) string {
		t.Helper()
		path := filepath.Join(dir, name)
		_, err := audit.Export(t.Context(), l.pool, audit.ExportOptions{Path: path, Lanes: []audit.LaneRange{{Lane: domain.Usage, From: first, To: last}}})
		must(t, err)
		return path
	}
	detachable := func(before domain.Position) []audit.Part {
		t.Helper()
		parts, err := audit.Detachable(t.Context(), l.pool, l.End(domain.Usage), before)
		must(t, err)
		return parts
	}
	count := func() (n int) {
		t.Helper()
		must(t, l.pool.QueryRow(t.Context(), `SELECT count(*) FROM events WHERE lane = 'usage'`).Scan(&n))
		return n
	}
	if parts := detachable(40); len(parts) != 1 || parts[0].Last != 39 || parts[0].First != 1 {
		t.Fatalf("before position 40 these parts can go: %+v", parts)
	}
	if parts := detachable(1000); len(parts) != 3 {
		t.Fatalf("the part that is written to can go: %+v", parts)
	}

	// What is no archive of just these parts, or is damaged, or is signed by nobody, drops nothing.
	parts := detachable(80)
	good := archive("first", 1, 79)
	damaged := filepath.Join(dir, "damaged")
	all := lines(t, read(t, good))
	all[40] = bytes.Replace(all[40], []byte(`"counts":[3]`), []byte(`"counts":[4]`), 1)
	must(t, os.WriteFile(damaged, pack(t, all), 0o600))
	for what, o := range map[string]audit.DetachOptions{
		"a file of too little": {Path: archive("short", 1, 78), Options: options},
		"a file of too much":   {Path: archive("long", 1, 80), Options: options},
		"a damaged file":       {Path: damaged, Options: options},
		"no key":               {Path: good},
		"no file":              {Path: filepath.Join(dir, "nothing"), Options: options},
	} {
		o.Admin, o.Parts = admin, parts
		if err := audit.Detach(t.Context(), o); err == nil || count() != 150 {
			t.Fatalf("%s: %v, and %d events are left", what, err, count())
		}
	}
	must(t, audit.Detach(t.Context(), audit.DetachOptions{Admin: admin, Parts: parts, Path: good, Options: options}))
	if count() != 150-79 {
		t.Fatalf("%d events are left", count())
	}
	second := archive("second", 80, 119)
	must(t, audit.Detach(t.Context(), audit.DetachOptions{Admin: admin, Parts: detachable(120), Path: second, Options: options}))

	// Alone the tree stands for them; with the archives every event is looked at.
	check := func(what string, events uint64, skipped int, faults string, archives ...string) {
		t.Helper()
		o := options
		o.Archives = archives
		report := l.verify(o)
		var positions []string
		for _, f := range report.Faults {
			positions = append(positions, fmt.Sprint(f.Position))
		}
		if got := strings.Join(positions, " "); got != faults || report.Lanes[1].Events != events || len(report.Skipped) != skipped {
			t.Errorf("%s: %d events, faults %v, not looked at %v", what, report.Lanes[1].Events, report.Faults, report.Skipped)
		}
	}
	check("without archives", 31, 1, "")
	check("with both", 150, 0, "", second, good)
	check("with the first", 110, 1, "", good)
	check("with the second", 31, 2, "", second)
	check("with a damaged one", 150, 0, "40", damaged, second)
	if other := newLedger(t); true {
		if _, err := audit.VerifyDatabase(t.Context(), other.pool, audit.Options{Archives: []string{good}}); err != nil {
			t.Errorf("a ledger that lacks nothing looks at archives: %v", err)
		}
	}

	// A fold from the beginning reads them, too.
	ledger, _ := l.Ledger()
	if from, through, err := audit.Lacks(t.Context(), l.pool, ledger, []string{good}); err != nil || from != 80 || through != 119 {
		t.Errorf("the ledger lacks %d to %d, %v", from, through, err)
	}
	if from, _, err := audit.Lacks(t.Context(), l.pool, ledger, []string{second, good}); err != nil || from != 0 {
		t.Errorf("the ledger lacks what is behind %d, %v", from, err)
	}
	report, err := projections.Rebuild(t.Context(), projections.RebuildOptions{
		AdminURL: l.db.AdminURL, Log: &audit.Archived{Store: l.Store, Paths: []string{second, good}}, Projection: usage.New(l.pool),
	})
	must(t, err)
	if !report.Comparison.Equal() || !report.Swapped || report.Position != 150 {
		t.Errorf("the rebuild says %+v", report)
	}

	// Life goes on, and what is left is exported alone.
	l.Use(key)
	l.sign()
	check("later", 151, 0, "", good, second)
	rest := filepath.Join(dir, "rest")
	_, err = audit.Export(t.Context(), l.pool, audit.ExportOptions{Path: rest, Lanes: []audit.LaneRange{{Lane: domain.Usage}}})
	must(t, err)
	if report := l.verifyFile(read(t, rest)); !report.OK || report.Lanes[0].Events != 31+1 {
		t.Errorf("what is left is %+v", report)
	}
	if _, err := audit.Export(t.Context(), l.pool, audit.ExportOptions{Path: rest, Lanes: []audit.LaneRange{{Lane: domain.Usage, From: 1}}}); domain.CodeOf(err) != domain.CodeNotFound {
		t.Errorf("what was detached is exported: %v", err)
	}
}
