package http_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"keyledger/domain"
)

// ledger is the whole of what the server asks, in memory: decide and evolve of the
// real domain, an index and a list that are never behind, and switches for bad
// days. The tests with a real log stand elsewhere.
type ledger struct {
	mu       sync.Mutex
	keys     map[domain.KeyID]*stored
	order    []domain.KeyID // as created
	members  map[domain.OrganizationID]domain.Organization
	versions map[domain.OrganizationID]uint64
	commands map[domain.CommandID]answered
	position domain.Position
	epoch    uint32

	down       error            // what the log answers with
	indexDown  error            // what the index answers with
	behind     chan struct{}    // while not nil, the index does not move
	waiting    chan struct{}    // closed when somebody waits for the index
	stale      bool             // the index goes on without a lease
	loading    bool             // the index is not loaded
	panicking  bool             // the list panics
	beforeSave func(g *ledger)  // runs before the next command's guard is looked at
	requests   []domain.Request // of all commands
	commandLog []domain.KeyCommand
	asked      []domain.Verification
	durable    int // answers that waited for the log
	minute     time.Time
}

type stored struct {
	key     domain.Key
	version uint64
	used    time.Time
	uses    uint64
	spent   uint32 // of the limit
	quota   uint64 // what is spent of it
}

type answered struct {
	request domain.Request
	key     domain.Key
	receipt domain.Receipt
}

func newLedger() *ledger {
	return &ledger{
		keys: map[domain.KeyID]*stored{}, members: map[domain.OrganizationID]domain.Organization{}, versions: map[domain.OrganizationID]uint64{},
		commands: map[domain.CommandID]answered{}, epoch: 3,
	}
}

func (g *ledger) ChangeKey(_ context.Context, request domain.Request, id domain.KeyID, command domain.KeyCommand) (domain.Key, domain.Receipt, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if before := g.beforeSave; before != nil {
		g.beforeSave = nil
		before(g)
	}
	if g.down != nil {
		return domain.Key{}, domain.Receipt{}, g.down
	}
	g.requests = append(g.requests, request)
	g.commandLog = append(g.commandLog, command)
	if a, ok := g.commands[request.ID]; ok {
		if a.request.Fingerprint != request.Fingerprint {
			return domain.Key{}, domain.Receipt{}, domain.Errorf(domain.CodeIdempotencyReused, "the idempotency key was used for another request")
		}
		a.receipt.Replayed = true
		return a.key, a.receipt, nil
	}
	var s stored
	if at, ok := g.keys[id]; ok {
		s = *at
	}
	events, err := domain.DecideKey(s.key, command)
	if err != nil {
		return domain.Key{}, domain.Receipt{}, err
	}
	guard := request.Guard
	switch {
	case !guard.Key.IsZero() && g.keys[guard.Key].version != guard.Version, guard.Organization != "" && g.versions[guard.Organization] != guard.Version:
		return domain.Key{}, domain.Receipt{}, domain.GuardMoved{At: g.position}
	}
	for _, event := range events {
		if s.key, err = domain.EvolveKey(s.key, event); err != nil {
			return domain.Key{}, domain.Receipt{}, err
		}
		s.version++
		g.position++
	}
	if _, ok := g.keys[id]; !ok {
		g.order = append(g.order, id)
	}
	g.keys[id] = &s
	receipt := domain.Receipt{Epoch: g.epoch, Position: g.position, Version: s.version, Changed: len(events) > 0}
	g.commands[request.ID] = answered{request, s.key, receipt}
	return s.key, receipt, nil
}

func (g *ledger) Organization(_ context.Context, id domain.OrganizationID) (domain.Organization, uint64, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.members[id], g.versions[id], g.down
}

func (g *ledger) Verify(v domain.Verification) (domain.Verdict, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.indexDown != nil {
		return domain.Verdict{}, g.indexDown
	}
	v.Required = slices.Clone(v.Required)
	g.asked = append(g.asked, v)
	for _, s := range g.keys {
		if s.key.Digest != v.Digest || v.Within != "" && s.key.Organization != v.Within {
			continue
		}
		verdict := domain.Verdict{
			Outcome: s.key.Judge(v.Now, v.Required), Key: s.key.ID, Organization: s.key.Organization, Name: s.key.Name, Scopes: s.key.Scopes,
			ExpiresAt: s.key.ExpiresAt, Version: s.version, Position: g.position,
		}
		if g.stale {
			verdict.Stale, verdict.Age = true, 1500*time.Millisecond+1
		}
		quota := s.key.Quota
		if quota.Given() && verdict.Outcome == domain.OutcomeValid && s.quota == quota.Limit {
			verdict.Outcome = domain.OutcomeQuotaExceeded
		}
		if limit := s.key.RateLimit; limit > 0 {
			if g.minute.IsZero() {
				g.minute = v.Now.Add(time.Minute)
			}
			if verdict.Outcome == domain.OutcomeValid && !v.Free {
				if s.spent >= limit {
					verdict.Outcome = domain.OutcomeRateLimited
				} else {
					s.spent++
				}
			}
			verdict.Limit = domain.Limit{PerMinute: limit, Remaining: limit - s.spent, Next: v.Now, Reset: g.minute}
			if s.spent == limit {
				verdict.Limit.Next = g.minute.Add(-20 * time.Second)
			}
		}
		if verdict.Outcome == domain.OutcomeValid {
			s.used, s.uses = v.Now, s.uses+1
			if quota.Given() {
				s.quota++
			}
		}
		verdict.Quota = s.standing(v.Now)
		return verdict, nil
	}
	return domain.Verdict{Outcome: domain.OutcomeNotFound, Position: g.position}, nil
}

func (s *stored) standing(now time.Time) (standing domain.QuotaStanding) {
	if q := s.key.Quota; q.Given() {
		standing = domain.QuotaStanding{Quota: q, Remaining: q.Limit - s.quota, Reset: q.Refill.Next(q.Refill.Start(now))}
	}
	return standing
}

func (g *ledger) Quota(id domain.KeyID, now time.Time) (domain.QuotaStanding, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if k := g.keys[id]; k != nil && g.indexDown == nil {
		standing := k.standing(now)
		return standing, standing.Given()
	}
	return domain.QuotaStanding{}, false
}

func (g *ledger) WaitFor(ctx context.Context, position domain.Position) error {
	g.mu.Lock()
	behind, reached := g.behind, g.position >= position
	if g.waiting != nil {
		close(g.waiting)
		g.waiting = nil
	}
	g.mu.Unlock()
	if behind == nil && reached {
		return nil
	}
	select {
	case <-behind:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (g *ledger) Ready() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return !g.loading
}

func (g *ledger) Position() domain.Position {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.behind != nil {
		return 0
	}
	return g.position
}

func (g *ledger) view(id domain.KeyID) domain.KeyView {
	s := g.keys[id]
	return domain.KeyView{Key: s.key, LastUsedAt: s.used, Uses: s.uses}
}

func (g *ledger) List(_ context.Context, q domain.KeyQuery) ([]domain.KeyView, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.panicking {
		panic("the list is broken")
	}
	if g.down != nil {
		return nil, g.down
	}
	var views []domain.KeyView
	skipping := !q.Before.IsZero()
	for _, id := range slices.Backward(g.order) {
		if skipping {
			skipping = id != q.Before
			continue
		}
		if g.keys[id].key.Organization == q.Organization {
			views = append(views, g.view(id))
		}
		if q.Most > 0 && len(views) == q.Most {
			break
		}
	}
	return views, nil
}

func (g *ledger) Get(_ context.Context, organization domain.OrganizationID, id domain.KeyID, _ domain.Position) (domain.KeyView, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.down != nil {
		return domain.KeyView{}, g.down
	}
	if s, ok := g.keys[id]; !ok || s.key.Organization != organization {
		return domain.KeyView{}, domain.Errorf(domain.CodeNotFound, "no such key")
	}
	return g.view(id), nil
}

func (g *ledger) Used(_ context.Context, id domain.KeyID) (uses uint64, last time.Time, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.down != nil {
		return 0, last, g.down
	}
	if _, ok := g.keys[id]; !ok {
		return 0, last, nil
	}
	view := g.view(id)
	return view.Uses, view.LastUsedAt, nil
}

// set changes the ledger under its lock.
func (g *ledger) set(change func(g *ledger)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	change(g)
}

// addMember makes a user a member, as keyledger members add does.
func (g *ledger) addMember(organization domain.OrganizationID, user domain.UserID, role string) {
	g.set(func(g *ledger) {
		o, err := domain.EvolveOrganization(g.members[organization], domain.MemberAdded{Organization: organization, User: user, Role: role})
		if err != nil {
			panic(err)
		}
		g.members[organization] = o
		g.versions[organization]++
		g.position++
	})
}

var errPostgresAway = domain.Unavailable(errors.New("dial tcp 127.0.0.1:5432: connection refused"))

// VerifyDurable counts who waited for the log, and is away when the log is.
func (g *ledger) VerifyDurable(_ context.Context, v domain.Verification) (domain.Verdict, error) {
	verdicts, err := g.VerifyAllDurable(context.Background(), []domain.Verification{v})
	if err != nil {
		return domain.Verdict{}, err
	}
	return verdicts[0], nil
}

func (g *ledger) VerifyAllDurable(_ context.Context, questions []domain.Verification) ([]domain.Verdict, error) {
	verdicts := make([]domain.Verdict, len(questions))
	for i, v := range questions {
		var err error
		if verdicts[i], err = g.Verify(v); err != nil {
			return nil, err
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.durable++
	return verdicts, g.down
}
