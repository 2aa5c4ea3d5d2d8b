package testkit_test

import (
	"testing"

	"keyledger/internal/testkit"
)

func BenchmarkDatabase(b *testing.B) {
	for b.Loop() {
		testkit.Database(b)
	}
}

func BenchmarkNATS(b *testing.B) {
	for b.Loop() {
		testkit.NATS(b)
	}
}
