package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"keyledger/internal/backing"
	"keyledger/internal/datadir"
	"keyledger/internal/lifecycle"
	"keyledger/internal/probe"
)

func (p *program) serve() *cobra.Command {
	cmd := &cobra.Command{
		Use: "serve", Short: "Run the service",
		Long: `Run the service. With nothing configured it runs on an embedded Postgres and an
embedded NATS, in the data directory; DATABASE_URL and NATS_URL replace them. Where it
listens, it writes to endpoints.json in the data directory, with credentials.

SIGTERM and SIGINT end it: readiness goes off, requests finish, uses and events
are written. A second signal ends it at once. Exit code 3 says that the ledger's
history has changed (a backup was restored) and the server is to be started again.`,
		Example: `  keyledger serve --bootstrap org_abc123
  DATABASE_URL=postgres://... NATS_URL=nats://... keyledger serve --listen :8080`,
	}
	return p.command(cmd, p.runServer,
		[]string{"listen", "bootstrap"}, ledgerFlags, []string{"database-wait", "database-connections", "migrate"}, natsFlags,
		[]string{"jwt-secret", "jwks-url", "jwt-issuer", "jwt-audience", "jwt-roles"},
		[]string{"key-prefix", "default-rate-limit", "verify-auth", "unknown-keys", "usage", "flush-interval", "checkpoint-key", "witness", "webhook-insecure"},
		[]string{"lease", "stale", "max-stale"},
		[]string{"tls-cert", "tls-key", "trusted-proxies", "drain-delay", "shutdown-timeout"})
}

// runServer brings everything up in the order in which it is needed, waits for a
// signal or a failure, and takes it down in the reverse order.
func (p *program) runServer(ctx context.Context) (err error) {
	started := time.Now()
	p.logger.Info("keyledger starts", "version", versionText())
	p.logger.LogAttrs(ctx, slog.LevelInfo, "settings that differ from the defaults", p.config.Changed()...)

	dir, err := datadir.Open(p.config.DataDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	// What a killed server left would send other commands to ports that are somebody else's now.
	if err := dir.RemoveEndpoints(); err != nil {
		return err
	}
	// Before anything is started: a port that is taken is the most common mistake.
	listener, err := listen(ctx, p.config.Listen)
	if err != nil {
		return err
	}
	defer listener.Close() //nolint:errcheck // closed by the server, if it came that far

	certificate, err := p.certificate()
	if err != nil {
		return err
	}

	// Parts bound their own ends; the group's patience is for one that cannot even do that.
	parts := lifecycle.New(p.config.DrainDelay+p.config.ShutdownTimeout+grace, p.logger)
	n := &node{program: p, dir: dir, parts: parts, listener: listener, certificate: certificate}
	err = n.start(ctx)
	if err == nil {
		p.logger.Info("keyledger is ready", "http", n.endpoints.HTTP, "keys", n.index.Len(), "took", time.Since(started).Round(time.Millisecond))
		select {
		case <-ctx.Done():
		case err = <-parts.Failed():
		}
	}
	if ctx.Err() != nil {
		p.logger.Info("keyledger stops", "cause", context.Cause(ctx).Error())
		if errors.Is(err, context.Canceled) || errors.Is(err, context.Cause(ctx)) {
			err = nil // it was stopped while it started
		}
	} else {
		p.logger.Error("keyledger stops", "error", err)
	}
	stopping := time.Now()
	err = errors.Join(err, dir.RemoveEndpoints(), parts.Stop())
	if err == nil {
		p.logger.Info("keyledger has stopped", "took", time.Since(stopping).Round(time.Millisecond))
	}
	return err
}

// listen takes the address, and says what to do when it cannot be had.
func listen(ctx context.Context, address string) (net.Listener, error) {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	switch {
	case err == nil:
		return listener, nil
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("the address %s is taken by another process: stop it, or choose another address with --listen (KEYLEDGER_LISTEN)", address)
	case errors.Is(err, syscall.EACCES):
		return nil, fmt.Errorf("the address %s may not be used: ports below 1024 need a privilege; choose another with --listen (KEYLEDGER_LISTEN)", address)
	}
	return nil, fmt.Errorf("--listen (KEYLEDGER_LISTEN) %s: %w", address, err)
}

const grace = 5 * time.Second

// certificate reads what TLS needs; nil without it.
func (p *program) certificate() (*tls.Config, error) {
	if p.config.TLSCert == "" {
		return nil, nil
	}
	pair, err := tls.LoadX509KeyPair(p.config.TLSCert, p.config.TLSKey)
	if err != nil {
		return nil, fmt.Errorf("read the certificate of --tls-cert and --tls-key: %w", err)
	}
	return &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}, nil
}

// secrets resolves the secrets that have a default, and says aloud which of them
// other nodes will lack.
func (n *node) secrets() (masterKey, jwtSecret []byte, err error) {
	masterKey, origin, err := backing.MasterKey(n.dir, n.config, true)
	if err != nil {
		return nil, nil, err
	}
	shared := n.config.DatabaseURL.IsSet()
	if shared && origin != backing.Configured {
		n.logger.Warn("THE MASTER KEY STANDS IN THIS DATA DIRECTORY ALONE: without it nobody can read the names and users in the ledger again. "+
			"Every node of this ledger needs the same one: set KEYLEDGER_MASTER_KEY or KEYLEDGER_MASTER_KEY_FILE, and keep a copy",
			"file", n.dir.Path("master.key"))
	}
	jwtSecret, origin, err = backing.JWTSecret(n.dir, n.config)
	if err != nil {
		return nil, nil, err
	}
	if shared && origin != backing.Configured {
		n.logger.Warn("the JWT secret was drawn into this data directory: tokens made with it are accepted by this node alone. "+
			"Set KEYLEDGER_JWT_SECRET or KEYLEDGER_JWKS_URL", "file", n.dir.Path("jwt.secret"))
	}
	return masterKey, jwtSecret, nil
}

// publicURL is where this machine reaches the server, with the port that the
// listener has really got.
func (n *node) publicURL() (string, error) {
	host, _, err := net.SplitHostPort(n.config.Listen)
	if err != nil {
		return "", err
	}
	_, port, err := net.SplitHostPort(n.listener.Addr().String())
	if err != nil {
		return "", err
	}
	return probe.URL(net.JoinHostPort(strings.Trim(host, "[]"), port), n.config.TLSCert != "")
}
