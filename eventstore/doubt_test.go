package eventstore_test

import (
	"fmt"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"keyledger/domain"
	"keyledger/internal/testkit"
)

// The answer of a commit is cut off at every possible byte. The store does not
// know whether it happened, and must neither lose nor double it.
func TestACommitWhoseAnswerIsLostCountsExactlyOnce(t *testing.T) {
	t.Parallel()
	db := testkit.Database(t)
	direct := open(t, db.URL)
	proxy, address := cuttable(t, db.URL)
	n := open(t, address)
	n.mustCreate(t) // the data key is loaded: from here on only commits are cut

	const rounds, callers = 24, 4
	created := make(chan domain.Key, rounds*callers)
	for round := range rounds {
		cut := fmt.Sprintf(`{"name":"cut","type":"limit_data","stream":"downstream","attributes":{"bytes":%d}}`, round*13)
		if _, err := proxy.Toxics.AddToxicJson(strings.NewReader(cut)); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for caller := range callers {
			wg.Go(func() {
				request := domain.Request{}
				if caller%2 == 1 {
					id := newKeyID(t)
					request = domain.Request{ID: domain.CommandID(id), Fingerprint: [32]byte{1}, Replayable: true}
				}
				key, receipt, err := n.create(t, request)
				if err != nil {
					t.Error(err)
					return
				}
				if receipt.Replayed {
					t.Errorf("a create that was sent once was answered as a replay: its secret would be lost")
				}
				created <- key
			})
		}
		direct.mustCreate(t) // somebody else writes in between
		if err := proxy.Toxics.RemoveToxic(t.Context(), "cut"); err != nil {
			t.Fatal(err)
		}
		wg.Wait()
	}
	close(created)

	events := direct.lifecycle(t)
	audit(t, events)
	if want := 1 + rounds*(callers+1); len(events) != want {
		t.Errorf("the log has %d events, not %d", len(events), want)
	}
	for key := range created {
		if stored, _, err := direct.Key(t.Context(), key.ID); err != nil || !stored.Exists() {
			t.Errorf("%s was acknowledged and is not there (%v)", key.ID, err)
		}
	}
}

// cuttable puts a proxy before a database.
func cuttable(t *testing.T, address string) (*toxiproxy.Proxy, string) {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(prometheus.NewRegistry()), zerolog.Nop())
	proxy := toxiproxy.NewProxy(server, "postgres", "127.0.0.1:0", u.Host)
	if err := proxy.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(proxy.Stop)
	u.Host = proxy.Listen
	return proxy, u.String()
}
