package publisher

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"

	"github.com/nats-io/nats.go"

	"keyledger/domain"
)

// Wake tells other nodes that a lane has grown, so that their followers need not
// wait for the next poll. A wake that is lost costs that wait and nothing else.
type Wake struct {
	nc     *nats.Conn
	logger *slog.Logger

	mu      sync.Mutex
	highest map[domain.Lane]domain.Position // announced, not yet sent
	pending chan struct{}
}

// NewWake makes a Wake over a connection; logger may be nil.
func NewWake(nc *nats.Conn, logger *slog.Logger) *Wake {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	return &Wake{nc: nc, logger: logger, highest: map[domain.Lane]domain.Position{}, pending: make(chan struct{}, 1)}
}

// Announce says that a lane has reached a position. It never blocks: it is
// called between two commits, and a NATS that is slow must not slow them. Only the highest
// position matters, so what Run has not sent yet is replaced.
func (w *Wake) Announce(lane domain.Lane, position domain.Position) {
	w.mu.Lock()
	w.highest[lane] = max(w.highest[lane], position)
	w.mu.Unlock()
	select {
	case w.pending <- struct{}{}:
	default:
	}
}

// Run sends what is announced until ctx ends.
func (w *Wake) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-w.pending:
		}
		w.mu.Lock()
		announced := w.highest
		w.highest = make(map[domain.Lane]domain.Position, len(announced))
		w.mu.Unlock()
		// While NATS is away a wake would only fill the client's buffer, to arrive
		// when everybody has polled long ago.
		if !w.nc.IsConnected() {
			continue
		}
		for lane, position := range announced {
			if err := w.nc.Publish(WakeSubject(lane), strconv.AppendUint(nil, uint64(position), 10)); err != nil {
				w.logger.Debug("a wake was not sent", "lane", lane, "error", err)
			}
		}
	}
}

// Listen calls heard with what other nodes announce, one call at a time, until
// ctx ends. What this process announced is heard as well and does no harm.
func (w *Wake) Listen(ctx context.Context, heard func(domain.Lane, domain.Position)) error {
	arrived := make(chan *nats.Msg, 256)
	// A full channel drops messages: the next one says all that was lost.
	subscription, err := w.nc.ChanSubscribe(wakeSubjects+"*", arrived)
	if err != nil {
		return fmt.Errorf("listen for wakes: %w", err)
	}
	defer func() { _ = subscription.Unsubscribe() }()
	for {
		select {
		case <-ctx.Done():
			return nil
		case message := <-arrived:
			lane, position, ok := parseWake(message)
			if !ok {
				w.logger.Debug("a wake cannot be read", "subject", message.Subject)
				continue
			}
			heard(lane, position)
		}
	}
}

func parseWake(message *nats.Msg) (domain.Lane, domain.Position, bool) {
	lane := domain.Lane(strings.TrimPrefix(message.Subject, wakeSubjects))
	if lane != domain.Lifecycle && lane != domain.Usage {
		return "", 0, false
	}
	position, err := strconv.ParseUint(string(message.Data), 10, 63)
	return lane, domain.Position(position), err == nil && position > 0
}
