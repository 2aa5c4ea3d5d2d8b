package main_test

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"keyledger/internal/servertest"
)

func TestOldUsesMoveToAnArchive(t *testing.T) {
	t.Parallel()
	server := servertest.Start(t, servertest.Options{Env: []string{"KEYLEDGER_FLUSH_INTERVAL=10ms"}})
	admin, err := pgx.Connect(t.Context(), server.Endpoints().DatabaseAdmin)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close(t.Context()) //nolint:errcheck // the test ends
	if _, err := admin.Exec(t.Context(), `DROP TABLE events_usage_000000, events_usage_000001;
		DO $$ BEGIN FOR n IN 0..99 LOOP
			EXECUTE format('CREATE TABLE %I PARTITION OF events_usage (PRIMARY KEY (position)) FOR VALUES FROM (%s) TO (%s)', 'events_usage_' || lpad(n::text, 6, '0'), n * 4, (n + 1) * 4);
			EXECUTE format('CREATE UNIQUE INDEX ON %I (stream, version)', 'events_usage_' || lpad(n::text, 6, '0'));
		END LOOP; END $$`); err != nil {
		t.Fatal(err)
	}
	key := server.Bootstrap("org_1")
	var head, counted, signed int
	settled := func() bool {
		// Counted, published and signed, each of which runs behind the lane.
		err := admin.QueryRow(t.Context(), `SELECT h.position, c.position, s.size FROM log_head h, projection_checkpoints c, log_trees s
			WHERE h.lane = 'usage' AND c.name = 'usage' AND s.lane = 'usage'`).Scan(&head, &counted, &signed)
		if err != nil {
			t.Fatal(err)
		}
		return head >= 12 && counted >= 12 && signed >= 12
	}
	poll := time.NewTicker(30 * time.Millisecond)
	defer poll.Stop()
	for started := time.Now(); !settled(); <-poll.C {
		if time.Since(started) > time.Minute {
			t.Fatalf("the lane is at %d, counted to %d, signed to %d", head, counted, signed)
		}
		if head < 12 {
			verdict(t, server.URL(), key)
		}
	}
	file := filepath.Join(t.TempDir(), "old.ndjson.zst")
	if result := server.Run("usage", "detach", "--before", "10", "-o", file); result.Code != 2 {
		t.Errorf("nobody was asked: %d %s", result.Code, result.Stderr)
	}
	if told := succeed(t, server, "usage", "detach", "--before", "10", "-o", file, "--dry-run", "--json").Stdout; !strings.Contains(told, `"first":1,"last":7,"parts":2`) {
		t.Errorf("the dry run says %s", told)
	}
	succeed(t, server, "usage", "detach", "--before", "10", "-o", file, "--yes")
	// The numbers of real parts are of 16,777,216 positions each: these two would be made again.
	if _, err := admin.Exec(t.Context(), `CREATE TABLE events_usage_000000 (); CREATE TABLE events_usage_000001 ()`); err != nil {
		t.Fatal(err)
	}
	if told := succeed(t, server, "usage", "detach", "--before", "8", "-o", file, "--json").Stdout; !strings.Contains(told, `"parts":0`) {
		t.Errorf("a second time: %s", told)
	}
	if v := succeed(t, server, "audit", "verify", "--archive", file); strings.Contains(v.Stderr, "detached") {
		t.Errorf("the audit says %s", v.Stderr)
	}
	if v := succeed(t, server, "audit", "verify"); !strings.Contains(v.Stderr, "--archive") {
		t.Errorf("the audit says %s", v.Stderr)
	}
	if told := succeed(t, server, "replay"); !strings.Contains(told.Stderr, "usage: left as it is") {
		t.Errorf("the replay says %s", told.Stderr)
	}
	if told := succeed(t, server, "replay", "--archive", file); !strings.Contains(told.Stderr, "usage: the result equals") {
		t.Errorf("the replay says %s", told.Stderr)
	}
	server.Stop()
	server = servertest.Start(t, servertest.Options{DataDir: server.DataDir()})
	if code := verdict(t, server.URL(), key); code != "VALID" {
		t.Errorf("after a restart the key is %s", code)
	}
}
