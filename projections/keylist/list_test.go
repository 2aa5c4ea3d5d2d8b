package keylist_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"
	"pgregory.net/rapid"

	"keyledger/domain"
	"keyledger/projections"
	"keyledger/projections/internal/logtest"
	"keyledger/projections/keylist"
	"keyledger/projections/usage"
)

// newList is a list that nobody drives but its readers.
func newList(log *logtest.Log) *keylist.List {
	follower := projections.NewFollower(log, keylist.New(log.Pool), projections.FollowerOptions{})
	return keylist.NewList(log.Pool, follower)
}

func keysOf(views []domain.KeyView) []domain.Key {
	keys := make([]domain.Key, len(views))
	for i, view := range views {
		keys[i] = view.Key
	}
	return keys
}

func TestAListShowsWhatTheStreamsSay(t *testing.T) {
	t.Parallel()
	log := logtest.New(t)
	list := newList(log)

	first := log.Create("org_a", "first")
	log.Create("org_b", "of others")
	log.AddMember("org_a", "usr_2")
	log.Create("org_a", "second, \"quoted\" {and} back\\slashed 'é' $1 NULL")
	log.CreateQuota("org_a", "third", domain.Quota{Limit: 7, Refill: domain.RefillNone})
	log.Revoke(first)

	views, err := list.List(t.Context(), domain.KeyQuery{Organization: "org_a"})
	logtest.Must(t, err)
	if diff := cmp.Diff(log.Keys("org_a"), keysOf(views)); diff != "" {
		t.Errorf("the list is not the fold of the streams (-streams +list):\n%s", diff)
	}
	if len(views) != 3 || !views[2].Revoked {
		t.Errorf("want three keys, the oldest one revoked, not %+v", views)
	}
}

func TestAnEmptyListIsNoError(t *testing.T) {
	t.Parallel()
	views, err := newList(logtest.New(t)).List(t.Context(), domain.KeyQuery{Organization: "org_a", Most: 10})
	if views == nil || len(views) != 0 || err != nil {
		t.Errorf("%v, %v", views, err)
	}
}

// Whatever the history, and wherever it is cut into batches, the list is the fold
// of domain.EvolveKey.
func TestTheListIsTheFoldOfTheStreams(t *testing.T) {
	t.Parallel()
	log := logtest.New(t)
	follower := projections.NewFollower(log, keylist.New(log.Pool), projections.FollowerOptions{})
	list := keylist.NewList(log.Pool, follower)
	round := 0
	rapid.Check(t, func(rt *rapid.T) {
		round++
		organization := domain.OrganizationID(fmt.Sprintf("org_%d", round))
		var keys []domain.Key
		for range rapid.IntRange(1, 12).Draw(rt, "steps") {
			switch step := rapid.IntRange(0, 9).Draw(rt, "step"); {
			case step < 5 || len(keys) == 0:
				name := rapid.StringMatching(`[ -~äß"'{}\\,]{1,30}`).Draw(rt, "name")
				created := time.UnixMicro(rapid.Int64Range(1.7e15, 1.7e15+3).Draw(rt, "at")) // ties are likely
				keys = append(keys, log.CreateAt(organization, name+"x", created))
			case step < 8:
				log.Revoke(rapid.SampledFrom(keys).Draw(rt, "revoked"))
			case step < 9:
				log.AddMember(organization, domain.UserID(fmt.Sprintf("usr_%d", rapid.IntRange(0, 3).Draw(rt, "user"))))
			default:
				logtest.Must(t, follower.CatchUp(t.Context(), log.End(domain.Lifecycle)))
			}
		}
		views, err := list.List(t.Context(), domain.KeyQuery{Organization: organization})
		logtest.Must(t, err)
		if diff := cmp.Diff(log.Keys(organization), keysOf(views)); diff != "" {
			rt.Fatalf("the list is not the fold of the streams (-streams +list):\n%s", diff)
		}
	})
}

// Each writer reads its own writes, and everybody else's that had returned, on another node
// whose follower hears of nothing.
func TestAListIsNeverOlderThanTheWritesBeforeIt(t *testing.T) {
	t.Parallel()
	log := logtest.New(t)
	pool := logtest.Pool(t, log.DB.URL)
	other := logtest.Open(t, pool)
	lists := []*keylist.List{newList(log), keylist.NewList(pool, projections.NewFollower(other, keylist.New(pool), projections.FollowerOptions{}))}
	driven := projections.NewFollower(log, keylist.New(log.Pool), projections.FollowerOptions{})
	logtest.Background(t, "the follower", driven.Run)
	lists = append(lists, keylist.NewList(log.Pool, driven))

	var group errgroup.Group
	for writer := range 8 {
		group.Go(func() error {
			for i := range 15 {
				list := lists[(writer+i)%len(lists)]
				key, err := log.TryCreate("org_a", "a key", time.Now())
				if err != nil {
					return err
				}
				if err := shows(t.Context(), list, key.ID, false); err != nil {
					return err
				}
				if _, err := log.TryRevoke(key); err != nil {
					return err
				}
				if err := shows(t.Context(), list, key.ID, true); err != nil {
					return err
				}
			}
			return nil
		})
	}
	logtest.Must(t, group.Wait())
}

func shows(ctx context.Context, list *keylist.List, id domain.KeyID, revoked bool) error {
	views, err := list.List(ctx, domain.KeyQuery{Organization: "org_a"})
	if err != nil {
		return err
	}
	view, err := list.Get(ctx, "org_a", id, 0)
	if err != nil {
		return err
	}
	at := slices.IndexFunc(views, func(v domain.KeyView) bool { return v.ID == id })
	if at < 0 || views[at].Revoked != revoked || view.Revoked != revoked {
		return errors.New("a list is older than the write before it")
	}
	return nil
}

// Pages are walked while keys are created, newer ones and imported ones of any
// age. What was there at the first page is seen once, in order.
func TestPagesNeitherRepeatNorMissAKey(t *testing.T) {
	t.Parallel()
	log := logtest.New(t)
	list := newList(log)
	start := time.Date(2026, 1, 15, 10, 0, 0, 0, time.UTC)
	for i := range 40 {
		log.CreateAt("org_a", "a key", start.Add(time.Duration(i/4)*time.Second)) // four at a time
	}
	for range 5 {
		log.CreateAt("org_a", "imported", start.Add(-time.Duration(rand.IntN(1000))*time.Hour))
	}
	want := log.Keys("org_a")

	var got []domain.Key
	var before domain.KeyID
	for {
		views, err := list.List(t.Context(), domain.KeyQuery{Organization: "org_a", Before: before, Most: 7})
		logtest.Must(t, err)
		if len(views) == 0 {
			break
		}
		got = append(got, keysOf(views)...)
		before = views[len(views)-1].ID
		if len(got) < 45 {
			log.Create("org_a", "newer")
			log.CreateAt("org_a", "imported meanwhile", start.Add(time.Duration(rand.IntN(40)-20)*time.Second))
		}
	}
	for i := range got {
		if slices.ContainsFunc(got[:i], func(k domain.Key) bool { return k.ID == got[i].ID }) {
			t.Errorf("%s was shown twice", got[i].ID)
		}
	}
	got = slices.DeleteFunc(got, func(k domain.Key) bool { return k.Name == "imported meanwhile" })
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the pages are not the list (-list +pages):\n%s", diff)
	}
}

func TestACursorMustNameAKeyOfTheOrganization(t *testing.T) {
	t.Parallel()
	log := logtest.New(t)
	list := newList(log)
	log.Create("org_a", "a key")
	foreign := log.Create("org_b", "a key")
	for name, cursor := range map[string]domain.KeyID{"unknown": domain.KeyID(logtest.NewID(t)), "another organization's": foreign.ID} {
		_, err := list.List(t.Context(), domain.KeyQuery{Organization: "org_a", Before: cursor})
		var e *domain.Error
		if !errors.As(err, &e) || e.Code != domain.CodeInvalid || e.Field != "cursor" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAKeyIsFoundByItsOrganizationOnly(t *testing.T) {
	t.Parallel()
	log := logtest.New(t)
	list := newList(log)
	key := log.Create("org_a", "a key")
	view, err := list.Get(t.Context(), "org_a", key.ID, 0)
	logtest.Must(t, err)
	if diff := cmp.Diff(domain.KeyView{Key: key}, view); diff != "" {
		t.Error(diff)
	}
	for _, ask := range []struct {
		organization domain.OrganizationID
		id           domain.KeyID
	}{{"org_b", key.ID}, {"org_a", domain.KeyID(logtest.NewID(t))}} {
		if _, err := list.Get(t.Context(), ask.organization, ask.id, 0); domain.CodeOf(err) != domain.CodeNotFound {
			t.Errorf("%v: %v", ask, err)
		}
	}
}

func TestAPositionThatTheLogDoesNotHaveIsStale(t *testing.T) {
	t.Parallel()
	log := logtest.New(t)
	list := newList(log)
	key := log.Create("org_a", "a key")
	_, err := list.List(t.Context(), domain.KeyQuery{Organization: "org_a", AtLeast: 2})
	_, err2 := list.Get(t.Context(), "org_a", key.ID, 2)
	if domain.CodeOf(err) != domain.CodeStale || domain.CodeOf(err2) != domain.CodeStale {
		t.Errorf("%v, %v", err, err2)
	}
	if _, err := list.List(t.Context(), domain.KeyQuery{Organization: "org_a", AtLeast: 1}); err != nil {
		t.Error(err)
	}
}

func TestAListShowsTheLastAcceptedUse(t *testing.T) {
	t.Parallel()
	log := logtest.New(t)
	list := newList(log)
	key := log.Create("org_a", "a key")
	unused := log.Create("org_a", "another")
	used := key.CreatedAt.Add(time.Minute)
	log.UseAll(
		domain.KeyUsed{Organization: "org_a", Uses: []domain.Use{{Key: key.ID, Count: 2, First: used, Last: used}}},
		domain.KeyUsed{Organization: "org_a", Uses: []domain.Use{
			{Key: key.ID, Count: 40, First: used.Add(-time.Second), Last: used.Add(-time.Second)},
			{Key: key.ID, Outcome: domain.OutcomeRateLimited, Count: 5, First: used.Add(time.Hour), Last: used.Add(time.Hour)},
		}},
	)
	follower := projections.NewFollower(log, usage.New(log.Pool), projections.FollowerOptions{})
	logtest.Must(t, follower.CatchUp(t.Context(), 2))

	views, err := list.List(t.Context(), domain.KeyQuery{Organization: "org_a"})
	logtest.Must(t, err)
	want := []domain.KeyView{{Key: unused}, {Key: key, LastUsedAt: used, Uses: 42}}
	if diff := cmp.Diff(want, views); diff != "" {
		t.Error(diff)
	}
	for _, view := range want {
		uses, last, err := list.Used(t.Context(), view.ID)
		logtest.Must(t, err)
		if uses != view.Uses || !last.Equal(view.LastUsedAt) {
			t.Errorf("key %s was used %d times, last at %s; want %d and %s", view.ID, uses, last, view.Uses, view.LastUsedAt)
		}
	}
}
