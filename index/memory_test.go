package index

import (
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"
)

// resident is the memory of this process that the system has given it.
func resident(t *testing.T) uint64 {
	t.Helper()
	debug.FreeOSMemory()
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Skip("this system does not tell")
	}
	pages, err := strconv.ParseUint(strings.Fields(string(text))[1], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return pages * uint64(os.Getpagesize())
}

func TestAKeyTakesLessThan100Bytes(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector keeps shadows of its own")
	}
	keys := plainKeys(*manyKeys)
	before := resident(t)
	began := time.Now()
	x := filled(t, keys)
	took := time.Since(began)
	var gc runtime.MemStats
	runtime.ReadMemStats(&gc)
	perKey := float64(resident(t)-before) / float64(len(keys))
	began = time.Now()
	runtime.GC()
	t.Logf("%d keys: %.1f bytes a key, %v to apply them; a collection takes %v; %+v", len(keys), perKey, took, time.Since(began), x.Memory())
	// With few keys the fixed parts show, and what the runtime keeps for itself.
	const fixed = 8 << 20
	if perKey > 100+fixed/float64(len(keys)) {
		t.Errorf("a key takes %.1f bytes", perKey)
	}
	runtime.KeepAlive(keys)
	runtime.KeepAlive(x)
}

func TestMeasuringTheMemoryTakesNone(t *testing.T) {
	x := filled(t, plainKeys(1000))
	if n := testing.AllocsPerRun(10, func() { _ = x.Memory() }); n > 0 {
		t.Errorf("a look at the memory makes %.0f objects", n)
	}
}
