package main_test

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"keyledger/internal/natsserver"
	"keyledger/internal/servertest"
	"keyledger/internal/testkit"
)

// secrets are what every node of a ledger shares.
func secrets() []string {
	return []string{
		"KEYLEDGER_MASTER_KEY=" + base64.StdEncoding.EncodeToString(make([]byte, 32)),
		"KEYLEDGER_JWT_SECRET=a secret that all nodes of the ledger share",
	}
}

func TestItRunsOnADatabaseAndANATSOfTheDeployment(t *testing.T) {
	t.Parallel()
	database, broker := testkit.Database(t), testkit.NATS(t)
	env := append(secrets(), "DATABASE_URL="+database.URL, "KEYLEDGER_DATABASE_ADMIN_URL="+database.AdminURL, "NATS_URL="+broker.URL)
	first := servertest.Start(t, servertest.Options{Env: env})
	second := servertest.Start(t, servertest.Options{Env: env})
	if e := first.Endpoints(); e.Database != database.URL || e.DatabaseAdmin != database.AdminURL || e.NATS != broker.URL {
		t.Errorf("the endpoints are %+v", e)
	}
	if first.PostgresPid() != 0 || strings.Contains(first.Logs(), "embedded") || strings.Contains(first.Logs(), "MASTER KEY") || strings.Contains(first.Logs(), "JWT secret") {
		t.Errorf("it does not run on what it was given alone:\n%s", first.Logs())
	}
	// A key that one node has made is known to the other in a moment: NATS wakes it.
	key := first.Bootstrap("org_1")
	for verdict(t, second.URL(), key) != "VALID" {
		if t.Context().Err() != nil {
			t.Fatal("the second node does not learn of the key")
		}
	}
	// A token of one node is good for the other.
	token := strings.TrimSpace(succeed(t, first, "token", "--user", "user_1", "--organization", "org_1").Stdout)
	if got := call(t, http.MethodGet, second.URL()+"/api/v1/organizations/org_1/api-keys", "", "Authorization", "Bearer "+token); got.status != http.StatusOK {
		t.Errorf("the second node answers %d: %s", got.status, got.body)
	}
	// Another directory, and no master key: nothing is made up.
	result := servertest.Run(t, servertest.Command{Args: []string{"bootstrap", "--organization", "org_1"}, Env: []string{"DATABASE_URL=" + database.URL, "KEYLEDGER_MIGRATE=false"}})
	if result.Code != 1 || !strings.Contains(result.Stderr, "the master key of the ledger is needed") {
		t.Errorf("bootstrap without a master key ended with %d: %s", result.Code, result.Stderr)
	}
	result = servertest.Run(t, servertest.Command{Args: []string{"status"}, Env: []string{
		"DATABASE_URL=" + database.URL, "NATS_URL=" + broker.URL, "KEYLEDGER_MASTER_KEY=" + strings.Repeat("ab", 32),
	}})
	if result.Code != 1 || !strings.Contains(result.Stderr, "the master key is not the one that this ledger was made with") {
		t.Errorf("status with another master key ended with %d: %s", result.Code, result.Stderr)
	}
}

func TestWithoutAMasterKeyItWarnsThatNodesWouldDiffer(t *testing.T) {
	t.Parallel()
	database := testkit.Database(t)
	server := servertest.Start(t, servertest.Options{Env: []string{"DATABASE_URL=" + database.URL, "KEYLEDGER_DATABASE_ADMIN_URL=" + database.AdminURL}})
	for _, line := range []string{"THE MASTER KEY STANDS IN THIS DATA DIRECTORY ALONE", "running on the embedded NATS"} {
		if !strings.Contains(server.Logs(), line) {
			t.Errorf("it does not say %q:\n%s", line, server.Logs())
		}
	}
}

func TestANATSThatIsAwayKeepsNothingFromStarting(t *testing.T) {
	t.Parallel()
	database := testkit.Database(t)
	port := testkit.Port(t)
	server := servertest.Start(t, servertest.Options{Env: append(secrets(), "DATABASE_URL="+database.URL, "KEYLEDGER_DATABASE_ADMIN_URL="+database.AdminURL,
		fmt.Sprintf("NATS_URL=nats://test:test@127.0.0.1:%d", port))})
	if !strings.Contains(server.Logs(), "nats cannot be reached yet: events wait in the log until it can") {
		t.Errorf("it does not say that NATS is away:\n%s", server.Logs())
	}
	key := server.Bootstrap("org_1")
	if got := verdict(t, server.URL(), key); got != "VALID" {
		t.Errorf("without NATS the key is %s", got)
	}

	// It comes, and publishing catches up.
	broker, err := natsserver.Start(t.Context(), natsserver.Options{StoreDir: t.TempDir(), User: "test", Password: "test", Port: port})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = broker.Shutdown() })
	if e := events(t, broker.ClientURL(), 1); e[0].Subject == "" || e[0].Header.Get("ce-type") != "keyledger.key.created" {
		t.Errorf("the first event is %+v", e[0])
	}
}

// events waits for a stream's first events as a subscriber gets them.
func events(t *testing.T, address string, n int) []*nats.Msg {
	t.Helper()
	conn, err := nats.Connect(address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	messages := make(chan *nats.Msg, n)
	for {
		consumer, err := js.OrderedConsumer(t.Context(), "KEYLEDGER_LIFECYCLE", jetstream.OrderedConsumerConfig{})
		if err != nil { // the stream is about to be made
			if t.Context().Err() != nil {
				t.Fatal(err)
			}
			continue
		}
		for range n {
			m, err := consumer.Next(jetstream.FetchMaxWait(time.Minute))
			if err != nil {
				t.Fatal(err)
			}
			messages <- &nats.Msg{Subject: m.Subject(), Header: m.Headers(), Data: m.Data()}
		}
		break
	}
	close(messages)
	var all []*nats.Msg
	for m := range messages {
		all = append(all, m)
	}
	return all
}

func TestADatabaseThatIsAwayIsWaitedForAndNotForEver(t *testing.T) {
	t.Parallel()
	database := testkit.Database(t)
	there, err := url.Parse(database.AdminURL)
	if err != nil {
		t.Fatal(err)
	}
	address := fmt.Sprintf("127.0.0.1:%d", testkit.Port(t))
	away := *there
	away.Host = address
	env := append(secrets(), "DATABASE_URL="+away.String())

	server := servertest.Launch(t, servertest.Options{Env: append(env, "KEYLEDGER_DATABASE_WAIT=300ms")})
	if code := server.Wait(); code != 1 || !strings.Contains(server.Logs(), "cannot be reached after") || !strings.Contains(server.Logs(), address) {
		t.Errorf("with no database it ended with %d:\n%s", code, server.Logs())
	}
	if password, _ := there.User.Password(); strings.Contains(server.Logs(), password) {
		t.Error("the database's password was logged")
	}

	server = servertest.Launch(t, servertest.Options{Env: env})
	server.AwaitLog("the database cannot be reached yet: trying again")
	forward(t, address, there.Host)
	server.AwaitReady()
	server.Stop()

	// What waiting cannot mend is said at once.
	wrong := *there
	wrong.User = url.UserPassword(there.User.Username(), "another password")
	server = servertest.Launch(t, servertest.Options{Env: append(secrets(), "DATABASE_URL="+wrong.String())})
	if code := server.Wait(); code != 1 || !strings.Contains(server.Logs(), "does not let us in") {
		t.Errorf("with a wrong password it ended with %d:\n%s", code, server.Logs())
	}
}

func TestALoginThatMayNotMigrateSaysWhatToDo(t *testing.T) {
	t.Parallel()
	database, broker := testkit.Database(t), testkit.NATS(t)
	env := append(secrets(), "DATABASE_URL="+database.URL, "NATS_URL="+broker.URL)
	server := servertest.Launch(t, servertest.Options{Env: env})
	if code := server.Wait(); code != 1 || !strings.Contains(server.Logs(), "KEYLEDGER_DATABASE_ADMIN_URL") || !strings.Contains(server.Logs(), "--migrate=false") {
		t.Errorf("it ended with %d:\n%s", code, server.Logs())
	}
	servertest.Start(t, servertest.Options{Env: env, Args: []string{"--migrate=false"}})
}

// forward makes an address lead to another one until the test ends.
func forward(t *testing.T, from, to string) {
	t.Helper()
	l := listener(t, from)
	var open sync.WaitGroup
	t.Cleanup(func() { _ = l.Close(); open.Wait() })
	open.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", to)
			if err != nil {
				_ = client.Close()
				continue
			}
			hangUp := func() { _ = client.Close(); _ = server.Close() }
			context.AfterFunc(t.Context(), hangUp)
			for _, pair := range [][2]net.Conn{{client, server}, {server, client}} {
				open.Go(func() {
					_, _ = io.Copy(pair[0], pair[1])
					hangUp()
				})
			}
		}
	})
}

// number reads a header that holds one.
func number(t *testing.T, text string) int {
	t.Helper()
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
