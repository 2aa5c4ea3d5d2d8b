package client_test

import (
	"os"
	"testing"

	"keyledger/internal/testkit"
)

func TestMain(m *testing.M) {
	if os.Getenv(subscriberFile) != "" {
		os.Exit(subscriberProcess())
	}
	testkit.Main(m)
}
