package prove_test

import (
	"os"
	"testing"

	"keyledger/internal/testkit"
)

func TestMain(m *testing.M) {
	if options, ok := os.LookupEnv(brokerVariable); ok {
		serveBroker(options)
		return
	}
	testkit.Main(m)
}
