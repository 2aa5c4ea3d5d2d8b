package publisher

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"

	"github.com/nats-io/nats.go"

	"keyledger/domain"
)

// Shares carry, between the nodes of a ledger, what of its limits keys have used. They are
// in no stream; package shares says why what is lost does no harm.
type Shares struct {
	nc     *nats.Conn
	logger *slog.Logger
	prefix string
}

// NewShares makes the carrier for one history of a ledger; logger may be nil.
func NewShares(nc *nats.Conn, ledger domain.ID, epoch uint32, logger *slog.Logger) *Shares {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	return &Shares{nc: nc, logger: logger, prefix: sharesSubjects + ledger.UUID() + "." + strconv.FormatUint(uint64(epoch), 10) + "."}
}

// Publish sends to all nodes.
func (s *Shares) Publish(message []byte) { s.publish(s.prefix+"all", message) }

// Send sends to one node.
func (s *Shares) Send(to domain.ID, message []byte) { s.publish(s.prefix+to.UUID(), message) }

func (s *Shares) publish(subject string, message []byte) {
	// While NATS is away a message would only fill the client's buffer, to arrive when it means nothing any more.
	if !s.nc.IsConnected() {
		return
	}
	if err := s.nc.Publish(subject, message); err != nil {
		s.logger.Debug("a message about limits was not sent", "error", err)
	}
}

// Listen calls heard with what is for all and for this node, one call at a time, until ctx ends; ready
// once it listens. What this node published to all is heard as well.
func (s *Shares) Listen(ctx context.Context, self domain.ID, ready func(), heard func([]byte)) error {
	arrived := make(chan *nats.Msg, 4096)
	// A full channel drops messages, which costs time alone.
	for _, subject := range []string{s.prefix + "all", s.prefix + self.UUID()} {
		subscription, err := s.nc.ChanSubscribe(subject, arrived)
		if err != nil {
			return fmt.Errorf("listen for what of limits is used: %w", err)
		}
		defer func() { _ = subscription.Unsubscribe() }()
	}
	ready()
	for {
		select {
		case <-ctx.Done():
			return nil
		case message := <-arrived:
			heard(message.Data)
		}
	}
}
