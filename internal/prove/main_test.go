package prove_test

import (
	"os"
	"testing"

	"go.uber.org/goleak"

	"keyledger/internal/testkit"
)

func TestMain(m *testing.M) {
	if options, ok := os.LookupEnv(brokerVariable); ok {
		serveBroker(options)
		return
	}
	if options, ok := os.LookupEnv(loadVariable); ok {
		serveLoad(options)
		return
	}
	// Toxiproxy forgets those that wait to hand on what nobody reads any more.
	testkit.Main(m,
		goleak.IgnoreAnyFunction("github.com/Shopify/toxiproxy/v2/toxics.(*ToxicStub).Run"),
		goleak.IgnoreAnyFunction("github.com/Shopify/toxiproxy/v2.(*ToxicLink).read"),
		goleak.IgnoreAnyFunction("github.com/Shopify/toxiproxy/v2.(*ToxicLink).write"))
}
