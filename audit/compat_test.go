package audit_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"keyledger/audit"
	"keyledger/domain"
	"keyledger/internal/testkit"
)

var writeLog = flag.String("write-log", "", "write the log of a version that is about to be released, such as v0.2; never over one that is there")

// golden is what a log said when it was written.
type golden struct {
	Note   string   `json:"checkpoint"`
	Events []string `json:"events"`
	Keys   []string `json:"keys"`
}

// Every version that was released has left a log. This one reads all of them, and says the same of
// them as their own version did.
func TestLogsOfEveryReleasedVersionAreRead(t *testing.T) {
	t.Parallel()
	if *writeLog != "" {
		writeGolden(t, *writeLog)
	}
	files, err := filepath.Glob("testdata/logs/*.ndjson.zst")
	if err != nil || len(files) == 0 {
		t.Fatalf("there are %d logs (%v)", len(files), err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			t.Parallel()
			var want golden
			must(t, json.Unmarshal(read(t, strings.TrimSuffix(file, ".ndjson.zst")+".json"), &want))
			l := &ledger{t: t}
			content := read(t, file)
			trusted := audit.Trusted{Note: []byte(want.Note), Source: "the golden file"}
			if report := l.verifyFile(content, trusted); !report.OK {
				t.Fatal(report.Faults)
			}
			db := testkit.Database(t)
			conn, err := pgx.Connect(t.Context(), db.AdminURL)
			must(t, err)
			defer conn.Close(t.Context()) //nolint:errcheck // the test ends
			must(t, audit.Import(t.Context(), conn, bytes.NewReader(content), nil))
			now := on(t, db)
			if diff := cmp.Diff(want.Events, now.events()); diff != "" {
				t.Errorf("the events are read otherwise (-then +now):\n%s", diff)
			}
			if diff := cmp.Diff(want.Keys, now.folded()); diff != "" {
				t.Errorf("the keys are folded otherwise (-then +now):\n%s", diff)
			}
			// And it goes on from there.
			now.Create("org_new", "today")
			now.sign()
			if report := now.verify(audit.Options{Trusted: []audit.Trusted{trusted}}); !report.OK {
				t.Error(report.Faults)
			}
		})
	}
}

// events tells every event, in words that stay as they are whatever the types become.
func (l *ledger) events() []string {
	l.t.Helper()
	var all []string
	for _, lane := range domain.Lanes() {
		for r, err := range l.Read(l.t.Context(), lane, 0) {
			must(l.t, err)
			e, err := l.Decode(l.t.Context(), r)
			must(l.t, err)
			all = append(all, fmt.Sprintf("%s %d %s %s/%d %s erased=%v: %s; by %s", lane, r.Position, r.RecordedAt.Format(time.RFC3339Nano), r.Stream, r.Version,
				r.Organization, e.Erased, tell(e.Event), tellMetadata(e.EventMetadata)))
		}
	}
	return all
}

func tell(event domain.Event) string {
	switch e := event.(type) {
	case domain.KeyCreated:
		return fmt.Sprintf("created %s digest=%s prefix=%s scopes=%v limit=%d expires=%s at=%s name=%q by=%q", e.Key, e.Digest.Hex(), e.Prefix, e.Scopes.Strings(), e.RateLimit,
			e.ExpiresAt.Format(time.RFC3339Nano), e.At.Format(time.RFC3339Nano), e.Name, e.CreatedBy)
	case domain.KeyRevoked:
		return fmt.Sprintf("revoked %s at=%s reason=%q", e.Key, e.At.Format(time.RFC3339Nano), e.Reason)
	case domain.RevocationFenced:
		return fmt.Sprintf("fenced %s position=%d confirmed=%v expired=%v waited=%s at=%s", e.Key, e.Position, e.Confirmed, e.Expired, e.Waited, e.At.Format(time.RFC3339Nano))
	case domain.MemberAdded:
		return fmt.Sprintf("member %q as %s at=%s", e.User, e.Role, e.At.Format(time.RFC3339Nano))
	case domain.MemberRemoved:
		return fmt.Sprintf("no member %q at=%s", e.User, e.At.Format(time.RFC3339Nano))
	case domain.OrganizationErased:
		return fmt.Sprintf("erased reason=%q at=%s", e.Reason, e.At.Format(time.RFC3339Nano))
	case domain.KeyUsed:
		text := fmt.Sprintf("used boot=%s flush=%d at=%s", e.Boot.UUID(), e.Flush, e.At.Format(time.RFC3339Nano))
		for _, u := range e.Uses {
			text += fmt.Sprintf(" [%s %s %d %s %s %d]", u.Key, u.Outcome, u.Count, u.First.Format(time.RFC3339Nano), u.Last.Format(time.RFC3339Nano), u.DecidedAt)
		}
		return text
	}
	return fmt.Sprintf("%T", event)
}

func tellMetadata(m domain.Metadata) string {
	return fmt.Sprintf("%s key=%s user=%q from=%s request=%s trace=%s", m.Actor.Kind, m.Actor.Key, m.Actor.User, m.Source, m.RequestID, m.TraceID)
}

// folded tells the keys as they stand.
func (l *ledger) folded() []string {
	l.t.Helper()
	keys, err := audit.KeysAt(l.t.Context(), l.Store, l.End(domain.Lifecycle), audit.Filter{})
	must(l.t, err)
	var all []string
	for _, k := range keys {
		all = append(all, fmt.Sprintf("%s %s %s %q %v %d by=%q created=%s expires=%s disabled=%v revoked=%v %s", k.ID, k.Organization, k.Prefix, k.Name, k.Scopes.Strings(), k.RateLimit,
			k.CreatedBy, k.CreatedAt.Format(time.RFC3339Nano), k.ExpiresAt.Format(time.RFC3339Nano), k.Disabled, k.Revoked, k.RevokedAt.Format(time.RFC3339Nano)))
	}
	return all
}

// writeGolden makes a log with every event in it.
func writeGolden(t *testing.T, version string) {
	t.Helper()
	path := filepath.Join("testdata", "logs", version+".ndjson.zst")
	if _, err := os.Stat(path); err == nil {
		t.Fatalf("%s is there, and never changes", path)
	}
	l := newLedger(t)
	full := domain.Metadata{
		Actor: domain.Actor{Kind: domain.ActorUser, User: "user_ada"}, RequestID: "req_1", TraceID: "4bf92f3577b34da6a3ce929d0e0e4736", Source: netip.MustParseAddr("2001:db8::7"),
	}
	l.fill(12)
	member := func(organization domain.OrganizationID, command domain.OrganizationCommand) {
		t.Helper()
		_, _, err := l.ChangeOrganization(t.Context(), domain.Request{Metadata: full}, organization, command)
		must(t, err)
	}
	member("org_a", domain.AddMember{Now: now(), Organization: "org_a", User: "user_ada", Role: "owner"})
	member("org_a", domain.RemoveMember{Now: now(), Organization: "org_a", User: "user_ada"})
	key := l.Create("org_a", "a key of \"every\" event \u00e9")
	l.Use(key)
	_, receipt, err := l.ChangeKey(t.Context(), domain.Request{Metadata: domain.Metadata{Actor: domain.Actor{Kind: domain.ActorKey, Key: key.ID}}}, key.ID,
		domain.RevokeKey{Now: now(), Organization: "org_a", Reason: "leaked"})
	must(t, err)
	_, _, err = l.ChangeKey(t.Context(), domain.Request{Metadata: domain.Metadata{Actor: domain.Actor{Kind: domain.ActorService}}}, key.ID,
		domain.RecordFence{Now: now(), Position: receipt.Position, Confirmed: []domain.ID{l.boot}, Expired: []domain.ID{{1}}, Waited: 1060 * time.Millisecond})
	must(t, err)
	l.Create("org_gone", "what is erased")
	member("org_gone", domain.AddMember{Now: now(), Organization: "org_gone", User: "user_bob", Role: "member"})
	_, _, err = l.ChangeOrganization(t.Context(), domain.Request{}, "org_gone", domain.EraseOrganization{Now: now(), Organization: "org_gone", Reason: "ticket 4711"})
	must(t, err)
	types := map[string]bool{}
	note := l.sign()
	for _, lane := range domain.Lanes() {
		for r, err := range l.Read(t.Context(), lane, 0) {
			must(t, err)
			types[r.Type] = true
		}
	}
	for _, e := range []domain.Event{
		domain.KeyCreated{}, domain.KeyRevoked{}, domain.RevocationFenced{}, domain.KeyUsed{}, domain.MemberAdded{}, domain.MemberRemoved{}, domain.OrganizationErased{},
	} {
		if !types[e.EventName()] {
			t.Fatalf("the log has no %s", e.EventName())
		}
	}
	file := read(t, l.export(func(o *audit.ExportOptions) { o.DataKeys = true }))
	text, err := json.MarshalIndent(golden{Note: string(note), Events: l.events(), Keys: l.folded()}, "", "  ")
	must(t, err)
	must(t, os.WriteFile(path, file, 0o644))
	must(t, os.WriteFile(strings.TrimSuffix(path, ".ndjson.zst")+".json", append(text, '\n'), 0o644))
}
