package firstkey_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"keyledger/domain"
	"keyledger/eventstore"
	"keyledger/internal/firstkey"
	"keyledger/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// recorder decides commands as the log does, and keeps what it is asked.
type recorder struct{ request domain.Request }

func (r *recorder) ChangeKey(_ context.Context, request domain.Request, _ domain.KeyID, command domain.KeyCommand) (domain.Key, domain.Receipt, error) {
	r.request = request
	events, err := domain.DecideKey(domain.Key{}, command)
	if err != nil {
		return domain.Key{}, domain.Receipt{}, err
	}
	key, err := domain.EvolveKey(domain.Key{}, events[0])
	return key, domain.Receipt{Changed: true}, err
}

func TestAFirstKeyCanHandOnEverythingOfItsOrganization(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		wish         firstkey.Wish
		organization domain.OrganizationID
		scopes       string
	}{
		{firstkey.Wish{Organization: "org_1"}, "org_1", "admin *"},
		{firstkey.Wish{Organization: "org_1", Scopes: []string{"read", "agency:read"}}, "org_1", "read agency:read"},
		{firstkey.Wish{System: true}, domain.SystemOrganization, "system:verify system:events system:audit"},
		{firstkey.Wish{System: true, Scopes: []string{"system:audit"}}, domain.SystemOrganization, "system:audit"},
	} {
		test.wish.Name, test.wish.Format, test.wish.User = "first", domain.DefaultKeyFormat, "user_1"
		draft, err := firstkey.Draw(test.wish, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		var log recorder
		made, err := firstkey.Make(t.Context(), &log, draft)
		if err != nil {
			t.Fatal(err)
		}
		if made.Key.Organization != test.organization || strings.Join(made.Key.Scopes.Strings(), " ") != test.scopes || made.Key.Digest != made.Secret.Digest() {
			t.Errorf("%+v makes %+v", test.wish, made.Key)
		}
		if actor := log.request.Metadata.Actor; actor.Kind != domain.ActorConsole || actor.User != "user_1" || log.request.ID == (domain.CommandID{}) {
			t.Errorf("the request is %+v", log.request)
		}
	}
}

func TestScopesOfTheSystemBelongToKeysOfTheSystem(t *testing.T) {
	t.Parallel()
	for _, wish := range []firstkey.Wish{
		{Organization: "org_1", Scopes: []string{"read", "system:audit"}},
		{Organization: domain.SystemOrganization},
		{System: true, Scopes: []string{"system:audit", "*"}},
	} {
		wish.Name, wish.Format = "first", domain.DefaultKeyFormat
		if _, err := firstkey.Draw(wish, time.Now()); domain.CodeOf(err) != domain.CodeInvalid {
			t.Errorf("%+v gives %v", wish, err)
		}
	}
}

// keys is a list of one organization's keys.
type keys func() []domain.KeyView

func (k keys) List(context.Context, domain.KeyQuery) ([]domain.KeyView, error) { return k(), nil }

func connect(t *testing.T) *pgxpool.Pool {
	t.Helper()
	pool, err := eventstore.Connect(t.Context(), testkit.Database(t).URL, eventstore.ConnectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

func TestAFirstKeyIsMadeWhereNoActiveAdminKeyIs(t *testing.T) {
	t.Parallel()
	pool := connect(t)
	now := time.Now()
	admin := domain.Key{Scopes: domain.Scopes{domain.ScopeAdmin}}
	of := func(change func(*domain.Key)) domain.KeyView {
		k := admin
		change(&k)
		return domain.KeyView{Key: k}
	}
	for name, test := range map[string]struct {
		views []domain.KeyView
		want  bool
	}{
		"no keys":        {nil, true},
		"an admin key":   {[]domain.KeyView{{Key: admin}}, false},
		"the first kind": {[]domain.KeyView{of(func(k *domain.Key) { k.Scopes = domain.Scopes{domain.ScopeAll} })}, false},
		"a reader":       {[]domain.KeyView{of(func(k *domain.Key) { k.Scopes = domain.Scopes{domain.ScopeRead} })}, true},
		"revoked":        {[]domain.KeyView{of(func(k *domain.Key) { k.Revoked = true })}, true},
		"disabled":       {[]domain.KeyView{of(func(k *domain.Key) { k.Disabled = true })}, true},
		"expired":        {[]domain.KeyView{of(func(k *domain.Key) { k.ExpiresAt = now })}, true},
	} {
		called := false
		made, err := firstkey.Once(t.Context(), pool, keys(func() []domain.KeyView { return test.views }), "org_1", now, func() error { called = true; return nil })
		if err != nil || made != test.want || called != test.want {
			t.Errorf("%s: made %v, called %v, %v", name, made, called, err)
		}
	}
	failed := errors.New("disk full")
	if _, err := firstkey.Once(t.Context(), pool, keys(func() []domain.KeyView { return nil }), "org_1", now, func() error { return failed }); !errors.Is(err, failed) {
		t.Errorf("a failure gives %v", err)
	}
}

func TestOfSeveralServersThatStartAtOnceOneMakesTheKey(t *testing.T) {
	t.Parallel()
	pool := connect(t)
	var exists atomic.Bool
	var made atomic.Int64
	list := keys(func() []domain.KeyView {
		if !exists.Load() {
			return nil
		}
		return []domain.KeyView{{Key: domain.Key{Scopes: domain.Scopes{domain.ScopeAdmin}}}}
	})
	var servers sync.WaitGroup
	for range 8 {
		servers.Go(func() {
			_, err := firstkey.Once(t.Context(), pool, list, "org_1", time.Now(), func() error {
				made.Add(1)
				exists.Store(true)
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	servers.Wait()
	if made.Load() != 1 {
		t.Errorf("%d keys were made", made.Load())
	}
}
