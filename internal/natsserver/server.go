package natsserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	natsd "github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"keyledger/internal/datadir"
)

const portFile = "port"

// Options say where the server keeps its streams and who may connect.
type Options struct {
	// StoreDir holds the streams. It is created where it is missing.
	StoreDir string
	// User and Password are asked of every client, the service's own included.
	User, Password string
	// Port to listen on. 0 keeps the port of the last start, or finds a free one.
	Port int
	// Logger hears what the server says.
	Logger *slog.Logger

	// Name, ClusterName, RoutePort and Routes make the server one of several.
	// Name must differ for each, RoutePort is where the others connect, and Routes
	// are the others' route URLs.
	Name        string
	ClusterName string
	RoutePort   int
	Routes      []string
}

// Server is a running NATS server.
type Server struct {
	nats     *natsd.Server
	lock     *datadir.Lock
	user     string
	password string
	stop     sync.Once
	stopErr  error
}

// Start returns when the server accepts connections. A member of a cluster
// accepts them before the cluster has a leader.
func Start(ctx context.Context, opts Options) (_ *Server, err error) {
	if opts.User == "" || opts.Password == "" {
		return nil, errors.New("start nats: a user and a password are needed, or every process of this machine could publish")
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	dir := datadir.At(opts.StoreDir)
	if err := os.MkdirAll(dir.Path(), 0o700); err != nil {
		return nil, fmt.Errorf("create the store of nats: %w", err)
	}
	s := &Server{user: opts.User, password: opts.Password}
	if s.lock, err = datadir.AcquireLock(dir.Path()); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Shutdown())
		}
	}()
	config, err := configure(opts, dir.Path())
	if err != nil {
		return nil, err
	}
	remembered := 0
	if opts.Port == 0 {
		remembered = readPort(dir)
	}
	if remembered != 0 {
		// A subscriber that was configured once finds the server again.
		config.Port = remembered
	}
	err = s.run(ctx, config, opts.Logger)
	if err != nil && remembered != 0 && ctx.Err() == nil {
		opts.Logger.Warn("nats cannot use its last port, another is chosen", "port", remembered, "error", err)
		config.Port = natsd.RANDOM_PORT
		err = s.run(ctx, config, opts.Logger)
	}
	if err != nil {
		return nil, err
	}
	if err := dir.WriteFile(portFile, []byte(strconv.Itoa(s.Port())+"\n")); err != nil {
		return nil, err
	}
	opts.Logger.Info("nats is ready", "port", s.Port(), "version", natsd.VERSION)
	return s, nil
}

func configure(opts Options, storeDir string) (*natsd.Options, error) {
	config := &natsd.Options{
		ServerName: opts.Name,
		Host:       "127.0.0.1",
		Port:       opts.Port,
		Username:   opts.User,
		Password:   opts.Password,
		JetStream:  true,
		StoreDir:   storeDir,
		NoSigs:     true, // signals are the service's business
	}
	if config.Port == 0 {
		config.Port = natsd.RANDOM_PORT
	}
	if opts.ClusterName != "" {
		config.Cluster = natsd.ClusterOpts{Name: opts.ClusterName, Host: "127.0.0.1", Port: opts.RoutePort}
	}
	for _, text := range opts.Routes {
		route, err := url.Parse(text)
		if err != nil {
			return nil, fmt.Errorf("start nats: malformed route: %w", err)
		}
		config.Routes = append(config.Routes, route)
	}
	return config, nil
}

// run starts a server and waits until it listens. One that cannot is shut down.
func (s *Server) run(ctx context.Context, config *natsd.Options, log *slog.Logger) error {
	server, err := natsd.NewServer(config.Clone())
	if err != nil {
		return fmt.Errorf("configure nats: %w", err)
	}
	failed := make(chan string, 1)
	server.SetLoggerV2(&logger{log: log, failed: failed}, log.Enabled(ctx, slog.LevelDebug), false, false)
	server.Start()
	if err := awaitReady(ctx, server, failed); err != nil {
		server.Shutdown()
		server.WaitForShutdown()
		return err
	}
	s.nats = server
	return nil
}

func awaitReady(ctx context.Context, server *natsd.Server, failed <-chan string) error {
	for {
		select {
		case reason := <-failed:
			return fmt.Errorf("start nats: %s", reason)
		case <-ctx.Done():
			return fmt.Errorf("start nats: %w", context.Cause(ctx))
		default:
		}
		if server.ReadyForConnections(100 * time.Millisecond) {
			return nil
		}
	}
}

// readPort returns the port of the last start, 0 where there was none.
func readPort(dir *datadir.Dir) int {
	text, err := dir.ReadFile(portFile)
	if err != nil {
		return 0
	}
	port, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || port < 1 || port > 65535 {
		return 0
	}
	return port
}

// ClientURL is the server's URL with credentials, for other programs.
func (s *Server) ClientURL() string {
	u := url.URL{Scheme: "nats", User: url.UserPassword(s.user, s.password), Host: fmt.Sprintf("127.0.0.1:%d", s.Port())}
	return u.String()
}

// Port is where the server listens.
func (s *Server) Port() int {
	address, ok := s.nats.Addr().(*net.TCPAddr)
	if !ok {
		return 0
	}
	return address.Port
}

// Connect connects through memory, with credentials; opts are added.
func (s *Server) Connect(opts ...nats.Option) (*nats.Conn, error) {
	own := []nats.Option{nats.InProcessServer(s.nats), nats.UserInfo(s.user, s.password)}
	conn, err := nats.Connect("", append(own, opts...)...)
	if err != nil {
		return nil, fmt.Errorf("connect to nats in process: %w", err)
	}
	return conn, nil
}

// Shutdown stops the server and returns when its files are closed. It may be
// called more than once.
func (s *Server) Shutdown() error {
	s.stop.Do(func() {
		if s.nats != nil {
			s.nats.Shutdown()
			s.nats.WaitForShutdown()
		}
		s.stopErr = s.lock.Release()
	})
	return s.stopErr
}

// logger hands the server's lines to slog. What the server calls a notice is
// detail here.
type logger struct {
	log    *slog.Logger
	failed chan<- string
}

func (l *logger) Noticef(format string, v ...any) { l.log.Debug("nats: " + fmt.Sprintf(format, v...)) }

func (l *logger) Debugf(format string, v ...any) { l.log.Debug("nats: " + fmt.Sprintf(format, v...)) }

func (l *logger) Tracef(format string, v ...any) { l.log.Debug("nats: " + fmt.Sprintf(format, v...)) }

func (l *logger) Errorf(format string, v ...any) { l.log.Error("nats: " + fmt.Sprintf(format, v...)) }

func (l *logger) Warnf(format string, v ...any) {
	// It warns of every password that is not a bcrypt hash. Ours is random and
	// only in memory here, and hashing would cost every connection 50 ms.
	if strings.HasPrefix(format, "Plaintext passwords detected") {
		return
	}
	l.log.Warn("nats: " + fmt.Sprintf(format, v...))
}

func (l *logger) Fatalf(format string, v ...any) {
	reason := fmt.Sprintf(format, v...)
	l.log.Error("nats: " + reason)
	select {
	case l.failed <- reason:
	default:
	}
}
