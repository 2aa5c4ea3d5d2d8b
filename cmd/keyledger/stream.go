package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"keyledger/domain"
	"keyledger/eventstore"
	"keyledger/internal/backing"
	"keyledger/publisher"
)

func (p *program) stream() *cobra.Command {
	return p.family("stream", "Look after the streams on NATS",
		p.command(&cobra.Command{
			Use: "rebuild", Short: "Make the streams again from the log",
			Long: `Delete the streams on NATS with all their consumers, and publish them again from the
log, under the same sequence numbers. It is the answer to a relay that has stopped
with an alarm, and loses nothing that the log has. Durable consumers must be made
again by their owners.`,
		}, p.rebuildStreams, []string{"yes"}, ledgerFlags, natsFlags),
	)
}

func (p *program) rebuildStreams(ctx context.Context) (err error) {
	l, err := p.openLedger(ctx, backing.Needs{NATS: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.close(ctx)) }()
	if err := p.confirm("The streams are deleted with all their consumers, and published again from the log. Go on?"); err != nil {
		return err
	}
	conn, err := l.NATS.Connect(p.logger)
	if err != nil {
		return err
	}
	defer conn.Close()
	if !conn.IsConnected() {
		return errors.New("nats cannot be reached: is it running, and is NATS_URL right?")
	}
	for _, lane := range domain.Lanes() {
		if err := p.rebuildStream(ctx, l.store, conn, lane); err != nil {
			return err
		}
	}
	return nil
}

// rebuildStream makes a stream anew and fills it. The relays of running servers do
// so, too: whoever is faster.
func (p *program) rebuildStream(ctx context.Context, store *eventstore.Store, conn *nats.Conn, lane domain.Lane) error {
	relay, err := p.newRelay(conn, store, lane, nil)
	if err != nil {
		return err
	}
	head, err := store.Head(ctx, lane)
	if err != nil {
		return err
	}
	started := time.Now()
	if err := relay.Rebuild(ctx); err != nil {
		return err
	}
	running, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- relay.Run(running) }()
	update, finish := p.progress("publish " + publisher.StreamName(lane))
	err = p.awaitRelay(ctx, relay, head.Position, update)
	finish()
	stop()
	if err := errors.Join(err, <-ended); err != nil {
		return err
	}
	p.say("Stream %s has the log up to position %d (%s).", publisher.StreamName(lane), head.Position, time.Since(started).Round(time.Millisecond))
	return nil
}

func (p *program) awaitRelay(ctx context.Context, relay *publisher.Relay, head domain.Position, update func(done, total domain.Position)) error {
	for {
		waiting, cancel := context.WithTimeout(ctx, progressEvery)
		err := relay.WaitFor(waiting, head)
		cancel()
		status := relay.Status()
		update(min(status.Last, head), head)
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case status.Alarm != "":
			return errors.New(status.Alarm)
		}
	}
}

// newRelay makes the relay of a lane, the same in the server and in commands.
func (p *program) newRelay(conn *nats.Conn, store *eventstore.Store, lane domain.Lane, registerer prometheus.Registerer) (*publisher.Relay, error) {
	js, err := jetstream.New(conn)
	if err != nil {
		return nil, fmt.Errorf("use JetStream: %w", err)
	}
	age := publisher.LifecycleMaxAge
	if lane == domain.Usage {
		age = publisher.UsageMaxAge
	}
	return publisher.New(js, store, lane, publisher.Options{
		Logger: p.logger, Registerer: registerer, MaxAge: age, Replicas: p.config.StreamReplicas,
	})
}
