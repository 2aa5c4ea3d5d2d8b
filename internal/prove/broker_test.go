package prove_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	natsd "github.com/nats-io/nats-server/v2/server"

	"keyledger/internal/testkit"
)

// brokerVariable makes the test binary a NATS server of its own process, which can
// be stopped and killed.
const brokerVariable = "KEYLEDGER_PROVE_BROKER"

// brokerOptions are handed to the process.
type brokerOptions struct {
	Name, StoreDir  string
	Port, RoutePort int
	Routes          []string // to the others, each through a link of its own
}

const brokerUser, brokerPassword = "keyledger", "secret"

func serveBroker(text string) {
	var o brokerOptions
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		panic(err)
	}
	options := &natsd.Options{
		ServerName: o.Name, Host: "127.0.0.1", Port: o.Port, Username: brokerUser, Password: brokerPassword,
		JetStream: true, StoreDir: o.StoreDir, NoSigs: true, NoLog: true,
	}
	if len(o.Routes) > 0 {
		// What a server tells of itself would lead the others, and the clients, past the
		// links: it names a port where nobody is, and its clients are told nothing.
		options.Cluster = natsd.ClusterOpts{Name: "prove", Host: "127.0.0.1", Port: o.RoutePort, Advertise: "127.0.0.1:1", NoAdvertise: true}
		for _, text := range o.Routes {
			route, err := url.Parse(text)
			if err != nil {
				panic(err)
			}
			options.Routes = append(options.Routes, route)
		}
	}
	server, err := natsd.NewServer(options)
	if err != nil {
		panic(err)
	}
	server.Start()
	if !server.ReadyForConnections(time.Minute) {
		panic("nats does not start")
	}
	fmt.Println("ready")
	select {}
}

// broker is one NATS server.
type broker struct {
	t       testing.TB
	options brokerOptions
	routes  links // from it to the others

	mu      sync.Mutex
	process *os.Process
	ended   chan struct{}
}

func (b *broker) url() string { return urlOf(fmt.Sprintf("127.0.0.1:%d", b.options.Port)) }

func urlOf(address string) string {
	return "nats://" + brokerUser + ":" + brokerPassword + "@" + address
}

func (b *broker) start() {
	b.t.Helper()
	options, err := json.Marshal(b.options)
	if err != nil {
		b.t.Fatal(err)
	}
	command := exec.Command(os.Args[0], "-test.run=^$")
	command.Env = append(os.Environ(), brokerVariable+"="+string(options), "GORACE=atexit_sleep_ms=0")
	command.Stderr = os.Stderr
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	output, err := command.StdoutPipe()
	if err != nil {
		b.t.Fatal(err)
	}
	started, ended := make(chan error), make(chan struct{})
	go func() {
		runtime.LockOSThread() // the kernel ends the process with the thread that started it
		err := command.Start()
		if err == nil {
			if line, failed := bufio.NewReader(output).ReadString('\n'); line != "ready\n" {
				err = fmt.Errorf("it says %q: %w", line, failed)
			}
		}
		started <- err
		_ = command.Wait()
		close(ended)
	}()
	if err := <-started; err != nil {
		b.t.Errorf("prove: start nats: %v", err)
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.process, b.ended = command.Process, ended
}

func (b *broker) signal(signal syscall.Signal) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.process != nil {
		_ = b.process.Signal(signal) // it may have ended
	}
}

func (b *broker) kill() {
	b.signal(syscall.SIGKILL)
	b.mu.Lock()
	ended := b.ended
	b.mu.Unlock()
	if ended != nil {
		<-ended
	}
}

// startBrokers starts n NATS servers, a cluster if they are several.
func startBrokers(t testing.TB, n int, link linker) []*broker {
	t.Helper()
	ports := make([]int, 2*n)
	for i := range ports {
		ports[i] = testkit.Port(t)
	}
	brokers := make([]*broker, n)
	for i := range brokers {
		b := &broker{t: t, options: brokerOptions{
			Name: "nats" + strconv.Itoa(i), StoreDir: filepath.Join(t.TempDir(), "nats"), Port: ports[i], RoutePort: ports[n+i],
		}}
		for j := range n {
			if j != i {
				route := link(t, fmt.Sprintf("route %d to %d", i, j), fmt.Sprintf("127.0.0.1:%d", ports[n+j]))
				b.routes = append(b.routes, route)
				b.options.Routes = append(b.options.Routes, "nats://"+route.address())
			}
		}
		brokers[i] = b
	}
	for _, b := range brokers {
		b.start()
		t.Cleanup(b.kill)
	}
	return brokers
}
