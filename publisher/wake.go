package publisher

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/nats-io/nats.go"

	"keyledger/domain"
)

// Wake tells other nodes that a lane has grown, so that their followers need not
// wait for the next poll, and hands on the letters that save them a query. A wake that is lost costs
// that and nothing else.
type Wake struct {
	nc     *nats.Conn
	logger *slog.Logger

	mu      sync.Mutex
	waiting []announcement // not yet sent
	pending chan struct{}
}

// announcement is that a lane has reached a position; letter may be nil.
type announcement struct {
	lane     domain.Lane
	position domain.Position
	letter   []byte
}

// mostWaiting bounds what waits to be sent. Beyond it only the highest positions matter.
const mostWaiting = 64

// NewWake makes a Wake over a connection; logger may be nil.
func NewWake(nc *nats.Conn, logger *slog.Logger) *Wake {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	return &Wake{nc: nc, logger: logger, pending: make(chan struct{}, 1)}
}

// Announce says that a lane has reached a position, with the log's letter about it. It never blocks: it is
// called between two commits, and a NATS that is slow must not slow them.
func (w *Wake) Announce(lane domain.Lane, position domain.Position, letter []byte) {
	w.mu.Lock()
	if len(w.waiting) == mostWaiting {
		w.waiting = highest(w.waiting)
	}
	w.waiting = append(w.waiting, announcement{lane, position, letter})
	w.mu.Unlock()
	select {
	case w.pending <- struct{}{}:
	default:
	}
}

// highest leaves of each lane the highest position.
func highest(waiting []announcement) (left []announcement) {
	for _, a := range waiting {
		i := slices.IndexFunc(left, func(b announcement) bool { return a.lane == b.lane })
		if i < 0 {
			left = append(left, announcement{lane: a.lane, position: a.position})
			continue
		}
		left[i].position = max(left[i].position, a.position)
	}
	return left
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
		announced := w.waiting
		w.waiting = nil
		w.mu.Unlock()
		// While NATS is away a wake would only fill the client's buffer, to arrive
		// when everybody has polled long ago.
		if !w.nc.IsConnected() {
			continue
		}
		for _, a := range announced {
			text := strconv.AppendUint(nil, uint64(a.position), 10)
			if a.letter != nil {
				text = base64.StdEncoding.AppendEncode(append(text, ' '), a.letter)
			}
			if err := w.nc.Publish(WakeSubject(a.lane), text); err != nil {
				w.logger.Debug("a wake was not sent", "lane", a.lane, "error", err)
			}
		}
	}
}

// Listen calls heard with what other nodes announce, one call at a time, until
// ctx ends. What this process announced is heard as well and does no harm.
func (w *Wake) Listen(ctx context.Context, heard func(lane domain.Lane, position domain.Position, letter []byte)) error {
	arrived := make(chan *nats.Msg, 256)
	// A full channel drops messages: the next one says how far the lane has come.
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
			a, ok := parseWake(message)
			if !ok {
				w.logger.Debug("a wake cannot be read", "subject", message.Subject)
				continue
			}
			heard(a.lane, a.position, a.letter)
		}
	}
}

func parseWake(message *nats.Msg) (announcement, bool) {
	lane := domain.Lane(strings.TrimPrefix(message.Subject, wakeSubjects))
	if lane != domain.Lifecycle && lane != domain.Usage {
		return announcement{}, false
	}
	number, text, _ := bytes.Cut(message.Data, []byte(" "))
	position, err := strconv.ParseUint(string(number), 10, 63)
	if err != nil || position == 0 {
		return announcement{}, false
	}
	letter, err := base64.StdEncoding.AppendDecode(nil, text)
	return announcement{lane, domain.Position(position), letter}, err == nil
}
