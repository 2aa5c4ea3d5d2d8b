package eventstore

import (
	"context"
	"crypto/cipher"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"keyledger/domain"
)

// serviceRole is what the service's connections are allowed to be: it can append
// by append_events and change nothing in the log.
const serviceRole = "keyledger_service"

// ConnectOptions are the choices of Connect.
type ConnectOptions struct {
	MaxConns int             // 0: 16
	MinConns int             // are there before somebody waits for one
	Tracer   pgx.QueryTracer // nil: none
}

// Connect makes a pool whose connections have taken the service's role.
func Connect(ctx context.Context, url string, options ConnectOptions) (*pgxpool.Pool, error) {
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, &domain.Error{Code: domain.CodeInvalid, Field: "database-url", Message: "is not a Postgres connection string", Err: redactedConfigError(err)}
	}
	config.MaxConns = 16
	if options.MaxConns > 0 {
		config.MaxConns = int32(options.MaxConns)
	}
	config.MinConns = int32(options.MinConns)
	if options.Tracer != nil {
		config.ConnConfig.Tracer = options.Tracer
	}
	if config.ConnConfig.ConnectTimeout == 0 {
		config.ConnConfig.ConnectTimeout = 5 * time.Second
	}
	setDefault(config.ConnConfig.RuntimeParams, "application_name", "keyledger")
	setDefault(config.ConnConfig.RuntimeParams, "lock_timeout", "5s")
	setDefault(config.ConnConfig.RuntimeParams, "idle_in_transaction_session_timeout", "10s")
	config.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, "SET ROLE "+serviceRole)
		return err
	}
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, Wrap(err, "connect to the database")
	}
	return pool, nil
}

func redactedConfigError(err error) error {
	var parse *pgconn.ParseConfigError
	if errors.As(err, &parse) {
		return parse // pgx redacts the password in it
	}
	return errors.New("it cannot be parsed")
}

func setDefault(params map[string]string, name, value string) {
	if _, ok := params[name]; !ok {
		params[name] = value
	}
}

// Options are what a Store needs.
type Options struct {
	Pool       *pgxpool.Pool
	MasterKey  []byte // 32 bytes; it wraps the organizations' data keys
	Logger     *slog.Logger
	Clock      func() time.Time
	Registerer prometheus.Registerer // nil: no metrics
}

// Store is the log.
type Store struct {
	options   Options
	pool      *pgxpool.Pool
	keyring   *keyring
	ledger    domain.ID
	epoch     uint32
	appenders map[domain.Lane]*appender
	tails     map[domain.Lane]*tail
	members   *memberCache
	metrics   *metrics
	onCommit  func(domain.Lane, domain.Position, []byte)
	letters   cipher.AEAD // between the processes of this ledger
}

// Open reads which ledger this is, checks that the master key fits it, and makes
// the parts that the next appends need. It appends nothing before Run.
func Open(ctx context.Context, options Options) (*Store, error) {
	if options.Logger == nil {
		options.Logger = slog.New(slog.DiscardHandler)
	}
	if options.Clock == nil {
		options.Clock = time.Now
	}
	ring, err := newKeyring(options.Pool, options.MasterKey)
	if err != nil {
		return nil, err
	}
	letters, err := newLetters(options.MasterKey)
	if err != nil {
		return nil, err
	}
	s := &Store{
		options: options, pool: options.Pool, keyring: ring, members: newMemberCache(), metrics: newMetrics(options.Registerer), letters: letters,
		appenders: map[domain.Lane]*appender{}, tails: map[domain.Lane]*tail{},
	}
	heads, err := s.heads(ctx)
	if err != nil {
		return nil, err
	}
	for _, lane := range domain.Lanes() {
		s.ledger, s.epoch = heads[lane].Ledger, heads[lane].Epoch
		s.tails[lane] = newTail(heads[lane].Position)
		s.appenders[lane] = newAppender(lane, s)
	}
	// The reserved organization's data key is the first one made: whether it opens
	// tells whether the master key is the right one.
	if _, err := ring.key(ctx, dataKeyID{domain.SystemOrganization, firstDataKey}, true); err != nil {
		return nil, err
	}
	return s, s.ensureParts(ctx)
}

// Ledger says which log this is, and in which epoch this process knows it.
func (s *Store) Ledger() (domain.ID, uint32) { return s.ledger, s.epoch }

// OnCommit sets what is called after each commit of this process with where a lane ends now, and
// with a letter for the Wake of other processes, or nil. It must not block. Set it before Run.
func (s *Store) OnCommit(f func(lane domain.Lane, end domain.Position, letter []byte)) {
	s.onCommit = f
}

// Wake says that a lane has reached a position, as somebody told. When it has not, that
// costs a look.
func (s *Store) Wake(lane domain.Lane, position domain.Position) {
	if t, ok := s.tails[lane]; ok {
		t.told(position)
	}
}

// Receive is Wake with what another process handed to OnCommit. The letter may be nil.
func (s *Store) Receive(lane domain.Lane, end domain.Position, letter []byte) {
	t, ok := s.tails[lane]
	if !ok {
		return
	}
	if letter != nil && !t.has(end) {
		events, err := s.openLetter(lane, end, letter)
		if err == nil {
			s.notice(events)
			t.learned(events)
			return
		}
		s.options.Logger.Debug("a letter of another process is not heeded", "lane", string(lane), "end", uint64(end), "error", err)
	}
	t.told(end)
}

const (
	partsInterval   = time.Minute
	forgetInterval  = 10 * time.Minute
	leastPoll       = 25 * time.Millisecond
	mostPoll        = time.Second
	commandLifetime = 24 * time.Hour
)

// Run appends until ctx ends, and then until what is queued is written. It
// returns early when the ledger's epoch changes.
func (s *Store) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, a := range s.appenders {
		group.Go(func() error { return a.run(ctx) })
	}
	group.Go(func() error { return s.watchHeads(ctx) })
	group.Go(func() error { s.keepHouse(ctx); return nil })
	return group.Wait()
}

// watchHeads covers the time when nobody announces anything: it asks for the
// heads, often while they move, and seldom while they rest.
func (s *Store) watchHeads(ctx context.Context) error {
	wait := leastPoll
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
		heads, err := s.heads(ctx)
		wait = min(2*wait, mostPoll)
		if err != nil {
			continue // whoever needs the database says so
		}
		for lane, head := range heads {
			if head.Ledger != s.ledger || head.Epoch != s.epoch {
				return fmt.Errorf("watch the log: %w", ErrEpochChanged)
			}
			if s.tails[lane].behind(head.Position) {
				wait = leastPoll
			}
			s.tails[lane].known(head.Position)
			s.metrics.head.WithLabelValues(string(lane)).Set(float64(head.Position))
		}
	}
}

// keepHouse makes partitions ahead of need and forgets old command ids.
func (s *Store) keepHouse(ctx context.Context) {
	parts, forget := time.NewTicker(partsInterval), time.NewTicker(forgetInterval)
	defer parts.Stop()
	defer forget.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return
		case <-parts.C:
			err = s.ensureParts(ctx)
		case <-forget.C:
			_, err = s.pool.Exec(ctx, `DELETE FROM commands WHERE recorded_at < now() - $1::interval`, commandLifetime+time.Hour)
		}
		if err != nil && ctx.Err() == nil {
			s.options.Logger.Warn("housekeeping of the log failed; it is tried again", "error", err)
		}
	}
}

func (s *Store) ensureParts(ctx context.Context) error {
	_, err := s.pool.Exec(ctx, `SELECT ensure_usage_parts()`)
	return Wrap(err, "make partitions of the usage lane")
}

func (s *Store) heads(ctx context.Context) (map[domain.Lane]Head, error) {
	rows, err := s.pool.Query(ctx, `SELECT lane, ledger_id, epoch, position FROM log_head`)
	if err != nil {
		return nil, Wrap(err, "read the heads of the log")
	}
	defer rows.Close()
	heads := map[domain.Lane]Head{}
	for rows.Next() {
		var lane domain.Lane
		var h Head
		if err := rows.Scan((*string)(&lane), (*[16]byte)(&h.Ledger), &h.Epoch, &h.Position); err != nil {
			return nil, Wrap(err, "read the heads of the log")
		}
		heads[lane] = h
	}
	if err := rows.Err(); err != nil {
		return nil, Wrap(err, "read the heads of the log")
	}
	if len(heads) != len(domain.Lanes()) {
		return nil, errors.New("the log has no heads: run keyledger migrate")
	}
	return heads, nil
}
