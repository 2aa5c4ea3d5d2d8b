package organizations_test

import (
	"testing"

	"keyledger/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }
