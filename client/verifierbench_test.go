package client_test

import (
	"context"
	"net/http/httptest"
	"testing"
	"time"

	"keyledger/client"
	"keyledger/domain"
	"keyledger/index"
)

// BenchmarkVerifyEmbedded compares a verifier's Verify with what a server does in its
// own process, with few keys, so that the memory does not hide the difference.
func BenchmarkVerifyEmbedded(b *testing.B) {
	n := &node{history: index.History{Ledger: domain.ID{1}, Epoch: 2}, index: index.New(index.Options{})}
	n.fill(100)
	s := httptest.NewServer(n)
	defer s.Close()
	defer s.CloseClientConnections()
	v, err := client.NewVerifier(client.VerifierOptions{URL: s.URL, Key: "a-key"})
	if err != nil {
		b.Fatal(err)
	}
	go func() { _ = v.Run(context.Background()) }()
	defer v.Close()
	if err := v.WaitReady(b.Context()); err != nil {
		b.Fatal(err)
	}
	scopes := client.Scopes{"read"}
	key := plainKey(7)
	b.Run("embedded", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if verdict, err := v.Verify(b.Context(), client.Question{Key: key, Scopes: scopes}); err != nil || !verdict.Valid {
				b.Fatal(verdict, err)
			}
		}
	})
	b.Run("in process", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			secret, err := domain.ParseSecret(key)
			if err != nil {
				b.Fatal(err)
			}
			verdict, err := n.index.Verify(domain.Verification{Digest: secret.Digest(), Required: scopes, Now: time.Now()})
			if err != nil || verdict.Outcome != domain.OutcomeValid {
				b.Fatal(verdict, err)
			}
		}
	})
}
