package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"

	"keyledger/api"
	"keyledger/domain"
	"keyledger/eventstore"
	"keyledger/fence"
	keyhttp "keyledger/http"
	"keyledger/index"
	"keyledger/internal/backing"
	"keyledger/internal/config"
	"keyledger/internal/datadir"
	"keyledger/internal/lifecycle"
	"keyledger/natsapi"
	"keyledger/projections"
	"keyledger/projections/keylist"
	"keyledger/projections/organizations"
	"keyledger/projections/transparency"
	"keyledger/projections/usage"
	"keyledger/projections/verification"
	"keyledger/publisher"
	"keyledger/shares"
	"keyledger/webhooks"
)

// node is a running server: its parts, each of which uses those above it.
type node struct {
	*program
	dir         *datadir.Dir
	parts       *lifecycle.Group
	listener    net.Listener
	certificate *tls.Config // nil: no TLS

	registry  *prometheus.Registry
	tracing   tracing
	database  *backing.Database
	nats      *backing.NATS
	conn      *nats.Conn
	pool      *pgxpool.Pool
	store     *eventstore.Store
	keylist   *projections.Follower
	usage     *projections.Follower
	places    *projections.Follower // of organizations' events
	list      *keylist.List
	index     *index.Index
	uses      *verification.Accountant
	fence     *fence.Fence
	shares    *shares.Shares
	boot      domain.ID // of this run: names its lease and its uses
	relays    []*publisher.Relay
	feed      *publisher.Feed
	webhooks  *webhooks.Webhooks
	server    *keyhttp.Server
	endpoints datadir.Endpoints
}

// drainWithin bounds how long a stopping relay goes on publishing what is in
// the log. The others, or the next start, publish the rest.
const drainWithin = 2 * time.Second

// start brings the parts up. The order is the reverse of the order in which they
// must stop: first requests finish, then their uses are written, then both are
// published, then nobody reads or writes the log any more, and only then do NATS
// and Postgres go.
func (n *node) start(ctx context.Context) error {
	n.registry = prometheus.NewRegistry()
	n.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	masterKey, jwtSecret, err := n.secrets()
	if err != nil {
		return err
	}
	for _, step := range []func(context.Context) error{
		n.startTracing,
		n.startBacking,
		func(ctx context.Context) error { return n.startLog(ctx, masterKey) },
		n.startFollowers,
		n.startTrees,
		n.firstKey,
		n.startRelays,
		func(context.Context) error { return n.startFeed(masterKey) },
		n.startIndex,
		n.startFence,
		func(ctx context.Context) error { return n.startHTTP(ctx, masterKey, jwtSecret) },
		n.awaitReady,
		n.startNATSService,
	} {
		if err := step(ctx); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	return nil
}

// startBacking brings up Postgres and NATS, both at once.
func (n *node) startBacking(ctx context.Context) error {
	group, starting := errgroup.WithContext(ctx)
	group.Go(func() (err error) {
		n.database, err = backing.StartDatabase(starting, n.dir, n.config, n.logger)
		return err
	})
	group.Go(func() (err error) {
		n.nats, err = backing.StartNATS(starting, n.dir, n.config, n.logger)
		return err
	})
	err := group.Wait()
	if n.database != nil {
		n.parts.Go("postgres", func(ctx context.Context) error {
			select {
			case <-n.database.Gone():
				return n.database.Err()
			case <-ctx.Done():
			}
			stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), n.config.ShutdownTimeout)
			defer cancel()
			return n.database.Stop(stopping)
		})
	}
	if n.nats != nil {
		n.parts.Go("nats", func(ctx context.Context) error {
			<-ctx.Done()
			return n.nats.Stop()
		})
	}
	if err != nil {
		return err
	}
	if n.database.Embedded {
		n.logger.Info("running on the embedded Postgres; DATABASE_URL replaces it", "data", n.dir.Path("postgres"))
	} else {
		n.logger.Info("running on the Postgres of DATABASE_URL", "database", n.config.DatabaseURL.String())
	}
	if n.nats.Embedded {
		n.logger.Info("running on the embedded NATS; NATS_URL replaces it", "data", n.dir.Path("nats"))
	} else {
		n.logger.Info("running on the NATS of NATS_URL", "nats", n.config.NATSURL.String())
	}
	if n.config.Migrate {
		return n.database.Migrate(ctx, n.logger)
	}
	return nil
}

// startLog opens the log, and tells other nodes of every commit.
func (n *node) startLog(ctx context.Context, masterKey []byte) (err error) {
	if n.conn, err = n.nats.Connect(n.logger); err != nil {
		return err
	}
	n.parts.Go("nats connection", func(ctx context.Context) error {
		<-ctx.Done()
		n.conn.Close()
		return nil
	})
	n.pool, err = eventstore.Connect(ctx, n.database.URL, eventstore.ConnectOptions{MaxConns: n.config.DatabaseConnections, MinConns: n.config.DatabaseConnections / 2, Tracer: n.tracing.queries})
	if err != nil {
		return err
	}
	n.parts.Go("database connections", func(ctx context.Context) error {
		<-ctx.Done()
		n.pool.Close()
		return nil
	})
	n.store, err = eventstore.Open(ctx, eventstore.Options{Pool: n.pool, MasterKey: masterKey, Logger: n.logger, Registerer: n.registry})
	if err != nil {
		return err
	}
	wake := publisher.NewWake(n.conn, n.logger)
	n.store.OnCommit(wake.Announce)
	n.parts.Go("announcements", wake.Run)
	n.parts.Go("log", n.store.Run)
	n.parts.Go("announcements of others", func(ctx context.Context) error { return wake.Listen(ctx, n.store.Receive) })
	return nil
}

// startFollowers drives the projections in Postgres.
func (n *node) startFollowers(context.Context) error {
	options := projections.FollowerOptions{Logger: n.logger, Registerer: n.registry}
	n.keylist = projections.NewFollower(n.store, keylist.New(n.pool), options)
	n.usage = projections.NewFollower(n.store, usage.New(n.pool), options)
	n.places = projections.NewFollower(n.store, organizations.New(n.pool), options)
	n.list = keylist.NewList(n.pool, n.keylist)
	n.parts.Go("projection keylist", again(n.keylist.Run))
	n.parts.Go("projection usage", again(n.usage.Run))
	n.parts.Go("projection organizations", again(n.places.Run))
	return nil
}

// againAfter is how soon a projection that has stopped looks whether it was rebuilt.
const againAfter = 15 * time.Second

// again runs a projection that says why it stopped until ctx ends: the rest of
// the server does its work meanwhile, and keyledger replay may mend it.
func again(run func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		for {
			if err := run(ctx); errors.Is(err, eventstore.ErrEpochChanged) {
				return err
			}
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(againAfter):
			}
		}
	}
}

// startRelays publishes both lanes.
func (n *node) startRelays(context.Context) error {
	for _, lane := range domain.Lanes() {
		relay, err := n.newRelay(n.conn, n.store, lane, n.registry)
		if err != nil {
			return err
		}
		n.relays = append(n.relays, relay)
		n.parts.Go("relay "+string(lane), func(ctx context.Context) error {
			// What was written last is still published, if NATS is there.
			running, stop := context.WithCancel(context.WithoutCancel(ctx))
			defer stop()
			defer context.AfterFunc(ctx, func() {
				defer stop()
				draining, cancel := context.WithTimeout(running, drainWithin)
				defer cancel()
				head, err := n.store.Head(draining, lane)
				if s := relay.Status(); err == nil && s.Error == "" && s.Alarm == "" {
					_ = relay.WaitFor(draining, head.Position)
				}
			})()
			return relay.Run(running)
		})
	}
	return nil
}

// startFeed tells those who read along over HTTP what is new, and sends it to
// those who want to be called.
func (n *node) startFeed(masterKey []byte) error {
	n.feed = publisher.NewFeed(feedLog{n.store, organizations.NewReader(n.pool, n.store, n.places)}, n.logger)
	n.parts.Go("feed of events", n.feed.Run)
	key, err := backing.WebhookKey(masterKey)
	if err != nil {
		return err
	}
	n.webhooks, err = webhooks.New(webhooks.Options{
		Pool: n.pool, Feed: n.feed, Key: key, Insecure: n.config.WebhookInsecure, Logger: n.logger, Registerer: n.registry,
	})
	if err != nil {
		return err
	}
	n.parts.Go("webhooks", n.webhooks.Run)
	return nil
}

// startIndex loads the verification index, and accounts the uses that it sees.
func (n *node) startIndex(context.Context) (err error) {
	if n.boot, err = domain.NewID(time.Now(), rand.Reader); err != nil {
		return err
	}
	options := index.Options{Logger: n.logger, TuneCollector: true, Leased: true, Lease: n.config.Lease}
	if n.config.Stale == config.StaleServe {
		options.MaxStale = n.config.MaxStale
	}
	n.index = index.New(options)
	projection := verification.New(n.index, verification.Options{Pool: n.pool, Log: n.store, Logger: n.logger, Registerer: n.registry})
	quotas := verification.NewQuotas(n.index, verification.QuotaOptions{Boot: n.boot, Pool: n.pool, Log: n.store, Logger: n.logger})
	n.uses, err = verification.NewAccountant(n.index, n.store, verification.AccountantOptions{
		Boot: n.boot, Window: n.config.FlushInterval, Farewell: n.config.ShutdownTimeout, Logger: n.logger, Registerer: n.registry,
	})
	if err != nil {
		return err
	}
	n.parts.Go("verification index", projection.Run)
	n.parts.Go("quotas", quotas.Run)
	n.parts.Go("accounting of uses", n.uses.Run)
	return nil
}

// startFence joins those whom revocations wait for. It stops when every door is closed.
func (n *node) startFence(ctx context.Context) error {
	pool, err := eventstore.Connect(ctx, n.database.URL, eventstore.ConnectOptions{MaxConns: fenceConnections, MinConns: fenceConnections})
	if err != nil {
		return err
	}
	ledger, epoch := n.store.Ledger()
	name, _ := os.Hostname() // for people
	if n.database.Embedded {
		// The data directory's lock lets one server at a time run on its own database.
		name = "the server of the data directory"
	}
	n.fence, err = fence.New(fence.Options{
		ID: n.boot, Name: name, Sole: n.database.Embedded, Lease: n.config.Lease, Pool: pool, Log: n.store, Index: n.index,
		Transport: publisher.NewNotices(n.conn, ledger, epoch, n.logger), Logger: n.logger, Registerer: n.registry,
	})
	if err != nil {
		pool.Close()
		return err
	}
	n.shares, err = shares.New(shares.Options{
		ID: n.boot, Index: n.index, Transport: publisher.NewShares(n.conn, ledger, epoch, n.logger), Members: n.fence.Nodes, Logger: n.logger, Registerer: n.registry,
	})
	if err != nil {
		pool.Close()
		return err
	}
	n.parts.Go("fence", func(ctx context.Context) error {
		defer pool.Close()
		return n.fence.Run(ctx)
	})
	n.parts.Go("shares of limits", n.shares.Run)
	return nil
}

// fenceConnections are a renewal's, a revocation's that reads who is to be waited
// for, and a joining verifier's. A lease does not queue behind commands.
const fenceConnections = 4

// startHTTP serves, and says where. /livez answers from here on, /readyz when the
// index is loaded.
func (n *node) startHTTP(_ context.Context, masterKey, jwtSecret []byte) error {
	cursorKey, err := backing.CursorKey(masterKey)
	if err != nil {
		return err
	}
	_, epoch := n.store.Ledger()
	n.server, err = keyhttp.New(keyhttp.Options{
		Ledger: n.store, Verifier: n.index, Quotas: n.index, Keys: n.list, Fence: n.fence, Log: transparency.NewReader(n.pool, n.store), Audit: n.auditLog(),
		Verifiers: fence.NewDesk(n.fence), KeyFeed: verification.NewFeed(n.index, n.store),
		Events: feed{n.feed}, Webhooks: n.webhooks, AsyncAPI: api.AsyncAPI, Usage: usage.NewCounts(n.pool, n.store, n.usage), RequestTimeout: requestTimeout + fence.Bound(n.config.Lease),
		Epoch: epoch, CursorKey: cursorKey, KeyFormat: n.config.KeyPrefix, RateLimit: n.config.DefaultRateLimit,
		VerifyAuth: n.config.VerifyAuth == config.VerifyAuthRequired, Durable: n.uses, Exact: n.config.Usage == config.UsageExact, UnknownKeys: n.config.UnknownKeys,
		Tokens: keyhttp.TokenOptions{
			Secret: jwtSecret, JWKSURL: n.config.JWKSURL, Issuer: n.config.JWTIssuer, Audience: n.config.JWTAudience, Roles: n.config.JWTRoles,
		},
		TrustedProxies: n.config.TrustedProxies, TLS: n.certificate, DrainDelay: n.config.DrainDelay,
		Version: buildVersion(), Checks: n.checks(),
		Logger: n.logger, Registerer: n.registry, Gatherer: n.registry, TracerProvider: n.tracing.provider,
	})
	if err != nil {
		return err
	}
	n.endpoints = datadir.Endpoints{Database: n.database.Endpoint, DatabaseAdmin: n.database.AdminURL, NATS: n.nats.Endpoint}
	if n.endpoints.HTTP, err = n.publicURL(); err != nil {
		return err
	}
	n.parts.Go("http", func(ctx context.Context) error {
		served := make(chan error, 1)
		go func() { served <- n.server.Serve(n.listener) }()
		select {
		case err := <-served:
			return err
		case <-ctx.Done():
		}
		stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), n.config.DrainDelay+n.config.ShutdownTimeout)
		defer cancel()
		return errors.Join(n.server.Shutdown(stopping), <-served)
	})
	return n.dir.WriteEndpoints(n.endpoints)
}

// requestTimeout bounds what a request takes beside the wait for a fence.
const requestTimeout = 15 * time.Second

const askReadyEvery = 2 * time.Millisecond

// awaitReady returns when the index answers.
func (n *node) awaitReady(ctx context.Context) error {
	if err := n.await(ctx, n.index.Ready); err != nil {
		return err
	}
	select {
	case <-n.fence.Leased():
	case err := <-n.parts.Failed():
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return n.await(ctx, n.shares.Known) // until then, no more than a chunk of a limit is accepted
}

func (n *node) await(ctx context.Context, yes func() bool) error {
	poll := time.NewTicker(askReadyEvery)
	defer poll.Stop()
	for !yes() {
		select {
		case <-poll.C:
		case err := <-n.parts.Failed():
			return err
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// startNATSService answers questions over NATS, once there is something to answer.
func (n *node) startNATSService(context.Context) error {
	service := natsapi.New(natsapi.Options{Conn: n.conn, Verifier: n.server, Version: buildVersion().Version, Logger: n.logger})
	n.parts.Go("nats service", service.Run)
	return nil
}
