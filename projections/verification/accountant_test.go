package verification

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"keyledger/domain"
	"keyledger/eventstore"
	"keyledger/index"
)

// ledger keeps flushes as the log would, and fails as it might: before the flush
// is persisted, or after.
type ledger struct {
	mu      sync.Mutex
	fail    func() (before, after bool)
	hold    chan struct{} // not nil: an append waits here
	version uint64
	flushes []eventstore.UsageFlush
	tried   []eventstore.UsageFlush
}

func (l *ledger) AppendUsage(ctx context.Context, f eventstore.UsageFlush) (domain.Receipt, error) {
	if l.hold != nil {
		select {
		case <-l.hold:
		case <-ctx.Done():
			return domain.Receipt{}, domain.Unavailable(ctx.Err())
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tried = append(l.tried, f)
	var before, after bool
	if l.fail != nil {
		before, after = l.fail()
	}
	if before {
		return domain.Receipt{}, domain.Unavailable(errors.New("not persisted"))
	}
	switch {
	case f.Expected == l.version:
		l.version += uint64(len(f.Events))
		l.flushes = append(l.flushes, f)
	case len(l.flushes) == 0 || cmp.Diff(l.flushes[len(l.flushes)-1], f) != "":
		return domain.Receipt{}, fmt.Errorf("flush %d expects version %d, and the stream is at %d", f.Flush, f.Expected, l.version)
	}
	if after {
		return domain.Receipt{}, domain.Unavailable(errors.New("persisted, and the answer is lost"))
	}
	return domain.Receipt{Version: l.version}, nil
}

func (l *ledger) uses() []domain.Use {
	l.mu.Lock()
	defer l.mu.Unlock()
	var uses []domain.Use
	for _, f := range l.flushes {
		for _, e := range f.Events {
			uses = append(uses, e.Uses...)
		}
	}
	return uses
}

func (l *ledger) counts() (counts [domain.Outcomes]uint64) {
	for _, u := range l.uses() {
		counts[u.Outcome] += u.Count
	}
	return counts
}

func accountantOf(t *testing.T, x *index.Index, l Ledger, o AccountantOptions) *Accountant {
	t.Helper()
	a, err := NewAccountant(x, l, o)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestEveryUseIsRecordedOnceWhateverFails(t *testing.T) {
	t.Parallel()
	keys := plainKeys(300)
	x := filled(t, keys)
	random := rand.New(rand.NewPCG(10, 11))
	l := &ledger{}
	l.fail = func() (before, after bool) { return random.IntN(3) == 0, random.IntN(3) == 0 }
	a := accountantOf(t, x, l, AccountantOptions{})

	var expected [domain.Outcomes]atomic.Uint64
	var users, flusher sync.WaitGroup
	for g := range 4 {
		users.Go(func() {
			random := rand.New(rand.NewPCG(uint64(g), 12))
			for range 20_000 {
				// Most uses fall on few keys, one of which is soon over its limit.
				key := keys[min(random.IntN(len(keys)), random.IntN(len(keys)))%(1+random.IntN(len(keys)))]
				required := domain.Scopes{domain.ScopeRead}
				if random.IntN(10) == 0 {
					required = domain.Scopes{domain.ScopeAdmin}
				}
				expected[verifyPlain(x, key, required)].Add(1)
			}
		})
	}
	stop := make(chan struct{})
	flusher.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				_ = a.Flush(t.Context()) // fails often
			}
		}
	})
	users.Wait()
	close(stop)
	flusher.Wait()
	l.fail = nil
	if err := a.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	for outcome, n := range l.counts() {
		if want := expected[outcome].Load(); n != want {
			t.Errorf("%v: %d recorded of %d", domain.Outcome(outcome), n, want)
		}
	}
	if expected[domain.OutcomeRateLimited].Load() == 0 || expected[domain.OutcomeInsufficientScope].Load() == 0 {
		t.Error("the test refuses nothing")
	}
	for i, f := range l.flushes {
		if f.Flush != uint64(i+1) {
			t.Errorf("flush %d is numbered %d", i+1, f.Flush)
		}
		for _, e := range f.Events {
			if e.Boot != f.Boot || e.Flush != f.Flush {
				t.Errorf("flush %d has an event of flush %d", f.Flush, e.Flush)
			}
			for _, u := range e.Uses {
				if u.Count == 0 || u.Last.Before(u.First) {
					t.Errorf("use %+v", u)
				}
			}
		}
	}
}

func TestAFlushInDoubtIsRepeatedAsItWasBeforeAnythingNewer(t *testing.T) {
	t.Parallel()
	keys := plainKeys(10)
	x := filled(t, keys)
	l := &ledger{}
	a := accountantOf(t, x, l, AccountantOptions{})
	for attempt := range 3 {
		l.fail = func() (before, after bool) { return attempt == 0, true }
		verifyPlain(x, keys[attempt], nil)
		if err := a.Flush(t.Context()); err == nil {
			t.Fatal("the flush did not fail")
		}
	}
	l.fail = nil
	if err := a.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i, f := range l.tried[:4] {
		if diff := cmp.Diff(l.tried[0], f); diff != "" {
			t.Errorf("attempt %d (-first +this)\n%s", i+1, diff)
		}
	}
	if len(l.tried) != 5 || len(l.flushes) != 2 || l.flushes[1].Expected != 1 {
		t.Errorf("tried %d, recorded %+v", len(l.tried), l.flushes)
	}
	if n := l.counts()[domain.OutcomeValid]; n != 3 {
		t.Errorf("%d uses of 3", n)
	}
}

func TestAnEventBelongsToOneOrganizationAndIsBounded(t *testing.T) {
	t.Parallel()
	keys := plainKeys(4500)
	x := empty()
	var events []index.Event
	for i, key := range keys {
		e := created(i+1, key, time.Now())
		k := e.Event.(domain.KeyCreated)
		k.Organization = domain.OrganizationID([]string{"small", "large"}[min(i/10, 1)])
		e.Event = k
		events = append(events, e)
	}
	if err := x.Apply(events); err != nil {
		t.Fatal(err)
	}
	for _, key := range keys {
		verifyPlain(x, key, nil)
	}
	l := &ledger{}
	if err := accountantOf(t, x, l, AccountantOptions{}).Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	var sizes []int
	for _, e := range l.flushes[0].Events {
		sizes = append(sizes, len(e.Uses))
		if small := len(e.Uses) == 10; small != (e.Organization == "small") {
			t.Errorf("%d uses of %s", len(e.Uses), e.Organization)
		}
	}
	if want := []int{2000, 2000, 490, 10}; !slices.Equal(sizes, want) {
		t.Errorf("events of %v uses, want %v", sizes, want)
	}
}

func TestAUseNamesThePositionThatItWasDecidedAt(t *testing.T) {
	t.Parallel()
	keys := plainKeys(3)
	x := filled(t, keys[:1])
	l := &ledger{}
	a := accountantOf(t, x, l, AccountantOptions{})
	at := time.Now().Truncate(time.Millisecond)
	verify := func(now time.Time) {
		if _, err := x.Verify(domain.Verification{Digest: digestOf(keys[0]), Now: now}); err != nil {
			t.Fatal(err)
		}
	}
	verify(at)
	for i := range 2 { // the lane moves on
		if err := x.Apply([]index.Event{created(i+2, keys[i+1], at)}); err != nil {
			t.Fatal(err)
		}
		verify(at.Add(time.Duration(i+1) * time.Second))
	}
	revoked := domain.KeyRevoked{Key: created(1, keys[0], at).Event.(domain.KeyCreated).Key, At: at}
	if err := x.Apply([]index.Event{{Position: 4, Version: 2, Event: revoked}}); err != nil {
		t.Fatal(err)
	}
	verify(at.Add(5 * time.Second))
	verify(at.Add(9 * time.Second))
	if err := a.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := []domain.Use{
		{Key: revoked.Key, Outcome: domain.OutcomeValid, Count: 3, First: at.UTC(), Last: at.Add(2 * time.Second).UTC(), DecidedAt: 3},
		{Key: revoked.Key, Outcome: domain.OutcomeRevoked, Count: 2, First: at.Add(5 * time.Second).UTC(), Last: at.Add(9 * time.Second).UTC(), DecidedAt: 4},
	}
	if diff := cmp.Diff(want, l.uses()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestADurableUseIsAnsweredWhenItIsRecorded(t *testing.T) {
	t.Parallel()
	keys := plainKeys(50)
	x := filled(t, keys)
	l := &ledger{hold: make(chan struct{})}
	a := accountantOf(t, x, l, AccountantOptions{Window: time.Hour})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- a.Run(ctx) }()

	answered := make(chan domain.Outcome, len(keys))
	var group sync.WaitGroup
	waiting := func(n int) {
		poll := time.NewTicker(time.Millisecond)
		defer poll.Stop()
		for range poll.C {
			a.mu.Lock()
			there := a.begun == 1 && len(a.durable) == n
			a.mu.Unlock()
			if there {
				return
			}
		}
	}
	for i, key := range keys {
		if i == 1 {
			waiting(0) // the first flush has begun, and stands still
		}
		group.Go(func() {
			required := domain.Scopes{domain.ScopeRead}
			if i%2 == 1 {
				required = domain.Scopes{domain.ScopeAdmin}
			}
			v, err := a.VerifyDurable(ctx, domain.Verification{Digest: digestOf(key), Required: required, Now: time.Now()})
			if err != nil {
				t.Error(err)
			}
			if recorded := l.counts()[v.Outcome]; recorded == 0 {
				t.Errorf("%v was answered before any was recorded", v.Outcome)
			}
			answered <- v.Outcome
		})
	}
	waiting(len(keys) - 1)
	close(l.hold)
	group.Wait()
	if n := l.counts(); n[domain.OutcomeValid] != 25 || n[domain.OutcomeInsufficientScope] != 25 {
		t.Errorf("recorded %v", n)
	}
	if len(l.flushes) != 2 {
		t.Errorf("50 uses, of which 49 waited together, took %d flushes", len(l.flushes))
	}
	if v, err := a.VerifyDurable(ctx, domain.Verification{Digest: domain.Digest{1}, Now: time.Now()}); err != nil || v.Outcome != domain.OutcomeNotFound {
		t.Errorf("an unknown key: %v, %v", v, err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestADurableUseThatCannotBeRecordedIsNoAnswer(t *testing.T) {
	t.Parallel()
	keys := plainKeys(1)
	x := filled(t, keys)
	l := &ledger{}
	var down atomic.Bool
	down.Store(true)
	l.fail = func() (before, after bool) { return down.Load(), false }
	a := accountantOf(t, x, l, AccountantOptions{Window: time.Millisecond})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- a.Run(ctx) }()

	impatient, giveUp := context.WithCancel(ctx)
	giveUp()
	v, err := a.VerifyDurable(impatient, domain.Verification{Digest: digestOf(keys[0]), Now: time.Now()})
	if domain.CodeOf(err) != domain.CodeUnavailable || v.Key != (domain.KeyID{}) {
		t.Errorf("%+v, %v", v, err)
	}
	patient := make(chan error)
	go func() {
		_, err := a.VerifyDurable(ctx, domain.Verification{Digest: digestOf(keys[0]), Now: time.Now()})
		patient <- err
	}()
	down.Store(false)
	if err := <-patient; err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if n := l.counts()[domain.OutcomeValid]; n != 2 {
		t.Errorf("%d uses of 2", n)
	}
}

func TestWhatWasCountedIsFlushedWhenRunEnds(t *testing.T) {
	t.Parallel()
	keys := plainKeys(5)
	x := filled(t, keys)
	l := &ledger{}
	a := accountantOf(t, x, l, AccountantOptions{Window: time.Hour})
	for _, key := range keys {
		verifyPlain(x, key, nil)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := a.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if n := l.counts()[domain.OutcomeValid]; n != 5 {
		t.Errorf("%d uses of 5", n)
	}
	verifyPlain(x, keys[0], nil)
	l.fail = func() (before, after bool) { return true, false }
	if err := a.Run(ctx); domain.CodeOf(err) != domain.CodeUnavailable {
		t.Errorf("uses were lost without a word: %v", err)
	}
}

func TestUsesAreRecordedOnceAWindow(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		keys := plainKeys(1)
		x := filled(t, keys)
		l := &ledger{}
		a := accountantOf(t, x, l, AccountantOptions{})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- a.Run(ctx) }()
		synctest.Wait()
		for window := range uint64(5) {
			verifyPlain(x, keys[0], nil)
			<-time.After(a.Window() - time.Millisecond)
			synctest.Wait()
			if n := l.counts()[domain.OutcomeValid]; n != window {
				t.Errorf("before a window has passed %d uses are recorded of %d", n, window+1)
			}
			<-time.After(time.Millisecond)
			synctest.Wait()
			if n := l.counts()[domain.OutcomeValid]; n != window+1 {
				t.Errorf("when a window has passed %d uses are recorded of %d", n, window+1)
			}
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

func TestTheWindowGrowsWhenFlushesTakeLong(t *testing.T) {
	t.Parallel()
	a := accountantOf(t, empty(), &ledger{}, AccountantOptions{Window: time.Second, LongestWindow: 8 * time.Second})
	for _, test := range []struct{ took, window time.Duration }{
		{time.Millisecond, time.Second},
		{400 * time.Millisecond, 2 * time.Second},
		{time.Minute, 8 * time.Second},
		{time.Millisecond, time.Second},
	} {
		a.adapt(test.took)
		if a.Window() != test.window {
			t.Errorf("after a flush of %v: %v, want %v", test.took, a.Window(), test.window)
		}
	}
}

func TestUsesCountedBeforeTheKeysWereLoadedAnewAreRecorded(t *testing.T) {
	t.Parallel()
	keys := plainKeys(10)
	x := filled(t, keys)
	l := &ledger{}
	a := accountantOf(t, x, l, AccountantOptions{})
	for _, key := range keys {
		verifyPlain(x, key, nil)
	}
	x.Replace(snapshotOf(t, keys), 10, 0)
	for _, key := range keys {
		verifyPlain(x, key, nil)
	}
	for range 3 {
		if err := a.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n := l.counts()[domain.OutcomeValid]; n != 20 {
		t.Errorf("%d uses of 20", n)
	}
}

func TestMetricsAreGathered(t *testing.T) {
	t.Parallel()
	registry := prometheus.NewPedanticRegistry()
	keys := plainKeys(2)
	x := empty()
	New(x, Options{Registerer: registry})
	if err := x.Apply([]index.Event{created(1, keys[0], time.Now())}); err != nil {
		t.Fatal(err)
	}
	a := accountantOf(t, x, &ledger{}, AccountantOptions{Registerer: registry})
	verifyPlain(x, keys[0], nil)
	verifyPlain(x, keys[1], nil)
	if err := a.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.Metric {
			name := f.GetName()
			for _, label := range m.Label {
				name += " " + label.GetValue()
			}
			got[name] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	for name, want := range map[string]float64{
		"keyledger_index_keys": 1, "keyledger_index_position": 1, "keyledger_index_ready": 1, "keyledger_unknown_keys_total": 1,
		"keyledger_uses_recorded_total VALID": 1, "keyledger_usage_flushes_total": 1, "keyledger_usage_window_seconds": 1,
	} {
		if got[name] != want {
			t.Errorf("%s is %v, want %v", name, got[name], want)
		}
	}
}
