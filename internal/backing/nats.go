package backing

import (
	"context"
	"encoding/hex"
	"fmt"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go"

	"keyledger/internal/config"
	"keyledger/internal/datadir"
	"keyledger/internal/natsserver"
)

const (
	natsUser         = "keyledger"
	natsPasswordFile = "nats.password"
	natsConnect      = 2 * time.Second
)

// NATS is a NATS server or cluster with JetStream.
type NATS struct {
	Endpoint string // for other programs, with credentials
	Embedded bool

	creds  string
	server *natsserver.Server // nil unless it was started here
}

// StartNATS starts the embedded NATS of a locked data directory. One that is
// configured is not asked: it may come later.
func StartNATS(ctx context.Context, dir *datadir.Dir, c config.Config, logger *slog.Logger) (*NATS, error) {
	if c.NATSURL.IsSet() {
		return &NATS{Endpoint: c.NATSURL.Reveal(), creds: c.NATSCreds}, nil
	}
	password, err := dir.ReadOrCreateSecret(natsPasswordFile, 16)
	if err != nil {
		return nil, err
	}
	server, err := natsserver.Start(ctx, natsserver.Options{
		StoreDir: dir.Path("nats"), User: natsUser, Password: hex.EncodeToString(password), Logger: logger,
	})
	if err != nil {
		return nil, err
	}
	return &NATS{Endpoint: server.ClientURL(), Embedded: true, server: server}, nil
}

// Connect gives a connection that comes back by itself however long NATS is away,
// at the beginning, too.
func (n *NATS) Connect(logger *slog.Logger) (*nats.Conn, error) {
	options := []nats.Option{
		nats.Name("keyledger"), nats.Timeout(natsConnect), nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1),
		nats.ReconnectWait(250 * time.Millisecond), nats.ReconnectJitter(250*time.Millisecond, 500*time.Millisecond),
		nats.ConnectHandler(func(c *nats.Conn) { logger.Info("connected to nats", "server", c.ConnectedServerName()) }),
		nats.ReconnectHandler(func(c *nats.Conn) { logger.Info("connected to nats again", "server", c.ConnectedServerName()) }),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				logger.Warn("the connection to nats is lost: events wait in the log until it returns", "error", err)
			}
		}),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			logger.Debug("nats reports an error", "error", err)
		}),
	}
	if n.server != nil {
		return n.server.Connect(options...)
	}
	if n.creds != "" {
		options = append(options, nats.UserCredentials(n.creds))
	}
	conn, err := nats.Connect(n.Endpoint, options...)
	if err != nil {
		return nil, fmt.Errorf("connect to nats at %s: %w", config.NewURL(n.Endpoint), err)
	}
	if !conn.IsConnected() {
		logger.Warn("nats cannot be reached yet: events wait in the log until it can", "nats", config.NewURL(n.Endpoint).String())
	}
	return conn, nil
}

// Stop ends what StartNATS has started.
func (n *NATS) Stop() error {
	if n == nil || n.server == nil {
		return nil
	}
	return n.server.Shutdown()
}
