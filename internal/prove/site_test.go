package prove_test

import (
	"encoding/hex"
	"fmt"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"keyledger/eventstore"
	"keyledger/internal/postgres"
	"keyledger/internal/servertest"
	"keyledger/internal/testkit"
	"keyledger/publisher"
)

const (
	organization = "org_prove"
	lease        = time.Second
)

// size says how large a site is.
type size struct {
	nodes, brokers, verifiers int
	direct                    bool // nothing is to be broken, and nobody stands between

	program     servertest.Program // default: keyledger as it is
	env         []string           // of the servers, beside what the site needs
	verifierEnv []string
}

// site is all that runs: everything by itself, everything linked.
type site struct {
	t        testing.TB
	size     size
	link     linker
	clock    time.Time // when it began; every moment is told from there
	postgres *testkit.Cluster
	brokers  []*broker
	nodes    []*node
	embedded []*embedded
	conn     *nats.Conn // of the test, straight to the brokers
	client   *http.Client
	key      string // of an admin of the organization
}

// node is one keyledger serve.
type node struct {
	name     string
	url      string
	database *link
	nats     links
	options  servertest.Options

	t      testing.TB
	mu     sync.Mutex
	server *servertest.Server
}

func startSite(t testing.TB, size size) *site {
	t.Helper()
	link := newLink
	if size.direct {
		link = newDirect
	}
	s := &site{
		t: t, size: size, link: link, clock: time.Now(), postgres: testkit.Postgres(t, postgres.Options{}), brokers: startBrokers(t, size.brokers, link),
		client: &http.Client{Timeout: answerWithin, Transport: &http.Transport{MaxIdleConns: 2000, MaxIdleConnsPerHost: 500, IdleConnTimeout: 3 * time.Second}},
	}
	t.Cleanup(s.client.CloseIdleConnections)
	var urls []string
	for _, b := range s.brokers {
		urls = append(urls, b.url())
	}
	closed := make(chan struct{})
	var err error
	s.conn, err = nats.Connect(strings.Join(urls, ","), nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}), nats.ClosedHandler(func(*nats.Conn) { close(closed) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.conn.Close()
		<-closed
	})
	s.awaitBrokers()
	for i := range size.nodes {
		s.nodes = append(s.nodes, s.newNode(i))
	}
	for _, n := range s.nodes {
		n.server.AwaitReady()
	}
	s.key = s.nodes[0].server.Bootstrap(organization, "--rate-limit", "0")
	if size.verifiers > 0 {
		key := s.nodes[0].server.BootstrapKey("--system", "--scopes", "system:verify").Key
		for i := range size.verifiers {
			s.embedded = append(s.embedded, s.newEmbedded(i, key))
		}
	}
	for _, d := range s.doors() {
		s.await(d.name+" knows the first key", func() bool { return d.ask(t.Context(), s.key) == accepted })
	}
	return s
}

func (s *site) newNode(i int) *node {
	s.t.Helper()
	name := "node" + strconv.Itoa(i)
	n := &node{t: s.t, name: name, database: s.link(s.t, name+" to postgres", hostOf(s.t, s.postgres.URL()))}
	var urls []string
	for j := range s.brokers {
		// Each prefers another broker.
		b := s.brokers[(i+j)%len(s.brokers)]
		l := s.link(s.t, name+" to "+b.options.Name, fmt.Sprintf("127.0.0.1:%d", b.options.Port))
		n.nats = append(n.nats, l)
		urls = append(urls, urlOf(l.address()))
	}
	listen := "127.0.0.1:" + strconv.Itoa(testkit.Port(s.t))
	n.url = "http://" + listen
	n.options = servertest.Options{
		DataDir: filepath.Join(testkit.Dir(s.t), name), Listen: listen, Program: s.size.program,
		Env: append([]string{
			"DATABASE_URL=" + n.database.through(s.postgres.URL()), "KEYLEDGER_DATABASE_ADMIN_URL=" + n.database.through(s.postgres.AdminURL()),
			"NATS_URL=" + strings.Join(urls, ","), "KEYLEDGER_STREAM_REPLICAS=" + strconv.Itoa(len(s.brokers)),
			"KEYLEDGER_MASTER_KEY=" + hex.EncodeToString(make([]byte, eventstore.MasterKeySize)),
			"KEYLEDGER_CHECKPOINT_KEY=" + hex.EncodeToString(make([]byte, 32)),
			"KEYLEDGER_JWT_SECRET=a secret of all nodes, for their tokens", "KEYLEDGER_MIGRATE=false",
			// Keys that a node does not know yet are asked for often: each as if from elsewhere.
			"KEYLEDGER_TRUSTED_PROXIES=127.0.0.0/8",
			// A key that is over its limit would be refused for that.
			"KEYLEDGER_DEFAULT_RATE_LIMIT=100000000",
		}, s.size.env...),
	}
	n.launch()
	return n
}

// launch starts the process, again after it was killed, and returns at once.
func (n *node) launch() {
	server := servertest.Launch(n.t, n.options)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.server = server
}

func (n *node) process() *servertest.Server {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.server
}

// awaitBrokers returns when streams can be made.
func (s *site) awaitBrokers() {
	s.t.Helper()
	js, err := jetstream.New(s.conn)
	if err != nil {
		s.t.Fatal(err)
	}
	s.await("a cluster of NATS", func() bool {
		_, err := js.CreateOrUpdateStream(s.t.Context(), jetstream.StreamConfig{Name: "TRIAL", Subjects: []string{"trial"}, Replicas: len(s.brokers)})
		return err == nil && js.DeleteStream(s.t.Context(), "TRIAL") == nil
	})
}

// awaitStream returns when the lifecycle stream has reached a position.
func (s *site) awaitStream(position uint64) {
	s.t.Helper()
	js, err := jetstream.New(s.conn)
	if err != nil {
		s.t.Fatal(err)
	}
	s.await(fmt.Sprintf("the stream at %d", position), func() bool {
		stream, err := js.Stream(s.t.Context(), publisher.LifecycleStream)
		return err == nil && stream.CachedInfo().State.LastSeq >= position
	})
}

// await asks again and again until the answer is yes.
func (s *site) await(what string, yes func() bool) {
	s.t.Helper()
	poll := time.NewTicker(10 * time.Millisecond)
	defer poll.Stop()
	deadline := time.After(2 * time.Minute)
	for !yes() {
		select {
		case <-poll.C:
		case <-deadline:
			s.t.Fatalf("prove: %s does not come", what)
		}
	}
}

func (s *site) since(at time.Time) time.Duration { return at.Sub(s.clock) }
