package nats_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	natsd "github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"keyledger/client"
	"keyledger/domain"
	"keyledger/internal/audit"
	"keyledger/internal/servertest"
	"keyledger/internal/testkit"
	"keyledger/publisher"
)

func TestMain(m *testing.M) { testkit.Main(m) }

const (
	lifecycle = publisher.LifecycleStream
	uses      = publisher.UsageStream
)

// broker is a server with the file that is handed out, and a whole Keyledger on it.
type broker struct {
	t      *testing.T // the part that runs
	whole  *testing.T
	port   int
	server *servertest.Server
	env    string
	key    string // one that was created and is valid
}

func start(t *testing.T) *broker {
	t.Helper()
	for _, user := range []string{"KEYLEDGER", "SUBSCRIBER", "CALLER"} {
		t.Setenv(user+"_NATS_PASSWORD", "password-of-"+strings.ToLower(user))
	}
	options, err := natsd.ProcessConfigFile("keyledger.conf")
	if err != nil {
		t.Fatal(err)
	}
	options.Host, options.Port, options.StoreDir, options.NoSigs, options.NoLog = "127.0.0.1", natsd.RANDOM_PORT, t.TempDir(), true, true
	server, err := natsd.NewServer(options)
	if err != nil {
		t.Fatal(err)
	}
	server.Start()
	t.Cleanup(func() {
		server.Shutdown()
		server.WaitForShutdown()
	})
	if !server.ReadyForConnections(30 * time.Second) {
		t.Fatal("the server does not start with keyledger.conf")
	}
	b := &broker{t: t, whole: t, port: server.Addr().(*net.TCPAddr).Port}
	b.env = fmt.Sprintf("NATS_URL=nats://keyledger:password-of-keyledger@127.0.0.1:%d", b.port)
	b.server = servertest.Start(t, servertest.Options{Env: []string{b.env, "LOG_LEVEL=debug"}})
	b.key = b.server.Bootstrap("org_abc123")
	return b
}

// user is a connection, and what it was forbidden.
type user struct {
	*nats.Conn
	t         *testing.T
	js        jetstream.JetStream
	forbidden chan error
}

func (b *broker) connect(name string) *user {
	b.t.Helper()
	u := &user{t: b.t, forbidden: make(chan error, 1000)}
	var err error
	u.Conn, err = nats.Connect(fmt.Sprintf("nats://127.0.0.1:%d", b.port), nats.UserInfo(name, "password-of-"+name), nats.CustomInboxPrefix("_INBOX_"+name),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			if errors.Is(err, nats.ErrPermissionViolation) {
				u.forbidden <- err
			}
		}))
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(u.Close)
	// What is forbidden is never answered, and is waited for so long; what is not has a patience of its own.
	if u.js, err = jetstream.New(u.Conn, jetstream.WithDefaultTimeout(500*time.Millisecond)); err != nil {
		b.t.Fatal(err)
	}
	return u
}

// is says whether something was forbidden by the time that it has reached the server.
func (u *user) isForbidden(what string, do func() error) {
	u.t.Helper()
	for len(u.forbidden) > 0 {
		<-u.forbidden
	}
	if err := do(); err == nil {
		if err := u.Flush(); err != nil {
			u.t.Fatal(err)
		}
	}
	select {
	case <-u.forbidden:
	case <-time.After(time.Minute):
		u.t.Errorf("this is allowed: %s", what)
	}
}

func (u *user) nothingForbidden() {
	u.t.Helper()
	if err := u.Flush(); err != nil {
		u.t.Fatal(err)
	}
	select {
	case err := <-u.forbidden:
		u.t.Errorf("what it needs is forbidden: %v", err)
	default:
	}
}

// patiently bounds what must be answered, on however busy a machine.
func patiently(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestEachUserMayDoWhatItNeedsAndNothingElse(t *testing.T) {
	b := start(t)
	t.Run("keyledger", b.keyledgerWorks)
	t.Run("a subscriber reads", b.subscriberReads)
	t.Run("a subscriber does nothing else", b.subscriberDoesNothingElse)
	t.Run("a subscriber's push consumers do no harm", b.pushConsumers)
	t.Run("a caller", b.caller)
	t.Run("nobody", b.nobody)
}

// The service's streams are made and filled, and its alarms are silent: all that it
// does is allowed.
func (b *broker) keyledgerWorks(t *testing.T) {
	b.t = t
	u := b.connect("subscriber")
	for _, stream := range []string{lifecycle, uses} {
		for {
			s, err := u.js.Stream(t.Context(), stream)
			if err == nil && (stream == uses || s.CachedInfo().State.LastSeq > 0) {
				break
			}
			if t.Context().Err() != nil {
				t.Fatalf("%s is not filled: %v", stream, err)
			}
		}
	}
	if result := b.server.Run("stream", "rebuild", "--yes"); result.Code != 0 {
		t.Errorf("keyledger stream rebuild: %s", result.Stderr)
	}
	for line := range strings.Lines(b.server.Logs()) {
		if strings.Contains(strings.ToLower(line), "permissions violation") {
			t.Errorf("it was forbidden something: %s", line)
		}
	}
}

func (b *broker) subscriberReads(t *testing.T) {
	b.t = t
	u := b.connect("subscriber")
	ctx := patiently(t)
	looking := make(chan *nats.Msg, 100)
	_, err := u.ChanSubscribe("keyledger.lifecycle.>", looking)
	must(t, err)
	must(t, u.Flush())
	b.server.Bootstrap("org_other")
	if m := <-looking; !strings.HasPrefix(m.Subject, "keyledger.lifecycle.") {
		t.Errorf("got %s", m.Subject)
	}
	ordered, err := u.js.OrderedConsumer(ctx, lifecycle, jetstream.OrderedConsumerConfig{FilterSubjects: []string{"keyledger.lifecycle.*.*.created"}})
	must(t, err)
	for range 2 { // the second has it made anew
		m, err := ordered.Next()
		must(t, err)
		if len(m.Data()) == 0 {
			t.Error("nothing is read")
		}
	}
	durable, err := u.js.CreateOrUpdateConsumer(ctx, lifecycle, jetstream.ConsumerConfig{Durable: "mine", AckPolicy: jetstream.AckExplicitPolicy, MaxAckPending: 1})
	must(t, err)
	batch, err := durable.Fetch(1, jetstream.FetchMaxWait(time.Minute))
	must(t, err)
	for m := range batch.Messages() {
		must(t, m.DoubleAck(ctx))
	}
	info, err := durable.Info(ctx)
	must(t, err)
	if info.AckFloor.Stream != 1 {
		t.Errorf("the acknowledgement did not arrive: %+v", info.AckFloor)
	}
	stream, err := u.js.Stream(ctx, lifecycle)
	must(t, err)
	_, err = stream.GetMsg(ctx, 1)
	must(t, err)
	must(t, u.js.DeleteConsumer(ctx, lifecycle, "mine"))

	// The library that is handed out.
	enough := errors.New("enough")
	for _, o := range []client.SubscribeOptions{
		{NATS: u.Conn},
		{URL: fmt.Sprintf("nats://subscriber:password-of-subscriber@127.0.0.1:%d", b.port), InboxPrefix: "_INBOX_subscriber", Filter: client.Filter{Organization: "org_abc123"}},
	} {
		err = client.Subscribe(ctx, o, func(context.Context, client.Event) error { return enough })
		if !errors.Is(err, enough) {
			t.Errorf("client.Subscribe: %v", err)
		}
	}
	u.nothingForbidden()
}

func (b *broker) subscriberDoesNothingElse(t *testing.T) {
	b.t = t
	u := b.connect("subscriber")
	key := domain.KeyID{1}.String()
	for _, subject := range []string{
		"keyledger.lifecycle.org_abc123." + key + ".revoked", "keyledger.lifecycle.org_abc123." + key + ".created", "keyledger.usage.org_abc123.used",
		"keyledger.fence.ask", "keyledger.fence.softask", "keyledger.fence.confirmed", "keyledger.wake.lifecycle", "keyledger.wake.usage", "keyledger.shares.x.1.all",
		"svc.keyledger.verify", "_INBOX.somebody", "_INBOX_caller.somebody", "_INBOX_subscriber.somebody", "anything",
		"$JS.API.STREAM.DELETE." + lifecycle, "$JS.API.STREAM.PURGE." + lifecycle, "$JS.API.STREAM.UPDATE." + lifecycle, "$JS.API.STREAM.CREATE.MINE",
		"$JS.API.STREAM.CREATE." + lifecycle, "$JS.API.STREAM.MSG.DELETE." + lifecycle, "$JS.API.STREAM.SNAPSHOT." + lifecycle, "$JS.API.STREAM.RESTORE." + lifecycle,
		"$JS.API.STREAM.LEADER.STEPDOWN." + lifecycle, "$JS.API.STREAM.PEER.REMOVE." + lifecycle, "$JS.API.STREAM.LIST", "$JS.API.META.LEADER.STEPDOWN",
		"$JS.API.ACCOUNT.PURGE.KEYLEDGER", "$JS.API.CONSUMER.CREATE.OTHER.mine", "$JS.API.CONSUMER.PAUSE." + lifecycle + ".mine",
		"$SYS.REQ.SERVER.PING", "$SYS.ACCOUNT.KEYLEDGER.CONNECT", "$SRV.PING",
	} {
		u.isForbidden("publish to "+subject, func() error { return u.Publish(subject, []byte("{}")) })
	}
	for _, subject := range []string{">", "keyledger.>", "keyledger.fence.*", "keyledger.wake.*", "_INBOX.>", "_INBOX_caller.>", "svc.keyledger.verify", "$SYS.>", "$JS.API.>", "$JS.>"} {
		u.isForbidden("subscribe to "+subject, func() error {
			_, err := u.SubscribeSync(subject)
			return err
		})
	}
	stream, err := u.js.Stream(patiently(t), lifecycle)
	must(t, err)
	u.isForbidden("publish into the stream", func() error {
		_, err := u.js.Publish(t.Context(), "keyledger.lifecycle.org_abc123."+key+".revoked", []byte("{}"))
		return err
	})
	u.isForbidden("delete a stream", func() error { return u.js.DeleteStream(t.Context(), lifecycle) })
	u.isForbidden("purge a stream", func() error { return stream.Purge(t.Context()) })
	u.isForbidden("delete a message", func() error { return stream.DeleteMsg(t.Context(), 1) })
	u.isForbidden("change a stream", func() error {
		config := stream.CachedInfo().Config
		config.Subjects = append(config.Subjects, "mine.>")
		_, err := u.js.UpdateStream(t.Context(), config)
		return err
	})
	after, err := u.js.Stream(patiently(t), lifecycle)
	must(t, err)
	if before, now := stream.CachedInfo().State, after.CachedInfo().State; before.LastSeq != now.LastSeq || before.Msgs != now.Msgs {
		t.Errorf("the stream had %d messages and has %d", before.Msgs, now.Msgs)
	}
}

// Whoever may make a consumer can have the server deliver events to any subject: NATS
// does not ask whether they could publish there. What arrives so is an event's data or nothing, and must
// be believed by nobody.
func (b *broker) pushConsumers(t *testing.T) {
	b.t = t
	u, key := b.connect("subscriber"), domain.KeyID{1}.String()
	for from, to := range map[string][]string{
		lifecycle: {"keyledger.usage.org_abc123.used", "keyledger.fence.confirmed", "keyledger.fence.ask", "keyledger.wake.lifecycle", "svc.keyledger.verify", "$JS.API.STREAM.DELETE." + uses, "$JS.API.STREAM.PURGE." + lifecycle},
		uses:      {"keyledger.lifecycle.org_abc123." + key + ".revoked", "$JS.API.STREAM.DELETE." + lifecycle},
	} {
		stream, err := u.js.Stream(patiently(t), from)
		must(t, err)
		for _, subject := range to {
			for _, headersOnly := range []bool{false, true} {
				_, err := stream.CreatePushConsumer(patiently(t), jetstream.ConsumerConfig{DeliverSubject: subject, AckPolicy: jetstream.AckNonePolicy, HeadersOnly: headersOnly})
				must(t, err)
			}
		}
	}
	// A verification, so that the usage lane has something, and a revocation, which waits for the fence.
	_, err := b.connect("caller").Request("svc.keyledger.verify", []byte(`{"key":"`+b.key+`"}`), time.Minute)
	must(t, err)
	last := b.server.BootstrapKey("--organization", "org_abc123")
	request, err := http.NewRequestWithContext(t.Context(), http.MethodDelete, b.server.URL()+"/api/v1/organizations/org_abc123/api-keys/"+last.ID, nil)
	must(t, err)
	request.Header.Set("X-API-Key", b.key)
	response, err := http.DefaultClient.Do(request)
	must(t, err)
	_ = response.Body.Close()
	if response.StatusCode != http.StatusOK {
		t.Errorf("a revocation is answered with %d", response.StatusCode)
	}
	b.streamsAreTheLog(t)
}

// streamsAreTheLog compares every message with the log, once the relays have published all of it.
func (b *broker) streamsAreTheLog(t *testing.T) {
	t.Helper()
	b.server.Stop() // uses and events are written and published
	b.server = servertest.Start(b.whole, servertest.Options{DataDir: b.server.DataDir(), Env: []string{b.env, "LOG_LEVEL=debug"}})
	var report audit.Report
	poll := time.NewTicker(50 * time.Millisecond)
	defer poll.Stop()
	for ctx := patiently(t); ; {
		var err error
		report, err = audit.Run(t.Context(), audit.Ledger{
			DatabaseURL: b.server.Endpoints().DatabaseAdmin, NATSURL: fmt.Sprintf("nats://keyledger:password-of-keyledger@127.0.0.1:%d", b.port),
		})
		must(t, err)
		// A stream that is behind is no fault for long; a message that is wrong stays.
		if len(report.Faults) == 0 || ctx.Err() != nil {
			break
		}
		<-poll.C
	}
	if len(report.Faults) > 0 || report.Events[domain.Usage] == 0 || report.Events[domain.Lifecycle] == 0 {
		t.Errorf("the audit says %+v", report)
	}
}

// A caller asks, and hears nothing but its answers.
func (b *broker) caller(t *testing.T) {
	b.t = t
	u := b.connect("caller")
	answer, err := u.Request("svc.keyledger.verify", []byte(`{"key":"`+b.key+`"}`), time.Minute)
	must(t, err)
	if !strings.Contains(string(answer.Data), `"valid":true`) {
		t.Errorf("the answer is %s", answer.Data)
	}
	_, err = u.Request("$SRV.INFO.keyledger-verify", nil, time.Minute)
	must(t, err)
	u.nothingForbidden()
	for _, subject := range []string{
		"keyledger.lifecycle.org_abc123.-.member_added", "keyledger.fence.confirmed", "keyledger.wake.lifecycle", "$JS.API.STREAM.INFO." + lifecycle,
		"$JS.API.CONSUMER.CREATE." + lifecycle + ".mine", "$JS.API.STREAM.DELETE." + lifecycle, "_INBOX.x", "_INBOX_subscriber.x", "svc.keyledger.other",
	} {
		u.isForbidden("publish to "+subject, func() error { return u.Publish(subject, []byte("{}")) })
	}
	for _, subject := range []string{"keyledger.lifecycle.>", "keyledger.>", "_INBOX.>", "_INBOX_subscriber.>", "svc.keyledger.verify", ">"} {
		u.isForbidden("subscribe to "+subject, func() error {
			_, err := u.SubscribeSync(subject)
			return err
		})
	}
}

func (b *broker) nobody(t *testing.T) {
	for _, options := range [][]nats.Option{nil, {nats.UserInfo("subscriber", "")}, {nats.UserInfo("subscriber", "password-of-keyledger")}, {nats.UserInfo("sys", "sys")}} {
		if nc, err := nats.Connect(fmt.Sprintf("nats://127.0.0.1:%d", b.port), options...); err == nil {
			nc.Close()
			t.Error("somebody without a password is let in")
		}
	}
}
