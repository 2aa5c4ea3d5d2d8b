package keylist

import (
	"testing"
	"time"

	"keyledger/domain"
	"keyledger/projections"
)

// BenchmarkState is what the state costs a fold for each event that changes a row.
func BenchmarkState(b *testing.B) {
	e := entry{Key: domain.Key{
		ID: domain.KeyID{1}, Organization: "org_abc123", Prefix: "bsk_live_a1b2", Scopes: domain.Scopes{"read", "write"}, RateLimit: 1000, CreatedAt: time.Now(),
	}, Version: 1, Position: 17}
	change := projections.NewChange(0)
	for b.Loop() {
		change.Sum.Minus(e.hash())
		e.Position++
		change.Sum.Plus(e.hash(), 1)
	}
}

func TestNothingPersonalIsInTheState(t *testing.T) {
	t.Parallel()
	a := entry{Key: domain.Key{Name: "Ada's laptop", CreatedBy: "ada"}}
	if b := (entry{}); a.hash() != b.hash() {
		t.Error("a state that stays for ever is a digest of a name")
	}
}
