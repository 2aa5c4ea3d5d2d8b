package natsapi

import (
	"context"
	"fmt"
	"log/slog"
	nethttp "net/http"
	"regexp"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"
)

const (
	// Name is the service's name for discovery.
	Name = "keyledger-verify"
	// Subject is where questions go.
	Subject = "svc.keyledger.verify"
	// QueueGroup is what the nodes share the questions in.
	QueueGroup = "keyledger"
	// HeaderKey carries the asker's own key.
	HeaderKey = "X-API-Key"

	stopWithin = 2 * time.Second
	// mostWaiting bounds the questions whose answer waits for the log.
	mostWaiting = 4096
)

// Verifier answers a question: with a verdict and the status 200, or with problem
// details and theirs. When the answer has to wait, later is not nil and gives it.
type Verifier interface {
	VerifyMessage(question []byte, key string) (status int, answer []byte, later func() (status int, answer []byte))
}

// Options are what a Service needs.
type Options struct {
	Conn     *nats.Conn
	Verifier Verifier
	Version  string       // of this build
	Logger   *slog.Logger // nil: none
}

// Service answers questions while Run runs.
type Service struct {
	options Options
	ready   chan struct{}
	waiting chan struct{} // holds a token for each question that waits
}

// New makes a service that answers nothing yet.
func New(options Options) *Service {
	if options.Logger == nil {
		options.Logger = slog.New(slog.DiscardHandler)
	}
	return &Service{options, make(chan struct{}), make(chan struct{}, mostWaiting)}
}

// Ready is closed once questions are answered.
func (s *Service) Ready() <-chan struct{} { return s.ready }

// Run answers until ctx ends, and is called once. It is called when the node is able to answer: from
// then on it gets its share of the questions. Connections that are lost and come
// back are nats.go's matter.
func (s *Service) Run(ctx context.Context) error {
	service, err := micro.AddService(s.options.Conn, micro.Config{
		Name:        Name,
		Version:     core(s.options.Version),
		Metadata:    map[string]string{"build": s.options.Version},
		Description: "Says whether an API key may be used",
		QueueGroup:  QueueGroup,
		Endpoint:    &micro.EndpointConfig{Subject: Subject, Handler: micro.HandlerFunc(s.answer)},
		ErrorHandler: func(_ micro.Service, e *micro.NATSError) {
			s.options.Logger.Warn("the NATS service had an error", "subject", e.Subject, "error", e.Description)
		},
	})
	if err != nil {
		return fmt.Errorf("offer %s over NATS: %w", Subject, err)
	}
	close(s.ready)
	<-ctx.Done()
	// What arrived is still answered, and nothing arrives any more when the server has
	// answered the flush.
	stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopWithin)
	defer cancel()
	err = service.Stop()
	s.finish(stopping)
	if err == nil {
		err = s.options.Conn.FlushWithContext(stopping)
	}
	if err != nil && s.options.Conn.IsConnected() {
		return fmt.Errorf("stop offering %s over NATS: %w", Subject, err)
	}
	return nil
}

func (s *Service) answer(request micro.Request) {
	status, answer, later := s.options.Verifier.VerifyMessage(request.Data(), request.Headers().Get(HeaderKey))
	if later != nil {
		s.answerLater(request.Reply(), later)
		return
	}
	var err error
	if status == nethttp.StatusOK {
		err = request.Respond(answer)
	} else {
		err = request.Error(strconv.Itoa(status), nethttp.StatusText(status), answer)
	}
	s.sent(err)
}

// answerLater leaves the way free for the next question, so that those that wait for the log
// wait together. The service's own statistics count only that it was asked: a micro.Request
// may not be answered after its handler has returned.
func (s *Service) answerLater(reply string, later func() (status int, answer []byte)) {
	s.waiting <- struct{}{} // when very many wait, NATS keeps the next ones
	go func() {
		defer func() { <-s.waiting }()
		status, answer := later()
		message := &nats.Msg{Subject: reply, Data: answer}
		if status != nethttp.StatusOK {
			message.Header = nats.Header{micro.ErrorHeader: {nethttp.StatusText(status)}, micro.ErrorCodeHeader: {strconv.Itoa(status)}}
		}
		s.sent(s.options.Conn.PublishMsg(message))
	}()
}

// finish waits for those that wait.
func (s *Service) finish(ctx context.Context) {
	for range mostWaiting {
		select {
		case s.waiting <- struct{}{}:
		case <-ctx.Done():
			return
		}
	}
}

func (s *Service) sent(err error) {
	if err != nil {
		s.options.Logger.Warn("a verdict could not be sent over NATS", "error", err)
	}
}

var coreVersion = regexp.MustCompile(`^v?((?:0|[1-9]\d*)\.(?:0|[1-9]\d*)\.(?:0|[1-9]\d*))(?:[-+].*)?$`)

// core gives the three numbers of a semantic version, which is what the micro API
// takes without fail.
func core(version string) string {
	if found := coreVersion.FindStringSubmatch(version); found != nil {
		return found[1]
	}
	return "0.0.0"
}
