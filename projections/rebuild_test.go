package projections_test

import (
	"context"
	"errors"
	"iter"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"

	"keyledger/domain"
	"keyledger/eventstore"
	"keyledger/projections"
	"keyledger/projections/internal/logtest"
	"keyledger/projections/keylist"
	"keyledger/projections/usage"
)

func rebuild(t *testing.T, log *logtest.Log, p projections.Rebuildable) projections.Report {
	t.Helper()
	report, err := projections.Rebuild(patient(t), projections.RebuildOptions{AdminURL: log.DB.AdminURL, Log: log, Projection: p})
	logtest.Must(t, err)
	return report
}

// populate fills a log with keys, revocations, members and uses, and drives both projections.
func populate(t *testing.T, log *logtest.Log) []domain.Key {
	t.Helper()
	var keys []domain.Key
	for i := range 12 {
		key := log.Create("org_a", "a key")
		keys = append(keys, key)
		log.CreateQuota("org_a", "a key with a quota", domain.Quota{Limit: domain.MostQuota, Refill: domain.RefillMonth})
		if i%3 == 0 {
			log.Revoke(key)
			log.AddMember("org_a", "usr_9")
		}
		at := key.CreatedAt.Add(time.Duration(i) * time.Hour)
		log.Use("org_a",
			domain.Use{Key: key.ID, Outcome: domain.OutcomeValid, Count: 3, First: at, Last: at},
			domain.Use{Key: key.ID, Outcome: domain.OutcomeExpired, Count: 1, First: at, Last: at})
	}
	logtest.Must(t, follow(log, keylist.New(log.Pool)).CatchUp(patient(t), log.End(domain.Lifecycle)))
	logtest.Must(t, follow(log, usage.New(log.Pool)).CatchUp(patient(t), log.End(domain.Usage)))
	return keys
}

func TestARebuildEqualsWhatStoodThereBefore(t *testing.T) {
	t.Parallel()
	log := logtest.New(t)
	populate(t, log)
	before := catalog(t, log)
	for _, p := range []projections.Rebuildable{keylist.New(log.Pool), usage.New(log.Pool)} {
		report := rebuild(t, log, p)
		if !report.Comparison.Equal() || !report.Swapped || report.Position != log.End(p.Lane()) {
			t.Errorf("%s: %+v", p.Name(), report)
		}
		for _, table := range report.Comparison.Tables {
			if table.Rows == 0 {
				t.Errorf("%s: nothing was compared", table.Table)
			}
		}
	}
	if diff := cmp.Diff(before, catalog(t, log)); diff != "" {
		t.Errorf("tables, indexes or rights are not as they were (-before +after):\n%s", diff)
	}
	// The service goes on with the new tables, with the rights that it has.
	log.Create("org_a", "after it")
	list := keylist.NewList(log.Pool, follow(log, keylist.New(log.Pool)))
	views, err := list.List(patient(t), domain.KeyQuery{Organization: "org_a"})
	logtest.Must(t, err)
	if diff := cmp.Diff(log.Keys("org_a"), keysOf(views)); diff != "" {
		t.Errorf("the list is not the fold of the streams (-streams +list):\n%s", diff)
	}
}

func keysOf(views []domain.KeyView) []domain.Key {
	keys := make([]domain.Key, len(views))
	for i, view := range views {
		keys[i] = view.Key
	}
	return keys
}

// catalog describes the projections' tables as the database knows them.
func catalog(t *testing.T, log *logtest.Log) []string {
	t.Helper()
	rows, err := log.Owner().Query(t.Context(), `
SELECT format('%s owner=%s options=%s rights=%s', c.relname, pg_get_userbyid(c.relowner), c.reloptions,
              (SELECT array_agg(a::text ORDER BY a::text) FROM unnest(c.relacl) a))
  FROM pg_class c WHERE c.relkind = 'r' AND c.relname ~ '^(keylist|usage_|projection_)'
UNION ALL SELECT indexdef FROM pg_indexes WHERE tablename ~ '^(keylist|usage_|projection_)'
UNION ALL SELECT format('%s %s %s', conrelid::regclass, conname, pg_get_constraintdef(oid)) FROM pg_constraint WHERE conrelid::regclass::text ~ '^(keylist|usage_|projection_)'
UNION ALL SELECT 'checkpoint ' || name FROM projection_checkpoints
ORDER BY 1`)
	logtest.Must(t, err)
	var lines []string
	for rows.Next() {
		var line string
		logtest.Must(t, rows.Scan(&line))
		lines = append(lines, line)
	}
	logtest.Must(t, rows.Err())
	return lines
}

func TestARebuildFindsAndCuresWhatTheLogDoesNotSay(t *testing.T) {
	t.Parallel()
	log := logtest.New(t)
	keys := populate(t, log)
	owner := log.Owner()
	for _, plant := range []struct {
		sql string
		key domain.KeyID
	}{
		{`UPDATE keylist SET revoked = false WHERE key_id = $1`, keys[0].ID},
		{`UPDATE keylist SET scopes = '{admin}' WHERE key_id = $1`, keys[1].ID},
		{`DELETE FROM keylist WHERE key_id = $1`, keys[2].ID},
		{`INSERT INTO keylist SELECT $1, organization, digest, prefix, name, scopes, rate_limit, created_at, created_by, expires_at, disabled, revoked, revoked_at, version, position
		    FROM keylist LIMIT 1`, domain.KeyID(logtest.NewID(t))},
		{`UPDATE usage_keys SET accepted = accepted + 1 WHERE key_id = $1`, keys[3].ID},
		{`UPDATE usage_hours SET count = count + 1 WHERE key_id = $1 AND outcome = 0`, keys[4].ID},
	} {
		tag, err := owner.Exec(t.Context(), plant.sql, [16]byte(plant.key))
		logtest.Must(t, err)
		if tag.RowsAffected() != 1 {
			t.Fatalf("%s: %v", plant.sql, tag)
		}
	}
	list, err := projections.Rebuild(patient(t), projections.RebuildOptions{
		AdminURL: log.DB.AdminURL, Log: log, Projection: keylist.New(log.Pool), CompareOnly: true,
	})
	logtest.Must(t, err)
	table := list.Comparison.Tables[0]
	if list.Swapped || list.Comparison.Equal() || table.Different != 2 || table.OnlyLive != 1 || table.OnlyRebuilt != 1 || len(table.Keys) != 4 {
		t.Errorf("the comparison says %+v", list)
	}
	if again := rebuild(t, log, keylist.New(log.Pool)); !cmp.Equal(again.Comparison, list.Comparison) || !again.Swapped {
		t.Errorf("the rebuild says %+v after %+v", again, list)
	}
	if cured := rebuild(t, log, keylist.New(log.Pool)); !cured.Comparison.Equal() {
		t.Errorf("after the swap: %+v", cured.Comparison)
	}

	uses := rebuild(t, log, usage.New(log.Pool))
	if tables := uses.Comparison.Tables; tables[0].Different != 1 || tables[1].Different != 1 {
		t.Errorf("the uses compare as %+v", tables)
	}
	if cured := rebuild(t, log, usage.New(log.Pool)); !cured.Comparison.Equal() {
		t.Errorf("after the swap: %+v", cured.Comparison)
	}
}

func TestARebuildCuresAnotherHistory(t *testing.T) {
	t.Parallel()
	log := logtest.New(t)
	populate(t, log)
	_, err := log.Owner().Exec(t.Context(), `SELECT raise_epoch('a backup was restored')`)
	logtest.Must(t, err)
	restarted := logtest.Open(t, log.Pool)
	projection := keylist.New(log.Pool)
	if err := follow(restarted, projection).Run(patient(t)); !errors.Is(err, projections.ErrForeign) {
		t.Fatalf("Run ended with %v", err)
	}
	report, err := projections.Rebuild(patient(t), projections.RebuildOptions{AdminURL: log.DB.AdminURL, Log: restarted, Projection: projection})
	logtest.Must(t, err)
	if report.Comparison.Skipped == "" || report.Comparison.Equal() || !report.Swapped {
		t.Errorf("the rebuild says %+v", report)
	}
	at, err := projection.Checkpoint(t.Context())
	logtest.Must(t, err)
	head, err := restarted.Head(t.Context(), domain.Lifecycle)
	logtest.Must(t, err)
	if at != projections.Checkpoint(head) {
		t.Errorf("the checkpoint is %+v, the head %+v", at, head)
	}
}

// Writers, readers and drivers of two nodes go on while the list is rebuilt again and again.
func TestARebuildDisturbsNobody(t *testing.T) {
	t.Parallel()
	log := logtest.New(t)
	populate(t, log)
	follower := follow(log, keylist.New(log.Pool))
	logtest.Background(t, "the follower", follower.Run)
	other := keylist.NewList(log.Pool, follow(log, keylist.New(log.Pool)))

	ctx, stop := context.WithCancel(patient(t))
	var group errgroup.Group
	for range 3 {
		group.Go(func() error {
			for ctx.Err() == nil {
				key, err := log.TryCreate("org_b", "a key", time.Now())
				if err != nil {
					return err
				}
				view, err := other.Get(patient(t), "org_b", key.ID, 0)
				if err != nil {
					return err
				}
				if !cmp.Equal(view.Key, key) {
					return errors.New("the list shows another key than was created")
				}
			}
			return nil
		})
	}
	for range 5 {
		if report := rebuild(t, log, keylist.New(log.Pool)); !report.Comparison.Equal() || !report.Swapped {
			t.Errorf("the rebuild says %+v", report)
		}
	}
	stop()
	logtest.Must(t, group.Wait())
}

func TestASecondRebuildIsRefused(t *testing.T) {
	t.Parallel()
	log := logtest.New(t)
	populate(t, log)
	var second error
	_, err := projections.Rebuild(patient(t), projections.RebuildOptions{
		AdminURL: log.DB.AdminURL, Log: log, Projection: keylist.New(log.Pool),
		Progress: func(done, total domain.Position) {
			_, second = projections.Rebuild(patient(t), projections.RebuildOptions{AdminURL: log.DB.AdminURL, Log: log, Projection: keylist.New(log.Pool)})
		},
	})
	logtest.Must(t, err)
	if domain.CodeOf(second) != domain.CodeUnprocessable {
		t.Errorf("the second one ended with %v", second)
	}
}

// late is a log whose live projection moves on after the rebuild has asked for
// the head for the last time, so that the swap itself has to fold the rest.
type late struct {
	projections.Log
	heads atomic.Int64
	move  func()
	swap  atomic.Bool // from now on the rebuild reads inside its swap
	stall chan struct{}
}

func (l *late) Head(ctx context.Context, lane domain.Lane) (eventstore.Head, error) {
	head, err := l.Log.Head(ctx, lane)
	if l.heads.Add(1) == 3 { // prepare, live, end
		l.move()
		l.swap.Store(true)
	}
	return head, err
}

func (l *late) Read(ctx context.Context, lane domain.Lane, after domain.Position) iter.Seq2[eventstore.Recorded, error] {
	if l.swap.Load() && l.stall != nil {
		<-l.stall
	}
	return l.Log.Read(ctx, lane, after)
}

func moveOn(t *testing.T, log *logtest.Log) func() {
	return func() {
		log.Create("org_a", "a late key")
		logtest.Must(t, follow(log, keylist.New(log.Pool)).CatchUp(patient(t), log.End(domain.Lifecycle)))
	}
}

func TestASwapLosesNothingThatTheLiveListHasShown(t *testing.T) {
	t.Parallel()
	log := logtest.New(t)
	populate(t, log)
	moving := &late{Log: log, move: moveOn(t, log)}
	report, err := projections.Rebuild(patient(t), projections.RebuildOptions{AdminURL: log.DB.AdminURL, Log: moving, Projection: keylist.New(log.Pool)})
	logtest.Must(t, err)
	if !report.Swapped || report.Position != log.End(domain.Lifecycle) || report.Comparison.Position != report.Position-1 {
		t.Errorf("the rebuild says %+v", report)
	}
	if again := rebuild(t, log, keylist.New(log.Pool)); !again.Comparison.Equal() {
		t.Errorf("after it: %+v", again.Comparison)
	}
}

func TestARebuildPausedInItsSwapIsEndedByTheServer(t *testing.T) {
	t.Parallel()
	log := logtest.New(t)
	populate(t, log)
	paused := &late{Log: log, move: moveOn(t, log), stall: make(chan struct{})}
	ended := make(chan error, 1)
	go func() {
		_, err := projections.Rebuild(patient(t), projections.RebuildOptions{AdminURL: log.DB.AdminURL, Log: paused, Projection: keylist.New(log.Pool)})
		ended <- err
	}()
	logtest.AwaitLock(t, log, "keylist", "AccessExclusiveLock")

	list := keylist.NewList(log.Pool, follow(log, keylist.New(log.Pool)))
	views, err := list.List(patient(t), domain.KeyQuery{Organization: "org_a"})
	logtest.Must(t, err)
	if len(views) != len(log.Keys("org_a")) {
		t.Errorf("the list has %d keys", len(views))
	}
	close(paused.stall)
	if err := await(t, "the rebuild's end", ended); domain.CodeOf(err) != domain.CodeUnavailable {
		t.Errorf("the rebuild ended with %v", err)
	}
	if again := rebuild(t, log, keylist.New(log.Pool)); !again.Comparison.Equal() || !again.Swapped {
		t.Errorf("the next one says %+v", again)
	}
}
