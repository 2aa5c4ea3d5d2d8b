package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"

	"keyledger/domain"
	"keyledger/eventstore"
	"keyledger/internal/backing"
	"keyledger/internal/probe"
	"keyledger/publisher"
)

const askWithin = 3 * time.Second

func (p *program) status() *cobra.Command {
	cmd := &cobra.Command{
		Use: "status", Short: "Show how far the log, the streams and the projections are",
		Long: `Show the positions of the log, of the streams on NATS and of the projections, and
how far each is behind, in events and in seconds.`,
	}
	return p.command(cmd, p.showStatus, []string{"json"}, ledgerFlags, natsFlags)
}

// ledgerStatus is what keyledger status --json prints.
type ledgerStatus struct {
	Ledger      string         `json:"ledger"`
	Epoch       uint32         `json:"epoch"`
	Server      *serverStatus  `json:"server"` // null: none runs on the data directory
	Log         []laneStatus   `json:"log"`
	Streams     []followStatus `json:"streams"`
	Projections []followStatus `json:"projections"`
}

type serverStatus struct {
	URL   string `json:"url"`
	Ready bool   `json:"ready"`
	State string `json:"state"`
}

type laneStatus struct {
	Lane       domain.Lane     `json:"lane"`
	Position   domain.Position `json:"position"`
	RecordedAt *time.Time      `json:"recordedAt"` // of the last event
}

// followStatus is how far something is that follows a lane.
type followStatus struct {
	Name       string          `json:"name"`
	Lane       domain.Lane     `json:"lane"`
	Position   domain.Position `json:"position"`
	Lag        int64           `json:"lag"`        // events; below 0: ahead of the log
	LagSeconds float64         `json:"lagSeconds"` // age of the oldest event that is missing
	State      string          `json:"state"`      // ok, behind, ahead, another history, missing, unreachable
}

func (p *program) showStatus(ctx context.Context) (err error) {
	l, err := p.openLedger(ctx, backing.Needs{NATS: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.close(ctx)) }()
	status, heads, err := readLog(ctx, l)
	if err != nil {
		return err
	}
	if status.Projections, err = readProjections(ctx, l.pool, heads); err != nil {
		return err
	}
	if l.HTTP != "" {
		p.askServer(ctx, l, heads, &status)
	}
	if status.Streams, err = p.readStreams(ctx, l, heads); err != nil {
		return err
	}
	if p.config.JSON {
		return p.printJSON(status)
	}
	return p.printStatus(status)
}

func readLog(ctx context.Context, l *ledger) (status ledgerStatus, heads map[domain.Lane]eventstore.Head, err error) {
	ledger, epoch := l.store.Ledger()
	status = ledgerStatus{Ledger: ledger.UUID(), Epoch: epoch}
	heads = map[domain.Lane]eventstore.Head{}
	for _, lane := range domain.Lanes() {
		head, err := l.store.Head(ctx, lane)
		if err != nil {
			return status, nil, err
		}
		heads[lane] = head
		s := laneStatus{Lane: lane, Position: head.Position}
		if at, ok, err := recordedAt(ctx, l.pool, lane, head.Position); err != nil {
			return status, nil, err
		} else if ok {
			s.RecordedAt = &at
		}
		status.Log = append(status.Log, s)
	}
	return status, heads, nil
}

// recordedAt tells when a position was recorded, if the database still has it.
func recordedAt(ctx context.Context, pool *pgxpool.Pool, lane domain.Lane, position domain.Position) (at time.Time, ok bool, err error) {
	var found *time.Time
	err = pool.QueryRow(ctx, `SELECT (SELECT recorded_at FROM events WHERE lane = $1 AND position = $2)`, string(lane), int64(position)).Scan(&found)
	if err != nil || found == nil {
		return time.Time{}, false, eventstore.Wrap(err, "read %s %d", lane, position)
	}
	return found.UTC(), true, nil
}

// following compares a follower's position with the log's.
func following(ctx context.Context, pool *pgxpool.Pool, name string, lane domain.Lane, position domain.Position, head eventstore.Head) (followStatus, error) {
	s := followStatus{Name: name, Lane: lane, Position: position, Lag: int64(head.Position) - int64(position), State: "ok"}
	switch {
	case s.Lag < 0:
		s.State = "ahead"
	case s.Lag > 0:
		s.State = "behind"
		at, ok, err := recordedAt(ctx, pool, lane, position+1)
		if err != nil {
			return s, err
		}
		if ok {
			s.LagSeconds = max(0, time.Since(at).Seconds())
		}
	}
	return s, nil
}

func readProjections(ctx context.Context, pool *pgxpool.Pool, heads map[domain.Lane]eventstore.Head) ([]followStatus, error) {
	rows := []followStatus{}
	for _, projection := range rebuildable(pool) {
		at, err := projection.Checkpoint(ctx)
		if err != nil {
			return nil, err
		}
		head := heads[projection.Lane()]
		s, err := following(ctx, pool, projection.Name(), projection.Lane(), at.Position, head)
		if err != nil {
			return nil, err
		}
		if s.State != "ahead" && at.Fits(head) != nil {
			s.State = "another history"
		}
		rows = append(rows, s)
	}
	return rows, nil
}

// askServer adds what only a running server knows.
func (p *program) askServer(ctx context.Context, l *ledger, heads map[domain.Lane]eventstore.Head, status *ledgerStatus) {
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	status.Server = &serverStatus{URL: l.HTTP}
	health, err := probe.At(l.HTTP).Health(ctx)
	if err != nil {
		status.Server.State = "unreachable"
		p.logger.Warn("the server does not answer", "error", err)
		return
	}
	status.Server.Ready, status.Server.State = health.Ready, health.Status
	if s, err := following(ctx, l.pool, "verification", domain.Lifecycle, health.Position, heads[domain.Lifecycle]); err == nil {
		status.Projections = append(status.Projections, s)
	}
}

func (p *program) readStreams(ctx context.Context, l *ledger, heads map[domain.Lane]eventstore.Head) ([]followStatus, error) {
	conn, err := l.NATS.Connect(p.logger)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		return nil, fmt.Errorf("use JetStream: %w", err)
	}
	streams := []followStatus{}
	for _, lane := range domain.Lanes() {
		s, err := readStream(ctx, l.pool, conn, js, lane, heads[lane])
		if err != nil {
			return nil, err
		}
		streams = append(streams, s)
	}
	return streams, nil
}

func readStream(ctx context.Context, pool *pgxpool.Pool, conn *nats.Conn, js jetstream.JetStream, lane domain.Lane, head eventstore.Head) (followStatus, error) {
	name := publisher.StreamName(lane)
	lost := followStatus{Name: name, Lane: lane, Lag: int64(head.Position), State: "unreachable"}
	if !conn.IsConnected() {
		return lost, nil
	}
	asking, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	stream, err := js.Stream(asking, name)
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound):
		lost.State = "missing"
		return lost, nil
	case err != nil:
		return lost, nil //nolint:nilerr // that is its state
	}
	return following(ctx, pool, name, lane, domain.Position(stream.CachedInfo().State.LastSeq), head)
}

func (p *program) printStatus(s ledgerStatus) error {
	if err := p.print("Ledger %s, epoch %d\n", s.Ledger, s.Epoch); err != nil {
		return err
	}
	server := "No server runs on the data directory"
	if s.Server != nil {
		server = fmt.Sprintf("Server %s: %s", s.Server.URL, s.Server.State)
	}
	if err := p.print("%s\n\n", server); err != nil {
		return err
	}
	rows := [][]string{{"", "LANE", "POSITION", "LAG", "SECONDS", "STATE"}}
	for _, l := range s.Log {
		rows = append(rows, []string{"log", string(l.Lane), strconv.FormatUint(uint64(l.Position), 10), "", "", ""})
	}
	for _, group := range [][]followStatus{s.Streams, s.Projections} {
		for _, f := range group {
			rows = append(rows, []string{
				f.Name, string(f.Lane), strconv.FormatUint(uint64(f.Position), 10), strconv.FormatInt(f.Lag, 10),
				strings.TrimSuffix(strconv.FormatFloat(f.LagSeconds, 'f', 1, 64), ".0"), f.State,
			})
		}
	}
	return p.printTable(rows)
}
