package audit_test

import (
	"bytes"
	"testing"

	"github.com/jackc/pgx/v5"

	"keyledger/audit"
	"keyledger/domain"
	"keyledger/internal/testkit"
)

func (l *ledger) erase(organization domain.OrganizationID) {
	l.t.Helper()
	_, _, err := l.ChangeOrganization(l.t.Context(), domain.Request{}, organization, domain.EraseOrganization{Now: now(), Organization: organization})
	must(l.t, err)
}

func TestWhatContradictsAnErasureIsFound(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	owner := l.Owner()
	_, err := owner.Exec(t.Context(), `CREATE TABLE stolen AS SELECT * FROM data_keys`)
	must(t, err)
	key := l.Create("org_a", "first") // 1
	l.Create("org_b", "stays")
	_, err = owner.Exec(t.Context(), `INSERT INTO stolen SELECT * FROM data_keys`)
	must(t, err)
	l.erase("org_a") // 3
	// What names nobody may follow.
	_, _, err = l.ChangeKey(t.Context(), domain.Request{}, key.ID, domain.RevokeKey{Now: now(), Organization: "org_a"})
	must(t, err)
	l.Create("org_b", "goes on") // 5
	l.sign()
	if report := l.verify(audit.Options{}); !report.OK {
		t.Fatalf("an erasure is taken for a fault: %v", report.Faults)
	}
	expect := func(what string, position domain.Position) {
		t.Helper()
		report := l.verify(audit.Options{})
		if len(report.Faults) != 1 || report.Faults[0].Position != position || report.Faults[0].Lane != domain.Lifecycle {
			t.Errorf("%s: the audit says %v", what, report.Faults)
		}
	}
	l.forge(owner, `INSERT INTO data_keys SELECT * FROM stolen WHERE organization = 'org_a'`)
	expect("a data key that came back", 3)
	l.forge(owner, `DELETE FROM data_keys WHERE organization = 'org_a'; DELETE FROM erased_organizations`)
	expect("an erasure that is not listed", 3)
	// Now the log does not refuse any more, and a process that never met the erasure neither.
	on(t, l.db).Create("org_a", "again") // 6
	l.forge(owner, `INSERT INTO erased_organizations VALUES ('org_a', 3, now()); DELETE FROM data_keys WHERE organization = 'org_a'`)
	expect("a key that was made after the erasure", 6)
}

func TestAnErasureMovesAlong(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	l.Create("org_a", "first")
	l.Create("org_b", "stays")
	l.erase("org_a")
	l.sign()
	file := read(t, l.export(func(o *audit.ExportOptions) { o.DataKeys = true }))
	if report := l.verifyFile(file); !report.OK {
		t.Fatal(report.Faults)
	}
	db := testkit.Database(t)
	conn, err := pgx.Connect(t.Context(), db.AdminURL)
	must(t, err)
	defer conn.Close(t.Context()) //nolint:errcheck // the test ends
	must(t, audit.Import(t.Context(), conn, bytes.NewReader(file), nil))
	moved := on(t, db)
	if report := moved.verify(audit.Options{}); !report.OK {
		t.Error(report.Faults)
	}
	for r, err := range moved.Read(t.Context(), domain.Lifecycle, 0) {
		must(t, err)
		e, err := moved.Decode(t.Context(), r)
		must(t, err)
		if e.Erased != (r.Organization == "org_a" && r.Sealed != nil) {
			t.Errorf("position %d is erased: %v", r.Position, e.Erased)
		}
	}
	_, _, err = moved.ChangeOrganization(t.Context(), domain.Request{}, "org_a", domain.AddMember{Now: now(), Organization: "org_a", User: "ada", Role: "owner"})
	if domain.CodeOf(err) != domain.CodeForbidden {
		t.Errorf("after the move a member is added: %v", err)
	}
}
