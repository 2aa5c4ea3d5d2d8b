package prove_test

import (
	"fmt"
	"io"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/Shopify/toxiproxy/v2/toxics"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
)

// link is one connection of the site that can be broken, unless it is direct.
type link struct {
	t      testing.TB
	direct string     // where it leads, if nobody stands between
	mu     sync.Mutex // one fault after the other
	proxy  *toxiproxy.Proxy
}

// hold is a partition as a network does it: nothing arrives while it lasts, nobody
// is told, and what was sent arrives afterwards. Toxiproxy's own timeout loses data,
// so that no late answer ever comes.
type hold struct{}

func (*hold) Pipe(stub *toxics.ToxicStub) { <-stub.Interrupt }

var registerHold = sync.OnceFunc(func() { toxics.Register("hold", new(hold)) })

// linker makes the links of a site.
type linker func(t testing.TB, name, upstream string) *link

// newDirect leads to an address, and cannot be broken.
func newDirect(t testing.TB, _, upstream string) *link { return &link{t: t, direct: upstream} }

// newLink puts a proxy before an address.
func newLink(t testing.TB, name, upstream string) *link {
	t.Helper()
	registerHold()
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(prometheus.NewRegistry()), zerolog.Nop())
	l := &link{t: t, proxy: toxiproxy.NewProxy(server, name, "127.0.0.1:0", upstream)}
	if err := l.proxy.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		l.heal()
		l.proxy.Stop()
	})
	return l
}

func (l *link) address() string {
	if l.direct != "" {
		return l.direct
	}
	return l.proxy.Listen
}

// through gives a URL with the link's address in it.
func (l *link) through(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		l.t.Fatal(err)
	}
	u.Host = l.address()
	return u.String()
}

// cut ends every connection and refuses new ones.
func (l *link) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.proxy.Stop()
}

// hold stops everything where it is.
func (l *link) hold() { l.add("hold", "{}", "upstream", "downstream") }

// lose drops everything, and ends the connections when it is healed.
func (l *link) lose() { l.add("timeout", `{"timeout":0}`, "upstream", "downstream") }

// delay slows every direction down, by some milliseconds.
func (l *link) delay(milliseconds int) {
	l.add("latency", fmt.Sprintf(`{"latency":%d,"jitter":%d}`, milliseconds, milliseconds/2), "upstream", "downstream")
}

// delayReplies lets questions arrive at once and their answers late.
func (l *link) delayReplies(milliseconds int) {
	l.add("latency", fmt.Sprintf(`{"latency":%d}`, milliseconds), "downstream")
}

func (l *link) add(kind, attributes string, streams ...string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, stream := range streams {
		toxic := fmt.Sprintf(`{"name":"%s-%s","type":%q,"stream":%q,"attributes":%s}`, kind, stream, kind, stream, attributes)
		if _, err := l.proxy.Toxics.AddToxicJson(io.Reader(strings.NewReader(toxic))); err != nil {
			l.t.Errorf("prove: %v", err)
		}
	}
}

// heal lets everything through again.
func (l *link) heal() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.proxy.Toxics.ResetToxics(l.t.Context())
	// Start says that it runs already where it was not cut.
	_ = l.proxy.Start()
}

// links are broken and healed together.
type links []*link

func (ls links) each(do func(*link)) {
	var all sync.WaitGroup
	for _, l := range ls {
		all.Go(func() { do(l) })
	}
	all.Wait()
}
