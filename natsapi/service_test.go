package natsapi_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"keyledger/domain"
	"keyledger/internal/testkit"
	"keyledger/natsapi"
	"keyledger/publisher"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// answers gives a fixed answer, and remembers who asked what.
type answers struct {
	mu       sync.Mutex
	status   int
	answer   string
	question string
	key      string
	asked    int
	later    chan struct{} // not nil: answers wait until it is closed
}

func (a *answers) VerifyMessage(question []byte, key string) (int, []byte, func() (int, []byte)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.question, a.key, a.asked = string(question), key, a.asked+1
	if a.later != nil {
		return 0, nil, func() (int, []byte) {
			<-a.later
			return a.status, []byte(a.answer)
		}
	}
	return a.status, []byte(a.answer), nil
}

func (a *answers) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.asked
}

const verdict = `{"valid":true,"code":"VALID"}`

// serve runs a service until the test ends, and returns when it answers.
func serve(t *testing.T, conn *nats.Conn, a *answers) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	service := natsapi.New(natsapi.Options{Conn: conn, Verifier: a, Version: "v1.2.3-rc.1+dirty", Logger: testkit.Logger(t)})
	go func() { done <- service.Run(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("the service ended: %v", err)
			}
		})
	}
	t.Cleanup(stop)
	<-service.Ready()
	return stop
}

func ask(t *testing.T, conn *nats.Conn, message *nats.Msg) *nats.Msg {
	t.Helper()
	reply, err := conn.RequestMsgWithContext(t.Context(), message)
	if err != nil {
		t.Fatal(err)
	}
	return reply
}

func TestAQuestionIsAnsweredWithTheBodyOfTheHTTPDoor(t *testing.T) {
	t.Parallel()
	n := testkit.NATS(t)
	a := &answers{status: 200, answer: verdict}
	stop := serve(t, n.Conn, a)

	message := nats.NewMsg(natsapi.Subject)
	message.Data = []byte(`{"key":"bsk_live_x"}`)
	message.Header.Set(natsapi.HeaderKey, "bsk_live_caller")
	reply := ask(t, n.Conn, message)
	if string(reply.Data) != verdict || reply.Header.Get(micro.ErrorCodeHeader) != "" {
		t.Errorf("got %s with %v", reply.Data, reply.Header)
	}
	if a.question != string(message.Data) || a.key != "bsk_live_caller" {
		t.Errorf("asked %s by %s", a.question, a.key)
	}

	stop()
	if _, err := n.Conn.Request(natsapi.Subject, message.Data, time.Minute); !errors.Is(err, nats.ErrNoResponders) {
		t.Errorf("a stopped service is asked: %v", err)
	}
}

func TestWhatIsOutOfReachIsAnErrorOfTheServiceAndNeverAVerdict(t *testing.T) {
	t.Parallel()
	n := testkit.NATS(t)
	problem := `{"type":"about:blank","title":"Service Unavailable","status":503}`
	serve(t, n.Conn, &answers{status: 503, answer: problem})
	reply := ask(t, n.Conn, &nats.Msg{Subject: natsapi.Subject, Data: []byte(`{"key":"k"}`)})
	if reply.Header.Get(micro.ErrorCodeHeader) != "503" || reply.Header.Get(micro.ErrorHeader) != "Service Unavailable" || string(reply.Data) != problem {
		t.Errorf("got %s with %v", reply.Data, reply.Header)
	}
}

func TestAnswersThatWaitForTheLogWaitTogetherAndAreGivenBeforeTheServiceEnds(t *testing.T) {
	t.Parallel()
	for _, status := range []int{200, 503} {
		n := testkit.NATS(t)
		a := &answers{status: status, answer: verdict, later: make(chan struct{})}
		stop := serve(t, n.Conn, a)
		inbox, err := n.Conn.SubscribeSync(nats.NewInbox())
		if err != nil {
			t.Fatal(err)
		}
		const questions = 20
		for range questions {
			if err := n.Conn.PublishRequest(natsapi.Subject, inbox.Subject, []byte(`{"key":"k","durable":true}`)); err != nil {
				t.Fatal(err)
			}
		}
		poll := time.NewTicker(time.Millisecond)
		for a.count() < questions { // each was asked while none was answered
			<-poll.C
		}
		poll.Stop()
		stopped := make(chan struct{})
		go func() {
			defer close(stopped)
			stop()
		}()
		close(a.later)
		for range questions {
			reply, err := inbox.NextMsgWithContext(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if code := reply.Header.Get(micro.ErrorCodeHeader); string(reply.Data) != verdict || (code == "503") != (status == 503) {
				t.Errorf("got %s with %v", reply.Data, reply.Header)
			}
		}
		<-stopped
	}
}

func TestTheServiceIsDiscoveredAndKeepsStatistics(t *testing.T) {
	t.Parallel()
	n := testkit.NATS(t)
	serve(t, n.Conn, &answers{status: 400, answer: `{}`})
	ask(t, n.Conn, &nats.Msg{Subject: natsapi.Subject})

	var info micro.Info
	decode(t, n.Conn, "$SRV.INFO."+natsapi.Name, &info)
	if info.Version != "1.2.3" || info.Metadata["build"] != "v1.2.3-rc.1+dirty" || len(info.Endpoints) != 1 ||
		info.Endpoints[0].Subject != natsapi.Subject || info.Endpoints[0].QueueGroup != natsapi.QueueGroup {
		t.Errorf("it says %+v", info)
	}
	// A request is counted a moment after it was answered.
	var stats micro.Stats
	poll := time.NewTicker(time.Millisecond)
	defer poll.Stop()
	for ; len(stats.Endpoints) == 0 || stats.Endpoints[0].NumRequests == 0; <-poll.C {
		stats = micro.Stats{}
		decode(t, n.Conn, "$SRV.STATS."+natsapi.Name, &stats)
	}
	if len(stats.Endpoints) != 1 || stats.Endpoints[0].NumRequests != 1 || stats.Endpoints[0].NumErrors != 1 {
		t.Errorf("it counted %+v", stats.Endpoints)
	}
}

func decode(t *testing.T, conn *nats.Conn, subject string, into any) {
	t.Helper()
	reply, err := conn.Request(subject, nil, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(reply.Data, into); err != nil {
		t.Fatalf("%v in %s", err, reply.Data)
	}
}

func TestNodesShareTheQuestions(t *testing.T) {
	t.Parallel()
	n := testkit.NATS(t)
	first, second := &answers{status: 200, answer: verdict}, &answers{status: 200, answer: verdict}
	serve(t, n.Conn, first)
	serve(t, n.Conn, second)
	asked := 0
	for first.count() == 0 || second.count() == 0 {
		ask(t, n.Conn, &nats.Msg{Subject: natsapi.Subject})
		asked++
	}
	if sum := first.count() + second.count(); sum != asked {
		t.Errorf("%d questions were answered %d times", asked, sum)
	}
}

func TestNoStreamTakesInTheQuestions(t *testing.T) {
	t.Parallel()
	for _, lane := range domain.Lanes() {
		subjects := publisher.StreamSubjects(lane)
		if prefix, open := strings.CutSuffix(subjects, ">"); !open || strings.HasPrefix(natsapi.Subject, prefix) {
			t.Errorf("the stream of %s covers %s with %s", lane, natsapi.Subject, subjects)
		}
	}
}
