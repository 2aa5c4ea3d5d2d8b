package audit_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/klauspost/compress/zstd"

	"keyledger/audit"
	"keyledger/domain"
	"keyledger/eventstore"
	"keyledger/internal/testkit"
	"keyledger/projections/transparency"
)

func (l *ledger) export(change ...func(*audit.ExportOptions)) string {
	l.t.Helper()
	o := audit.ExportOptions{
		Path: filepath.Join(l.t.TempDir(), "file.ndjson.zst"), Lanes: []audit.LaneRange{{Lane: domain.Lifecycle}, {Lane: domain.Usage}}, DataKeys: true,
	}
	for _, c := range change {
		c(&o)
	}
	_, err := audit.Export(l.t.Context(), l.pool, o)
	must(l.t, err)
	return o.Path
}

func (l *ledger) verifyFile(content []byte, trusted ...audit.Trusted) *audit.Report {
	l.t.Helper()
	report, err := audit.VerifyFile(l.t.Context(), bytes.NewReader(content), audit.Options{Keys: l.public(), Trusted: trusted})
	must(l.t, err)
	return report
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	content, err := os.ReadFile(path)
	must(t, err)
	return content
}

func lines(t testing.TB, file []byte) [][]byte {
	t.Helper()
	decoder, err := zstd.NewReader(nil)
	must(t, err)
	defer decoder.Close()
	plain, err := decoder.DecodeAll(file, nil)
	must(t, err)
	return bytes.Split(bytes.TrimSuffix(plain, []byte("\n")), []byte("\n"))
}

func pack(t testing.TB, lines [][]byte) []byte {
	t.Helper()
	encoder, err := zstd.NewWriter(nil)
	must(t, err)
	return encoder.EncodeAll(append(bytes.Join(lines, []byte("\n")), '\n'), nil)
}

func TestAnExportedFileIsVerifiedAlone(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	l.fill(600)
	kept := l.sign()
	end := l.End(domain.Lifecycle)
	for name, change := range map[string]func(*audit.ExportOptions){
		"all of it":       func(*audit.ExportOptions) {},
		"a part":          func(o *audit.ExportOptions) { o.Lanes = []audit.LaneRange{{Lane: domain.Lifecycle, From: 7, To: 290}} },
		"the end":         func(o *audit.ExportOptions) { o.Lanes = []audit.LaneRange{{Lane: domain.Lifecycle, From: 257}} },
		"an organization": func(o *audit.ExportOptions) { o.Organization = "org_b" },
		"a type":          func(o *audit.ExportOptions) { o.Types = []string{"KeyRevoked"} },
	} {
		file := read(t, l.export(change))
		report := l.verifyFile(file)
		if !report.OK || len(report.Lanes) == 0 || report.Lanes[0].Covered == 0 {
			t.Errorf("%s: %+v", name, report)
		}
		if name == "the end" {
			if report := l.verifyFile(file, audit.Trusted{Note: kept, Source: "a file"}); !report.OK || report.Lanes[0].Checkpoints != 2 || report.Lanes[0].Through != end {
				t.Errorf("with the checkpoint that was kept: %+v", report)
			}
		}
		if name == "an organization" && bytes.Contains(bytes.Join(lines(t, file), nil), []byte("org_a")) {
			for _, line := range lines(t, file)[1:] {
				if bytes.Contains(line, []byte("org_a")) {
					t.Fatalf("the file of one organization tells of another one: %s", line)
				}
			}
		}
	}
}

func TestEveryChangeOfAFileIsFound(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	l.fill(40)
	l.sign()
	whole := lines(t, read(t, l.export()))
	random := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 3)) //nolint:gosec // a test's
	for range soak(t, 200, 50_000) {
		changed := slices.Clone(whole)
		i := 1 + random.IntN(len(whole)-2)
		var at struct{ Position domain.Position }
		must(t, json.Unmarshal(whole[i], &at))
		what := "a byte"
		switch random.IntN(4) {
		case 0, 1:
			line := slices.Clone(whole[i])
			line[random.IntN(len(line))] ^= 1 << random.IntN(7)
			if bytes.ContainsRune(line, '\n') {
				continue
			}
			changed[i] = line
		case 2:
			what = "a line that is gone"
			changed = slices.Delete(changed, i, i+1)
		case 3:
			what = "a line that is there twice"
			changed = slices.Insert(changed, i, whole[i])
		}
		report := l.verifyFile(pack(t, changed))
		if report.OK {
			t.Fatalf("%s at %d is not found: %s", what, at.Position, changed[i])
		}
		if !slices.ContainsFunc(report.Faults, func(f audit.Fault) bool { return f.Position == at.Position }) {
			t.Fatalf("%s at %d is found elsewhere: %v", what, at.Position, report.Faults)
		}
	}
	for _, cut := range []int{1, len(whole) / 2, len(whole) - 1} {
		if report := l.verifyFile(pack(t, whole[:cut])); report.OK {
			t.Errorf("a file without its last %d lines is found to be whole", len(whole)-cut)
		}
	}
	if report := l.verifyFile(pack(t, append(slices.Clone(whole), whole[2]))); report.OK {
		t.Error("a file with a line behind its end is found to be whole")
	}
}

func TestAnExportThatWasBrokenOffGoesOn(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	l.fill(30)
	l.sign()
	whole := read(t, l.export())
	path := filepath.Join(t.TempDir(), "file.ndjson.zst")
	o := audit.ExportOptions{Path: path, Lanes: []audit.LaneRange{{Lane: domain.Lifecycle}, {Lane: domain.Usage}}, DataKeys: true}
	// It is broken off after its first lane: the end of the second cannot be read.
	l.forge(l.Owner(), `CREATE TABLE hidden AS SELECT * FROM events WHERE lane = 'usage' AND position > 2; ALTER TABLE events_usage DISABLE TRIGGER USER; DELETE FROM events WHERE lane = 'usage' AND position > 2`)
	if _, err := audit.Export(t.Context(), l.pool, o); err == nil {
		t.Fatal("a log that lacks its end was exported")
	}
	if _, err := os.Stat(path); err == nil {
		t.Fatal("a file that is not finished has the name of one that is")
	}
	partial, err := os.OpenFile(path+".partial", os.O_APPEND|os.O_WRONLY, 0)
	must(t, err)
	_, err = partial.WriteString("half a frame")
	must(t, err)
	must(t, partial.Close())
	l.forge(l.Owner(), `INSERT INTO events SELECT * FROM hidden`)
	written, err := audit.Export(t.Context(), l.pool, o)
	must(t, err)
	if written != uint64(l.End(domain.Usage)) {
		t.Errorf("%d events were written by the run that went on, not those of the second lane", written)
	}
	if !slices.EqualFunc(lines(t, whole), lines(t, read(t, path)), bytes.Equal) {
		t.Error("the file that was written in two runs is another one")
	}
}

func TestALedgerIsImportedUnderTheSamePositions(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	l.fill(40)
	kept := l.sign()
	path := l.export()
	db := testkit.Database(t)
	load := func(path string) error {
		conn, err := pgx.Connect(t.Context(), db.AdminURL)
		must(t, err)
		defer conn.Close(t.Context()) //nolint:errcheck // the test ends
		return audit.Import(t.Context(), conn, bytes.NewReader(read(t, path)), nil)
	}
	for _, part := range []string{
		l.export(func(o *audit.ExportOptions) { o.Organization = "org_a" }),
		l.export(func(o *audit.ExportOptions) { o.DataKeys = false }),
		l.export(func(o *audit.ExportOptions) { o.Lanes = o.Lanes[:1] }),
	} {
		if err := load(part); domain.CodeOf(err) != domain.CodeUnprocessable {
			t.Errorf("a part of a ledger was imported: %v", err)
		}
	}
	must(t, load(path))
	if err := load(path); domain.CodeOf(err) != domain.CodeUnprocessable {
		t.Errorf("it was imported twice: %v", err)
	}
	again := on(t, db)
	trusted := audit.Options{Keys: l.public(), Trusted: []audit.Trusted{{Note: kept, Source: "a file"}}}
	if report := again.verify(trusted); !report.OK {
		t.Errorf("the imported ledger is not the one that was exported: %v", report.Faults)
	}
	again.Create("org_a", "life goes on")
	again.sign()
	if report := again.verify(trusted); !report.OK {
		t.Errorf("the imported ledger cannot go on: %v", report.Faults)
	}
	next := again.Store.Read(t.Context(), domain.Lifecycle, 0)
	var theirs []eventstore.Recorded
	for e, err := range next {
		must(t, err)
		theirs = append(theirs, e)
	}
	for e, err := range l.Store.Read(t.Context(), domain.Lifecycle, 0) {
		must(t, err)
		mine, err := l.Decode(t.Context(), e)
		must(t, err)
		other, err := again.Decode(t.Context(), theirs[e.Position-1])
		must(t, err)
		if fmt.Sprint(mine.Event, mine.EventMetadata) != fmt.Sprint(other.Event, other.EventMetadata) || other.Erased {
			t.Fatalf("position %d is another event, or cannot be read", e.Position)
		}
	}
}

func TestAProofIsVerifiedOffline(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	l.fill(20)
	l.sign()
	l.Create("org_a", "not signed yet")
	log := audit.NewLog(l.pool)
	for position := domain.Position(1); position < l.End(domain.Lifecycle); position++ {
		proof, err := audit.Prove(t.Context(), l.pool, log, domain.Lifecycle, position)
		must(t, err)
		bundle, err := json.Marshal(proof)
		must(t, err)
		proven, err := audit.CheckProof(bundle, l.public())
		must(t, err)
		if proven.Event.Position != position {
			t.Errorf("it proves position %d, not %d", proven.Event.Position, position)
		}
		for range 20 {
			forged := slices.Clone(bundle)
			i := rand.IntN(len(forged))    //nolint:gosec // a test's
			forged[i] ^= 1 << rand.IntN(7) //nolint:gosec // a test's
			if other, err := audit.CheckProof(forged, l.public()); err == nil && string(other.Event.Envelope()) != string(proven.Event.Envelope()) {
				t.Fatalf("a forged bundle proves something: %s", forged)
			}
		}
	}
	if _, err := audit.Prove(t.Context(), l.pool, log, domain.Lifecycle, l.End(domain.Lifecycle)); domain.CodeOf(err) != domain.CodeNotFound {
		t.Errorf("what nothing covers is proven: %v", err)
	}
}

func TestWitnessesAreDemanded(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	l.fill(10)
	l.sign()
	private := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, ed25519.SeedSize))
	raw := append([]byte{4}, private.Public().(ed25519.PublicKey)...)
	id := sha256.Sum256(append([]byte("witness.example\n"), raw...))
	key, err := transparency.ParseWitnessKey(fmt.Sprintf("witness.example+%x+%s", id[:4], base64.StdEncoding.EncodeToString(raw)))
	must(t, err)
	demanding := audit.Options{Keys: l.public(), Witnesses: []transparency.WitnessKey{key}}
	prove := func() ([]byte, error) {
		proof, err := audit.Prove(t.Context(), l.pool, audit.NewLog(l.pool), domain.Lifecycle, 3, key)
		if err != nil {
			return nil, err
		}
		return json.Marshal(proof)
	}
	verifyFile := func() *audit.Report {
		report, err := audit.VerifyFile(t.Context(), bytes.NewReader(read(t, l.export())), demanding)
		must(t, err)
		return report
	}
	if report := l.verify(demanding); len(report.Faults) != 2 { // one a lane
		t.Errorf("without a cosignature the audit says %v", report.Faults)
	}
	if report := verifyFile(); len(report.Faults) != 2 {
		t.Errorf("without a cosignature the audit of a file says %v", report.Faults)
	}
	if _, err := prove(); domain.CodeOf(err) != domain.CodeNotFound {
		t.Errorf("without a cosignature this is proven: %v", err)
	}
	proof, err := audit.Prove(t.Context(), l.pool, audit.NewLog(l.pool), domain.Lifecycle, 3)
	must(t, err)
	plain, err := json.Marshal(proof)
	must(t, err)
	if _, err := audit.CheckProof(plain, l.public(), key); err == nil {
		t.Error("a proof without the cosignature is taken")
	}
	for _, lane := range domain.Lanes() {
		note, err := transparency.NewReader(l.pool, l.Store).Checkpoint(t.Context(), lane)
		must(t, err)
		text, _, _ := strings.Cut(string(note), "\n\n")
		line := append(binary.BigEndian.AppendUint64(slices.Clone(id[:4]), 1_768_000_000), ed25519.Sign(private, []byte("cosignature/v1\ntime 1768000000\n"+text+"\n"))...)
		_, err = l.pool.Exec(t.Context(), `UPDATE log_checkpoints SET note = note || $1 WHERE lane = $2`, "— witness.example "+base64.StdEncoding.EncodeToString(line)+"\n", string(lane))
		must(t, err)
	}
	report := l.verify(demanding)
	if !report.OK || report.Lanes[0].Cosigned != l.End(domain.Lifecycle) {
		t.Errorf("with it the audit says %+v", report)
	}
	if report := verifyFile(); !report.OK {
		t.Errorf("with it the audit of a file says %v", report.Faults)
	}
	bundle, err := prove()
	must(t, err)
	if _, err := audit.CheckProof(bundle, l.public(), key); err != nil {
		t.Error(err)
	}
}
