package keylist

import (
	"encoding/hex"
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

// What a projection holds was hashed before there were quotas, and is compared with what is hashed now.
func TestAKeyWithoutAQuotaIsHashedAsEver(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 1, 15, 10, 0, 0, 0, time.UTC)
	e := entry{Key: domain.Key{ID: domain.KeyID{1}, Organization: "org_abc123", Digest: domain.Digest{2}, Prefix: "bsk_live_a1b2", Scopes: domain.Scopes{"read"}, RateLimit: 1000, CreatedAt: at}, Version: 1, Position: 17}
	before := e.hash()
	if got := hex.EncodeToString(before[:]); got != "173e07d391b70f76776933c0b9e88d7326b3db55a86f65d2a91fc30264b8ddb3" {
		t.Errorf("its hash is %s", got)
	}
	seen := map[[32]byte]bool{before: true}
	for _, q := range []domain.Quota{{Limit: 1, Refill: domain.RefillDay}, {Limit: 2, Refill: domain.RefillDay}, {Limit: 1, Refill: domain.RefillMonth}} {
		e.Quota = q
		if seen[e.hash()] {
			t.Errorf("%+v is not in the state", q)
		}
		seen[e.hash()] = true
	}
}
