package index

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"keyledger/domain"
)

// model is the ledger as the domain alone tells it.
type model struct {
	now      time.Time
	keys     map[domain.KeyID]domain.Key
	versions map[domain.KeyID]uint64
	ids      []domain.KeyID
	accepted map[domain.KeyID][]time.Time
	spent    map[domain.KeyID]map[time.Time]uint64 // of quotas, by period
	position domain.Position
	pending  []Event
}

func newModel() *model {
	return &model{
		now: time.Date(2026, 11, 22, 12, 0, 0, 123456000, time.UTC), keys: map[domain.KeyID]domain.Key{},
		versions: map[domain.KeyID]uint64{}, accepted: map[domain.KeyID][]time.Time{},
		spent: map[domain.KeyID]map[time.Time]uint64{},
	}
}

func (m *model) change(t *rapid.T, id domain.KeyID, command domain.KeyCommand) {
	events, err := domain.DecideKey(m.keys[id], command)
	if err != nil && domain.CodeOf(err) == domain.CodeInternal {
		t.Fatal(err)
	}
	for _, e := range events {
		if m.keys[id], err = domain.EvolveKey(m.keys[id], e); err != nil {
			t.Fatal(err)
		}
		m.versions[id]++
		m.record(e, m.versions[id])
	}
}

func (m *model) record(e domain.Event, version uint64) {
	m.position++
	m.pending = append(m.pending, Event{Position: m.position, Version: version, Event: e})
}

func secretOf(n int) domain.Digest { return sha256.Sum256(fmt.Appendf(nil, "secret %d", n)) }

func idOf(n int) (id domain.KeyID) {
	copy(id[:], fmt.Sprintf("id %013d", n))
	return id
}

func (m *model) command(t *rapid.T) {
	n := rapid.IntRange(0, 12).Draw(t, "key")
	organization := domain.OrganizationID(rapid.SampledFrom([]string{"org_1", "org_2", "a-much-longer-organization-name"}).Draw(t, "organization"))
	switch rapid.IntRange(0, 4).Draw(t, "what") {
	case 0, 1:
		m.ids = append(m.ids, idOf(n))
		m.change(t, idOf(n), domain.CreateKey{
			Now: m.now, Key: idOf(n), Organization: organization, Digest: secretOf(n), Prefix: "bsk_live_abcd",
			Name:      rapid.SampledFrom([]string{"n", "the name of a key", "Schlüssel 🔑", string(bytes.Repeat([]byte("ü"), 100))}).Draw(t, "name"),
			Scopes:    domain.Scopes(rapid.SliceOfNDistinct(rapid.SampledFrom(scopeNames), 1, 4, rapid.ID).Draw(t, "scopes")),
			RateLimit: rapid.SampledFrom([]uint32{0, 1, 3, 100, domain.MostRateLimit}).Draw(t, "limit"),
			Quota: rapid.SampledFrom([]domain.Quota{
				{}, {}, {Limit: 1, Refill: domain.RefillNone}, {Limit: 2, Refill: domain.RefillDay}, {Limit: 3, Refill: domain.RefillMonth}, {Limit: domain.MostQuota, Refill: domain.RefillDay},
			}).Draw(t, "quota"),
			ExpiresAt: rapid.SampledFrom([]time.Time{
				{},
				m.now.Add(time.Microsecond), m.now.Add(time.Minute), m.now.Add(time.Hour),
				time.Date(2540, 1, 1, 0, 0, 0, 999999000, time.UTC), time.Date(2600, 1, 1, 0, 0, 0, 5e6, time.UTC), time.Date(9999, 12, 31, 23, 59, 59, 999e6, time.UTC),
			}).Draw(t, "expires"),
			Granter: domain.Scopes{"*", "system:*"},
		})
	case 2:
		m.change(t, idOf(n), domain.RevokeKey{Now: m.now, Organization: organization})
	case 3:
		m.record(domain.MemberAdded{Organization: organization, User: "u", Role: "member", At: m.now}, 1)
	case 4:
		m.now = m.now.Add(time.Duration(rapid.SampledFrom([]int64{0, 1e3, 1e6, 7e9, 30e9, 70e9, 3600e9, 12 * 3600e9, 20 * 24 * 3600e9}).Draw(t, "pause")))
	}
}

var scopeNames = []domain.Scope{"read", "write", "admin", "verify", "*", "agency:*", "agency:read", "agency:write", "system:verify", "system:*"}

// verify compares one verdict with what the domain says.
func (m *model) verify(t *rapid.T, x *Index) {
	n := rapid.IntRange(0, 14).Draw(t, "presented")
	v := domain.Verification{
		Digest: secretOf(n), Now: m.now, Free: rapid.Bool().Draw(t, "free"),
		Required: domain.Scopes(rapid.SliceOfN(rapid.SampledFrom(scopeNames), 0, 3).Draw(t, "required")),
		Within:   domain.OrganizationID(rapid.SampledFrom([]string{"", "", "", "org_1", "org_2"}).Draw(t, "within")),
	}
	got, err := x.Verify(v)
	if err != nil {
		t.Fatal(err)
	}
	key := m.keys[idOf(n)]
	want := domain.Verdict{Outcome: domain.OutcomeNotFound, Position: m.position}
	if key.Exists() && (v.Within == "" || v.Within == key.Organization) {
		want = domain.Verdict{
			Outcome: key.Judge(m.now, v.Required), Key: key.ID, Organization: key.Organization, Name: key.Name, Scopes: key.Scopes,
			ExpiresAt: key.ExpiresAt, Version: m.versions[key.ID], Position: m.position, Limit: domain.Limit{PerMinute: key.RateLimit},
		}
		period := key.Quota.Refill.Start(m.now)
		if want.Outcome == domain.OutcomeValid && key.Quota.Given() && m.spent[key.ID][period] >= key.Quota.Limit {
			want.Outcome = domain.OutcomeQuotaExceeded
		}
		if want.Outcome == domain.OutcomeValid && got.Outcome == domain.OutcomeRateLimited && !v.Free && key.RateLimit > 0 {
			if len(m.accepted[key.ID]) < int(key.RateLimit) {
				t.Fatalf("over the limit of %d after %d uses", key.RateLimit, len(m.accepted[key.ID]))
			}
			want.Outcome = domain.OutcomeRateLimited
		}
		if key.RateLimit > 0 {
			m.limit(t, key, v, got)
		}
		if key.Quota.Given() {
			if got.Outcome == domain.OutcomeValid {
				if m.spent[key.ID] == nil {
					m.spent[key.ID] = map[time.Time]uint64{}
				}
				m.spent[key.ID][period]++
			}
			want.Quota = domain.QuotaStanding{Quota: key.Quota, Remaining: key.Quota.Limit - m.spent[key.ID][period], Reset: key.Quota.Refill.Next(period)}
		}
	}
	got.Limit.Remaining, got.Limit.Next, got.Limit.Reset = 0, time.Time{}, time.Time{}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("%+v: (-domain +index)\n%s", v, diff)
	}
}

func (m *model) limit(t *rapid.T, key domain.Key, v domain.Verification, got domain.Verdict) {
	if got.Outcome == domain.OutcomeValid && !v.Free {
		m.accepted[key.ID] = append(m.accepted[key.ID], m.now)
	}
	used := uint32(0)
	for _, at := range m.accepted[key.ID] {
		if at.After(m.now.Add(-time.Minute)) {
			used++
		}
	}
	switch {
	case used > key.RateLimit:
		t.Fatalf("%d uses of %d in a minute", used, key.RateLimit)
	case got.Limit.Remaining > key.RateLimit-used:
		t.Fatalf("%d uses are said to remain after %d of %d", got.Limit.Remaining, used, key.RateLimit)
	case got.Limit.Reset.Before(m.now) || used > 0 && !got.Limit.Reset.After(m.now):
		t.Fatalf("the limit resets at %v, now is %v, %d used", got.Limit.Reset, m.now, used)
	}
}

func TestIndexAndDomainAgreeOnEveryVerdict(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		m := newModel()
		x := empty(Options{Clock: func() time.Time { return m.now }})
		for range rapid.IntRange(1, 80).Draw(t, "steps") {
			m.command(t)
			if rapid.Bool().Draw(t, "apply") {
				if err := x.Apply(m.pending); err != nil {
					t.Fatal(err)
				}
				m.pending = nil
				m.verify(t, x)
			}
		}
		if err := x.Apply(m.pending); err != nil {
			t.Fatal(err)
		}
		if x.Len() != len(m.keys)-len(m.absent()) || x.Position() != m.position {
			t.Fatalf("%d keys at %d, want %d at %d", x.Len(), x.Position(), len(m.keys)-len(m.absent()), m.position)
		}
		m.loadAnew(t, x)
		for range 10 {
			m.verify(t, x)
		}
	})
}

func (m *model) absent() (ids []domain.KeyID) {
	for id, key := range m.keys {
		if !key.Exists() {
			ids = append(ids, id)
		}
	}
	return ids
}

// loadAnew replaces the index by one that was loaded from a snapshot, some of whose keys
// an operator has disabled meanwhile.
func (m *model) loadAnew(t *rapid.T, x *Index) {
	l := Begin(History{}, m.position, len(m.keys))
	for id, key := range m.keys {
		if key.Exists() {
			key.Disabled = rapid.Bool().Draw(t, "disabled")
			m.keys[id] = key
			if err := l.Add(row(l, key, m.versions[id])); err != nil {
				t.Fatal(err)
			}
		}
	}
	x.Replace(l, m.position, 0)
	m.accepted = map[domain.KeyID][]time.Time{} // limits begin anew
}

func row(l *Loading, key domain.Key, version uint64) *Key {
	return &Key{
		Digest: key.Digest, ID: key.ID, Organization: string(key.Organization), Name: key.Name, Scopes: l.Scopes(key.Scopes), Limit: key.RateLimit, Quota: key.Quota,
		ExpiresAt: key.ExpiresAt, Revoked: key.Revoked, Disabled: key.Disabled, Version: version,
	}
}

func TestNothingIsAnsweredBeforeTheKeysAreLoaded(t *testing.T) {
	t.Parallel()
	x := New(Options{})
	if _, err := x.Verify(domain.Verification{Now: time.Now()}); domain.CodeOf(err) != domain.CodeUnavailable {
		t.Errorf("before: %v", err)
	}
	if x.Ready() {
		t.Error("it says that it is ready")
	}
	// The snapshot is behind the end of the log: what came in between is not known yet.
	x.Replace(Begin(History{}, 0, 0), 1, 0)
	if _, err := x.Verify(domain.Verification{Now: time.Now()}); domain.CodeOf(err) != domain.CodeUnavailable || x.Ready() {
		t.Errorf("behind the log: %v, ready %v", err, x.Ready())
	}
	if err := x.Apply([]Event{created(1, plainKeys(1)[0], time.Now())}); err != nil {
		t.Fatal(err)
	}
	if _, err := x.Verify(domain.Verification{Now: time.Now()}); err != nil || !x.Ready() {
		t.Errorf("at the end of the log: %v, ready %v", err, x.Ready())
	}
}

func TestWhatDoesNotFollowIsRefused(t *testing.T) {
	t.Parallel()
	now := time.Now()
	key := plainKeys(2)
	revoked := func(position domain.Position, plain []byte, version uint64) Event {
		e := domain.KeyRevoked{Key: created(1, plain, now).Event.(domain.KeyCreated).Key, At: now}
		return Event{Position: position, Version: version, Event: e}
	}
	foreign := created(2, key[1], now)
	foreign.Ledger = domain.ID{1}
	later := created(2, key[1], now)
	later.Epoch = 1
	for name, test := range map[string]struct {
		event Event
		want  error
	}{
		"a gap":                       {created(3, key[1], now), ErrGap},
		"the same position again":     {created(1, key[1], now), ErrGap},
		"another ledger":              {foreign, ErrForeign},
		"another epoch":               {later, ErrForeign},
		"a key that was created":      {created(2, key[0], now), ErrBroken},
		"a revocation out of nowhere": {revoked(2, key[1], 2), ErrBroken},
		"a version that was left out": {revoked(2, key[0], 3), ErrBroken},
		"an unknown event":            {Event{Position: 2}, ErrBroken},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			x := filled(t, key[:1])
			if err := x.Apply([]Event{test.event}); !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
			if x.Position() != 1 || verifyPlain(x, key[0], nil) != domain.OutcomeValid {
				t.Errorf("it was applied: position %d", x.Position())
			}
		})
	}
}

func TestWaitForReturnsWhenThePositionIsApplied(t *testing.T) {
	t.Parallel()
	x := empty(Options{})
	keys := plainKeys(3)
	reached := make(chan error)
	for range 4 {
		go func() { reached <- x.WaitFor(t.Context(), 3) }()
	}
	for i, key := range keys {
		select {
		case err := <-reached:
			t.Fatalf("returned at position %d: %v", x.Position(), err)
		default:
		}
		if err := x.Apply([]Event{created(i+1, key, time.Now())}); err != nil {
			t.Fatal(err)
		}
	}
	for range 4 {
		if err := <-reached; err != nil {
			t.Error(err)
		}
	}
}

func TestAForgottenKeyIsNotFoundAndItsPlaceIsUsedAgain(t *testing.T) {
	t.Parallel()
	now := time.Now()
	x := empty(Options{Clock: func() time.Time { return now }})
	keys := plainKeys(3)
	first := created(1, keys[0], now)
	id := first.Event.(domain.KeyCreated).Key
	if err := x.Apply([]Event{first, created(2, keys[1], now)}); err != nil {
		t.Fatal(err)
	}
	if n := x.Forget(id); n != 0 {
		t.Error("a key was forgotten that is not revoked")
	}
	revoked := domain.KeyRevoked{Key: id, At: now}
	if err := x.Apply([]Event{{Position: 3, Version: 2, Event: revoked}}); err != nil {
		t.Fatal(err)
	}
	if n := x.Forget(id); n != 1 || x.Len() != 1 {
		t.Errorf("forgotten: %d, left %d", n, x.Len())
	}
	before := x.contents.Load().count
	if err := x.Apply([]Event{created(4, keys[2], now)}); err != nil {
		t.Fatal(err)
	}
	if x.contents.Load().count != before {
		t.Error("the place was not used again")
	}
	for i, want := range []domain.Outcome{domain.OutcomeNotFound, domain.OutcomeValid, domain.OutcomeValid} {
		if got := verifyPlain(x, keys[i], nil); got != want {
			t.Errorf("key %d is %v, want %v", i, got, want)
		}
	}
}

func TestADigestBelongsToTheOlderOfTwoKeys(t *testing.T) {
	t.Parallel()
	now := time.Now()
	event := func(position domain.Position, version uint64, e domain.Event) Event {
		return Event{Position: position, Version: version, Event: e}
	}
	creation := func(n int) domain.KeyCreated {
		return domain.KeyCreated{Key: idOf(n), Organization: domain.OrganizationID(fmt.Sprint("org_", n)), Digest: secretOf(0), Scopes: domain.Scopes{"read"}, Name: "n"}
	}
	for name, order := range map[string][]int{"the older first": {1, 2, 3}, "the older last": {3, 2, 1}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			x := empty(Options{})
			for i, n := range order {
				if err := x.Apply([]Event{event(domain.Position(i+1), 1, creation(n))}); err != nil {
					t.Fatal(err)
				}
			}
			verify := func() domain.Verdict {
				v, err := x.Verify(domain.Verification{Digest: secretOf(0), Now: now})
				if err != nil {
					t.Fatal(err)
				}
				return v
			}
			if v := verify(); v.Key != idOf(1) || v.Organization != "org_1" || x.Shadowed() != 2 {
				t.Errorf("%+v, %d shadowed", v, x.Shadowed())
			}
			// The others' events have their place, and the oldest stays in front when it is revoked.
			for i, n := range []int{2, 3, 1} {
				if err := x.Apply([]Event{event(domain.Position(i+4), 2, domain.KeyRevoked{Key: idOf(n), At: now})}); err != nil {
					t.Fatal(err)
				}
				if v := verify(); v.Key != idOf(1) || (v.Outcome == domain.OutcomeRevoked) != (n == 1) {
					t.Errorf("after key %d was revoked: %+v", n, v)
				}
			}
		})
	}
}

func TestVerifyingAllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	keys := plainKeys(100)
	x := filled(t, keys)
	required := domain.Scopes{"read", "agency:read"}
	for name, verify := range map[string]func(key []byte){
		"valid":   func(key []byte) { verifyPlain(x, key, required[:1]) },
		"refused": func(key []byte) { verifyPlain(x, key, required) },
		"unknown": func(key []byte) { verifyPlain(x, key[:40], required) },
	} {
		at := 0
		for _, key := range keys {
			verify(key) // the first use of a key borrows a tally
		}
		if n := testing.AllocsPerRun(1000, func() { verify(keys[at%len(keys)]); at++ }); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}
