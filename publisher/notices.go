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

// Notices carry, between nodes, who has to know of a position and who does. They
// are in no stream, and what is lost costs a revocation time and nothing else.
type Notices struct {
	nc     *nats.Conn
	logger *slog.Logger
	prefix string // "<ledger> <epoch> ": notices of another history are not heard

	mu        sync.Mutex
	asked     domain.Position               // not yet sent
	softly    domain.Position               // not yet sent
	confirmed map[domain.ID]domain.Position // not yet sent
	pending   chan struct{}
}

// NewNotices makes the notices of one history of a ledger; logger may be nil.
func NewNotices(nc *nats.Conn, ledger domain.ID, epoch uint32, logger *slog.Logger) *Notices {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	return &Notices{
		nc: nc, logger: logger, prefix: ledger.UUID() + " " + strconv.FormatUint(uint64(epoch), 10) + " ",
		confirmed: map[domain.ID]domain.Position{}, pending: make(chan struct{}, 1),
	}
}

// Ask wants a position confirmed by everybody who verifies, or softly by servers alone. Like
// Confirm it never blocks: a connection to NATS that takes nothing may hold up whoever publishes, and
// a revocation counts the time. Only the highest position matters.
func (n *Notices) Ask(position domain.Position, soft bool) {
	n.mu.Lock()
	if soft {
		n.softly = max(n.softly, position)
	} else {
		n.asked = max(n.asked, position)
	}
	n.mu.Unlock()
	n.wake()
}

// Confirm says that a verifier has applied the log up to a position.
func (n *Notices) Confirm(id domain.ID, position domain.Position) {
	n.mu.Lock()
	n.confirmed[id] = max(n.confirmed[id], position)
	n.mu.Unlock()
	n.wake()
}

func (n *Notices) wake() {
	select {
	case n.pending <- struct{}{}:
	default:
	}
}

// send publishes what is said until ctx ends.
func (n *Notices) send(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.pending:
		}
		n.mu.Lock()
		asked, softly, confirmed := n.asked, n.softly, n.confirmed
		n.asked, n.softly, n.confirmed = 0, 0, map[domain.ID]domain.Position{}
		n.mu.Unlock()
		// While NATS is away a notice would only fill the client's buffer, to arrive when nobody waits any more.
		if !n.nc.IsConnected() {
			continue
		}
		if asked > 0 {
			n.publish(askSubject, n.prefix+strconv.FormatUint(uint64(asked), 10))
		}
		if softly > asked {
			n.publish(softAskSubject, n.prefix+strconv.FormatUint(uint64(softly), 10))
		}
		for id, position := range confirmed {
			n.publish(confirmedSubject, n.prefix+strconv.FormatUint(uint64(position), 10)+" "+id.UUID())
		}
	}
}

func (n *Notices) publish(subject, text string) {
	if err := n.nc.Publish(subject, []byte(text)); err != nil {
		n.logger.Debug("a notice was not sent", "subject", subject, "error", err)
	}
}

// Listen sends what is said here, and calls with what is asked and confirmed, one call at a
// time, until ctx ends.
// What this process published is heard as well.
func (n *Notices) Listen(ctx context.Context, asked func(domain.Position, bool), confirmed func(domain.ID, domain.Position)) error {
	arrived := make(chan *nats.Msg, 4096)
	// A full channel drops messages, which costs time alone.
	subscription, err := n.nc.ChanSubscribe(fenceSubjects+"*", arrived)
	if err != nil {
		return fmt.Errorf("listen for notices: %w", err)
	}
	defer func() { _ = subscription.Unsubscribe() }()
	go n.send(ctx)
	for {
		select {
		case <-ctx.Done():
			return nil
		case message := <-arrived:
			text, ours := strings.CutPrefix(string(message.Data), n.prefix)
			if !ours {
				continue
			}
			number, verifier, _ := strings.Cut(text, " ")
			position, err := strconv.ParseUint(number, 10, 63)
			if err != nil {
				n.logger.Debug("a notice cannot be read", "subject", message.Subject)
				continue
			}
			switch message.Subject {
			case askSubject, softAskSubject:
				asked(domain.Position(position), message.Subject == softAskSubject)
			case confirmedSubject:
				if id, err := domain.ParseID(verifier); err == nil {
					confirmed(id, domain.Position(position))
				}
			}
		}
	}
}
