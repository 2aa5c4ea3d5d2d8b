package audit

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"

	"github.com/oklog/ulid/v2"
	"golang.org/x/mod/sumdb/tlog"

	"keyledger/domain"
)

// Sample is a log in memory, with its tree and one checkpoint of all of it.
type Sample struct {
	rows   []row
	hashes []tlog.Hash
	root   tlog.Hash
}

var sampleLedger = domain.ID{7}

// NewSample makes a log of keys that are created and revoked by one another.
func NewSample(keys int) *Sample {
	s := &Sample{}
	add := func(r row) {
		r.position, r.epoch, r.schema, r.at = uint64(len(s.rows)+1), 1, 1, 1_768_000_000_000_000+int64(len(s.rows))
		r.id = sha256sum16(r.position)
		r.organization = []byte("org_a")
		s.rows = append(s.rows, r)
	}
	for i := range keys {
		id := domain.KeyID(sha256sum16(uint64(i) + 1_000_000))
		r := row{stream: []byte("key/" + id.UUID()), version: 1, kind: []byte("KeyCreated"), metadata: []byte(`{"actor":{"kind":"console"},"requestId":"r"}`), sealed: []byte("sealed")}
		r.data = fmt.Appendf(nil, `{"keyId":"key_%s","organizationId":"org_a","digest":"%x"}`, ulid.ULID(id), sha256.Sum256(id[:]))
		add(r)
		if i%3 == 2 {
			r.version, r.kind, r.sealed = 2, []byte("KeyRevoked"), nil
			r.data = fmt.Appendf(nil, `{"keyId":"key_%s","organizationId":"org_a","at":"2026-01-15T10:00:00.000000Z"}`, ulid.ULID(id))
			r.metadata = fmt.Appendf(nil, `{"actor":{"kind":"key","keyId":"key_%s"}}`, ulid.ULID(id))
			add(r)
		}
	}
	c := newChain(domain.Lifecycle, newReport())
	for i := range s.rows {
		checked, _ := s.rows[i].check(domain.Lifecycle, sampleLedger, nil)
		s.hashes = append(s.hashes, checked.leaf)
		c.grow(checked.leaf)
	}
	s.root = c.root()
	return s
}

func sha256sum16(n uint64) [16]byte {
	sum := sha256.Sum256(fmt.Append(nil, n))
	return [16]byte(sum[:16])
}

// Verify checks a log against the sample's tree and checkpoint.
func (s *Sample) Verify(rows []row, hashes []tlog.Hash) []Fault {
	report := newReport()
	c := newChain(domain.Lifecycle, report)
	c.epoch, c.signed = 1, uint64(len(hashes))
	c.expect(expectation{uint64(len(s.hashes)), s.root, "a checkpoint that was kept"})
	leaves := func(position uint64) (tlog.Hash, bool) {
		if position < 1 || position > uint64(len(hashes)) {
			return tlog.Hash{}, false
		}
		return hashes[position-1], true
	}
	var buffer []byte
	for i := range rows {
		var e checked
		e, buffer = rows[i].check(domain.Lifecycle, sampleLedger, buffer)
		c.add(&e, leaves)
	}
	c.end(uint64(len(s.hashes)), leaves)
	return report.Faults
}

// Mutate changes one thing, and says what, at which positions, and what the audit
// found then.
func (s *Sample) Mutate(r *rand.Rand) (what string, at []domain.Position, faults []Fault) {
	rows, hashes := append([]row(nil), s.rows...), append([]tlog.Hash(nil), s.hashes...)
	i := r.IntN(len(rows))
	p := rows[i].position
	at = []domain.Position{domain.Position(p)}
	flip := func(b []byte) []byte {
		b = append([]byte(nil), b...)
		b[r.IntN(len(b))] ^= 1 << r.IntN(8)
		return b
	}
	switch r.IntN(8) {
	case 0, 1, 2, 3:
		what = mutateColumn(&rows[i], r, flip)
	case 4:
		what = "deleted"
		rows = append(rows[:i:i], rows[i+1:]...)
	case 5:
		j := (i + 1 + r.IntN(len(rows)-1)) % len(rows)
		what, at = "exchanged", append(at, domain.Position(rows[j].position))
		rows[i], rows[j] = rows[j], rows[i]
		rows[i].position, rows[j].position = rows[j].position, rows[i].position
	case 6:
		what = "inserted: the rest moves up"
		added := rows[i]
		rows = append(rows[:i:i], append([]row{added}, rows[i:]...)...)
		for k := i + 1; k < len(rows); k++ {
			rows[k].position++
		}
		at[0]++
	case 7:
		if r.IntN(2) == 0 {
			what = "the log was cut off, and its head with it"
			rows = rows[:i]
		} else {
			what = "a hash of the tree was changed"
			h := flip(hashes[i][:])
			hashes[i] = tlog.Hash(h)
		}
	}
	return what, at, s.Verify(rows, hashes)
}

func mutateColumn(e *row, r *rand.Rand, flip func([]byte) []byte) string {
	switch r.IntN(12) {
	case 0:
		e.epoch ^= 1 << r.IntN(31)
		return "epoch"
	case 1:
		e.id[r.IntN(16)] ^= 1 << r.IntN(8)
		return "id"
	case 2:
		e.stream = flip(e.stream)
		return "stream"
	case 3:
		e.version ^= 1 << r.IntN(62)
		return "version"
	case 4:
		e.organization = flip(e.organization)
		return "organization"
	case 5:
		e.kind = flip(e.kind)
		return "type"
	case 6:
		e.schema ^= 1 << r.IntN(15)
		return "schema"
	case 7:
		e.at ^= 1 << r.IntN(50)
		return "recorded_at"
	case 8:
		e.data = flip(e.data)
		return "data"
	case 9:
		e.metadata = flip(e.metadata)
		return "metadata"
	case 10:
		e.position ^= 1 << r.IntN(62)
		return "position"
	}
	if e.sealed == nil {
		e.sealed = []byte{}
	} else if r.IntN(4) == 0 {
		e.sealed = nil
	} else {
		e.sealed = flip(e.sealed)
	}
	return "sealed"
}

// Clean checks the log as it is.
func (s *Sample) Clean() []Fault { return s.Verify(s.rows, s.hashes) }
