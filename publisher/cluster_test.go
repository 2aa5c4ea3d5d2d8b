package publisher_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"keyledger/domain"
	"keyledger/internal/natsserver"
	"keyledger/internal/testkit"
	"keyledger/publisher"
)

// serverVariable makes the test binary a NATS server that can be killed: a server
// inside the test's process can only be shut down, which is another thing.
const serverVariable = "KEYLEDGER_TEST_NATS_SERVER"

func serveNATS(options string) {
	var o natsserver.Options
	if err := json.Unmarshal([]byte(options), &o); err != nil {
		panic(err)
	}
	if _, err := natsserver.Start(context.Background(), o); err != nil {
		panic(err)
	}
	fmt.Println("ready")
	select {}
}

// node is one member of a cluster, in a process of its own.
type node struct {
	options natsserver.Options
	command *exec.Cmd
}

func (n *node) start(t *testing.T) {
	t.Helper()
	options, err := json.Marshal(n.options)
	if err != nil {
		t.Fatal(err)
	}
	n.command = exec.Command(os.Args[0], "-test.run=^$")
	n.command.Env = append(os.Environ(), serverVariable+"="+string(options))
	n.command.Stderr = os.Stderr
	n.command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	output, err := n.command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := n.command.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(output).ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("the server says %q: %v", line, err)
	}
}

func (n *node) kill() {
	_ = n.command.Process.Kill()
	_ = n.command.Wait()
}

func (n *node) url() string {
	return fmt.Sprintf("nats://%s:%s@127.0.0.1:%d", n.options.User, n.options.Password, n.options.Port)
}

func startCluster(t *testing.T) []*node {
	t.Helper()
	var ports, routePorts [3]int
	var routes []string
	for i := range ports {
		ports[i], routePorts[i] = testkit.Port(t), testkit.Port(t)
		routes = append(routes, fmt.Sprintf("nats://127.0.0.1:%d", routePorts[i]))
	}
	var nodes []*node
	for i := range ports {
		n := &node{options: natsserver.Options{
			StoreDir: filepath.Join(t.TempDir(), "nats"), User: "keyledger", Password: "secret", Port: ports[i],
			Name: fmt.Sprintf("node%d", i), ClusterName: "test", RoutePort: routePorts[i], Routes: routes,
		}}
		n.start(t)
		t.Cleanup(n.kill)
		nodes = append(nodes, n)
	}
	return nodes
}

func TestKillingTheLeaderOfAReplicatedStreamLosesAndRepeatsNothing(t *testing.T) {
	t.Parallel()
	kills := rounds(t, 0)
	if kills == 0 {
		t.Skip("an election takes seconds: KEYLEDGER_SOAK=n kills n leaders")
	}
	nodes := startCluster(t)
	var urls []string
	for _, n := range nodes {
		urls = append(urls, n.url())
	}
	connect := func() jetstream.JetStream {
		nc, err := nats.Connect(strings.Join(urls, ","), nats.MaxReconnects(-1), nats.ReconnectWait(20*time.Millisecond), nats.ReconnectJitter(0, 0))
		if err != nil {
			t.Fatal(err)
		}
		closed := make(chan struct{})
		nc.SetClosedHandler(func(*nats.Conn) { close(closed) })
		t.Cleanup(func() {
			nc.Close()
			<-closed
		})
		js, err := jetstream.New(nc)
		if err != nil {
			t.Fatal(err)
		}
		return js
	}
	log := newMemLog(domain.Lifecycle)
	var relays []*publisher.Relay
	for range 2 {
		options := quick()
		options.Replicas = 3
		relay := newRelay(t, connect(), log, domain.Lifecycle, options)
		running(t, relay)
		relays = append(relays, relay)
	}
	log.grow(1, time.Now())
	reaches(t, relays[0], 1)
	reader := connect()
	for range kills {
		before := log.head()
		grown := make(chan struct{})
		go func() {
			defer close(grown)
			for range 40 {
				log.grow(1+rand.N(50), time.Now())
			}
		}()
		reaches(t, relays[0], before+1+domain.Position(rand.N(500)))
		leader := leaderOf(t, reader, nodes)
		leader.kill()
		<-grown
		reaches(t, relays[rand.N(len(relays))], log.head())
		leader.start(t)
		leaderOf(t, reader, nodes)
	}
	holdsTheLog(t, reader, log, 1)
}

// leaderOf waits until the stream has a leader and all of its replicas.
func leaderOf(t *testing.T, js jetstream.JetStream, nodes []*node) (leader *node) {
	t.Helper()
	eventually(t, "the cluster is whole", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		stream, err := js.Stream(ctx, publisher.LifecycleStream)
		if err != nil || stream.CachedInfo().Cluster == nil {
			return false
		}
		cluster := stream.CachedInfo().Cluster
		for _, replica := range cluster.Replicas {
			if !replica.Current || replica.Offline {
				return false
			}
		}
		for _, n := range nodes {
			if n.options.Name == cluster.Leader {
				leader = n
			}
		}
		return leader != nil && len(cluster.Replicas) == 2
	})
	return leader
}
