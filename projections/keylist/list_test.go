package keylist_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"keyledger/domain"
	"keyledger/projections"
	"keyledger/projections/internal/logtest"
	"keyledger/projections/keylist"
)

// newList is a list that nobody drives but its readers.
func newList(t *testing.T, log *logtest.Log) *keylist.List {
	t.Helper()
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
	list := newList(t, log)

	first := log.Create("org_a", "first")
	log.Create("org_b", "of others")
	log.AddMember("org_a", "usr_2")
	log.Create("org_a", "second, \"quoted\" {and} back\\slashed 'é'")
	log.Revoke(first)

	views, err := list.List(t.Context(), domain.KeyQuery{Organization: "org_a"})
	logtest.Must(t, err)
	if diff := cmp.Diff(log.Keys("org_a"), keysOf(views)); diff != "" {
		t.Errorf("the list is not the fold of the streams (-streams +list):\n%s", diff)
	}
	if len(views) != 2 || !views[1].Revoked {
		t.Errorf("want two keys, the older one revoked, not %+v", views)
	}
}
