package client

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"
	"unsafe"

	"golang.org/x/sync/errgroup"

	"keyledger/domain"
	"keyledger/index"
)

// VerifierOptions are what an embedded verifier needs. URL and Key are required.
type VerifierOptions struct {
	URL string // of a node, or of a balancer in front of several
	Key string // of the service itself, with the scope system:verify

	// Name is for people who look at who holds leases. Empty: the host's name.
	Name string
	// Observer joins without being registered one by one, for fleets of thousands. It
	// promises as much; but while there is any, every revocation waits for a whole lease.
	Observer bool
	// MaxStale, when longer than the lease, has verdicts given beyond it until the last
	// lease is so old. They say Stale. 0: beyond the lease there is no verdict.
	MaxStale time.Duration
	// ReportEvery is the time between two reports of uses. 0: a second.
	ReportEvery time.Duration

	HTTPClient *http.Client // nil: Go's usual one
	Logger     *slog.Logger // nil: none
}

// Verifier answers in memory whether a key may be used. It holds all keys of the
// ledger and follows its log, and a lease bounds what it may have missed: when Keyledger has
// answered that a key is revoked, no Verifier accepts it any more. One that is cut off answers
// [ErrUnavailable] when its lease ends.
//
// A key with a quota is the exception: what is left of it the servers know, so what is here says no at most, and
// every other verification of such a key asks a server.
//
// Limits hold for each verifier by itself. Uses are counted, and reported to the
// ledger once a second; those of the last second are lost when the process is killed.
//
// It is safe for concurrent use, and it is a [Checker].
type Verifier struct {
	o      VerifierOptions
	client *Client
	stream *http.Client // the same without a timeout
	logger *slog.Logger

	index atomic.Pointer[index.Index] // nil: not joined yet
	ready chan struct{}               // closed when it is Ready for the first time

	mu      sync.Mutex
	running bool
	cancel  context.CancelFunc
	ended   chan struct{}

	// Run's own.
	member   member
	reporter *reporter
}

// member is how this verifier is known.
type member struct {
	ticket  string
	lease   time.Duration
	history index.History
}

const (
	renewals      = 4                // within a lease
	farewell      = 10 * time.Second // for the last report
	leaveWithin   = 2 * time.Second
	firstPause    = 50 * time.Millisecond
	longPause     = 5 * time.Second
	refusedPause  = time.Second
	mostName      = 100
	leastLease    = 10 * time.Millisecond
	mostLease     = 10 * time.Minute
	defaultReport = time.Second
)

// NewVerifier makes a verifier that knows nothing before Run.
func NewVerifier(o VerifierOptions) (*Verifier, error) {
	if o.Key == "" {
		return nil, errors.New("a verifier needs a key with the scope system:verify")
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.HTTPClient == nil {
		o.HTTPClient = &http.Client{}
	}
	if o.ReportEvery <= 0 {
		o.ReportEvery = defaultReport
	}
	if o.Name == "" {
		o.Name, _ = os.Hostname()
		o.Name = cmp.Or(o.Name, "verifier")
	}
	if utf8.RuneCountInString(o.Name) > mostName {
		return nil, fmt.Errorf("a verifier's name has at most %d characters", mostName)
	}
	c, err := New(o.URL, o.Key, WithHTTPClient(o.HTTPClient), WithAttempts(1))
	if err != nil {
		return nil, err
	}
	stream := *c.http
	stream.Timeout = 0 // a stream goes on for ever
	v := &Verifier{o: o, client: c, stream: &stream, logger: o.Logger, ready: make(chan struct{}), ended: make(chan struct{})}
	v.reporter = &reporter{verifier: v}
	return v, nil
}

// Format keeps the key out of whatever prints a verifier.
func (v *Verifier) Format(f fmt.State, _ rune) {
	_, _ = io.WriteString(f, "keyledger verifier of "+v.client.base)
}

var (
	errNotDurable = &Error{Code: "invalid", Field: "Durable", Message: "an embedded verifier reports uses after its answer: ask a server"}
	errLoading    = &Error{Code: "unavailable", Message: "the verifier has not loaded the keys yet"}
	errNoLease    = &Error{Code: "unavailable", Message: "the verifier has lost its lease: Keyledger is out of reach"}
)

// noSecret is presented instead of what cannot be a key. Its digest is nobody's.
const noSecret = "\x00"

// codes are the outcomes' texts.
var codes = func() (codes [domain.Outcomes]Code) {
	for o := range codes {
		codes[o] = Code(domain.Outcome(o).String())
	}
	return codes
}()

// Verify gives the verdict on a presented key and counts the use. It asks nobody, but for keys with a quota, allocates
// nothing, and waits for nothing but a minimum position ([WithMinPosition]). The error is
// [ErrUnavailable] before the keys are loaded and beyond the lease. The verdict's scopes are
// shared: never modify them.
func (v *Verifier) Verify(ctx context.Context, q Question) (verdict Verdict, err error) {
	x := v.index.Load()
	if x == nil {
		return verdict, errLoading
	}
	if q.Durable {
		return verdict, errNotDurable
	}
	if minimum, ok := ctx.Value(minPositionKey).(Token); ok {
		if err := v.await(ctx, x, minimum); err != nil {
			return verdict, err
		}
	}
	text := q.Key
	if _, err := domain.ParseSecret(text); err != nil {
		text = noSecret // it cannot be a key, and takes as long as one that is not known
	}
	// domain.Secret.Digest, without its copy: nothing writes to these bytes, or keeps them.
	digest := sha256.Sum256(unsafe.Slice(unsafe.StringData(text), len(text)))
	ask := domain.Verification{Digest: digest, Required: q.Scopes, Within: q.Organization, Now: time.Now()}
	var said domain.Verdict
	if _, err := x.VerifyAt(&ask, &said); err != nil {
		if err == index.ErrElsewhere { //nolint:errorlint // that very one, on a path that every verification takes
			return v.client.Verify(ctx, q)
		}
		if x.Ready() {
			return verdict, errNoLease
		}
		return verdict, errLoading
	}
	verdict.Valid, verdict.Code = said.Outcome == domain.OutcomeValid, codes[said.Outcome]
	verdict.KeyID, verdict.OrganizationID, verdict.Name = said.Key, said.Organization, said.Name
	verdict.Scopes, verdict.ExpiresAt = said.Scopes, said.ExpiresAt
	verdict.RateLimit = RateLimit{Limit: said.Limit.PerMinute, Remaining: said.Limit.Remaining, Reset: said.Limit.Reset, Next: said.Limit.Next}
	verdict.Position, verdict.Age, verdict.Stale = said.Position, said.Age, said.Stale
	return verdict, nil
}

// await waits for a minimum position, as long as a server would.
func (v *Verifier) await(ctx context.Context, x *index.Index, minimum Token) error {
	if history, ok := x.History(); !ok || history.Epoch != minimum.Epoch || minimum.Lane != domain.Lifecycle {
		return &Error{Code: "stale", Message: "the minimum position is of another epoch of the ledger, or of another lane", Err: ErrAnotherHistory}
	}
	if x.Position() >= minimum.Position {
		return nil
	}
	wait, ok := ctx.Value(waitKey).(time.Duration)
	if !ok {
		wait = time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	if err := x.WaitFor(ctx, minimum.Position); err != nil {
		return &Error{Code: "stale", Message: "the minimum position is not here yet: try again"}
	}
	return nil
}

// Ready says whether verdicts are given at this moment: the keys are loaded, and a
// lease counts.
func (v *Verifier) Ready() bool {
	x := v.index.Load()
	return x != nil && x.Leased()
}

// WaitReady returns when the verifier is Ready for the first time, or ctx ends.
func (v *Verifier) WaitReady(ctx context.Context) error {
	select {
	case <-v.ready:
		return nil
	case <-ctx.Done():
		return errLoading
	}
}

// Position is up to where the lifecycle lane is applied.
func (v *Verifier) Position() Position {
	if x := v.index.Load(); x != nil {
		return x.Position()
	}
	return 0
}

// Len counts the keys.
func (v *Verifier) Len() int {
	if x := v.index.Load(); x != nil {
		return x.Len()
	}
	return 0
}

var errStarted = errors.New("the verifier was started before: make another one")

// Run loads the keys and keeps up with them until ctx ends or Close is called. Then
// it stops answering, reports the last uses and leaves, so that no revocation waits for
// it. Whatever fails meanwhile it tries again, for ever; the log says what. The error says
// which uses could not be reported. It runs once.
func (v *Verifier) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	v.mu.Lock()
	if v.running {
		v.mu.Unlock()
		return errStarted
	}
	v.running, v.cancel = true, cancel
	v.mu.Unlock()
	defer close(v.ended)

	for pause := firstPause; ; pause = min(2*pause, longPause) {
		err := v.session(ctx)
		if ctx.Err() != nil {
			break
		}
		if errors.Is(err, errAnew) {
			pause = firstPause
		}
		v.logger.Warn("the verifier cannot join", "pause", pause, "error", err)
		if !sleep(ctx, pause) {
			break
		}
	}
	return v.leave(context.WithoutCancel(ctx))
}

// Close ends Run as the end of its context would, and waits for it.
func (v *Verifier) Close() {
	v.mu.Lock()
	running, cancel := v.running, v.cancel
	v.running = true // it cannot be started any more
	v.mu.Unlock()
	if running && cancel != nil {
		cancel()
		<-v.ended
	}
}

// leave says yes no more, then tells what was used, then that nobody need wait.
func (v *Verifier) leave(ctx context.Context) error {
	x := v.index.Load()
	if x == nil {
		return nil
	}
	x.Distrust()
	ctx, cancel := context.WithTimeout(ctx, farewell)
	defer cancel()
	defer func() {
		leaving, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveWithin)
		defer cancel()
		if _, gone := v.client.ask(leaving, call{method: http.MethodDelete, path: v.path(), once: true}, nil); gone != nil {
			v.logger.Warn("the verifier could not leave: revocations wait for its lease until it is forgotten", "error", gone)
		}
	}()
	err := v.reporter.flush(ctx)
	for err != nil && sleep(ctx, firstPause) {
		err = v.reporter.flush(ctx)
	}
	if err != nil {
		err = fmt.Errorf("report the last uses: %w", err)
	}
	return err
}

// errAnew ends a session whose keys are not to be trusted any more.
var errAnew = errors.New("everything is loaded anew")

// session joins, and then does everything until something has to begin anew.
func (v *Verifier) session(ctx context.Context) error {
	was := v.member
	now, err := v.join(ctx, was)
	if err != nil {
		return err
	}
	if now.ticket != was.ticket {
		v.reporter.rename()
	}
	v.member = now
	x := v.index.Load()
	if x == nil || v.member.lease != was.lease || v.member.history != was.history {
		if x != nil {
			x.Distrust()
		}
		if was.history != v.member.history && was.ticket != "" {
			v.logger.Error("THE LEDGER IS ANOTHER ONE, or was restored: all keys are loaded anew", "ledger", v.member.history.Ledger.UUID(), "epoch", v.member.history.Epoch)
		}
		x = index.New(index.Options{Logger: v.logger, Leased: true, Lease: v.member.lease, MaxStale: v.o.MaxStale, QuotasElsewhere: true})
		v.reporter.adopt(x, was.history == v.member.history)
		v.index.Store(x)
	}
	asked := newAsks()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return v.keepKeys(ctx, x, asked) })
	group.Go(func() error { return v.keepLease(ctx, x) })
	group.Go(func() error { return v.reporter.run(ctx) })
	if !v.o.Observer {
		group.Go(func() error { return v.confirm(ctx, x, asked) })
	}
	err = group.Wait()
	if errors.Is(err, errAnew) {
		x.Distrust()
	}
	return err
}

// sleep waits about so long; false when ctx has ended.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d/2 + rand.N(d/2+1))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
