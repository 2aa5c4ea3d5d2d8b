package organizations_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"keyledger/domain"
	"keyledger/eventstore"
	"keyledger/projections"
	"keyledger/projections/internal/logtest"
	"keyledger/projections/organizations"
)

func patient(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// However often an organization occurs, and wherever a reader stands, the pages hold each of
// its events once, in order, and none of another's.
func TestPagesHoldEachEventOfAnOrganizationOnce(t *testing.T) {
	t.Parallel()
	log := logtest.New(t)
	want := map[domain.OrganizationID][]domain.Position{}
	for i := range 1500 {
		organization := domain.OrganizationID("org_often")
		switch {
		case i == 700, i == 1499:
			organization = "org_seldom"
		case i%10 == 3:
			organization = "org_sometimes"
		}
		key := log.Create(organization, fmt.Sprint(i))
		want[organization] = append(want[organization], log.End(domain.Lifecycle))
		if i%50 == 0 {
			log.Revoke(key)
			want[organization] = append(want[organization], log.End(domain.Lifecycle))
		}
	}
	end := log.End(domain.Lifecycle)
	follower := projections.NewFollower(log, organizations.New(log.Pool), projections.FollowerOptions{})
	reader := organizations.NewReader(log.Pool, log.Store, follower)
	for organization, positions := range want {
		for _, most := range []int{1, 7, 100, 1000} {
			after, through := domain.Position(rand.N(uint64(end))), end-domain.Position(rand.N(uint64(50)))
			if most == 7 {
				after = 0
			}
			var expected []domain.Position
			for _, p := range positions {
				if p > after && p <= through {
					expected = append(expected, p)
				}
			}
			var got []domain.Position
			pages := 0
			for at := after; at < through; pages++ {
				events, looked, err := reader.OrganizationPage(patient(t), organization, at, through, most)
				logtest.Must(t, err)
				if looked <= at || looked > through || len(events) > most {
					t.Fatalf("from %d to %d a page of %d events says that it looked up to %d", at, through, len(events), looked)
				}
				for _, e := range events {
					if e.Organization != organization {
						t.Fatalf("%s is shown the event %d of %s", organization, e.Position, e.Organization)
					}
					got = append(got, e.Position)
				}
				at = looked
			}
			if fmt.Sprint(got) != fmt.Sprint(expected) {
				t.Errorf("%s, from %d to %d by %d: got %v, want %v", organization, after, through, most, got, expected)
			}
			if bound := len(expected)/most + 10; pages > bound {
				t.Errorf("%s, by %d: %d events took %d pages", organization, most, len(expected), pages)
			}
		}
	}
	events, looked, err := reader.OrganizationPage(patient(t), "org_nobody", 0, end, 10)
	if err != nil || len(events) != 0 || looked != end {
		t.Errorf("an organization without events has %d up to %d: %v", len(events), looked, err)
	}
}

func TestTheTableIsTheSameWhenItIsMadeAgain(t *testing.T) {
	t.Parallel()
	log := logtest.New(t)
	follower := projections.NewFollower(log, organizations.New(log.Pool), projections.FollowerOptions{})
	for i := range 300 {
		log.Create(domain.OrganizationID(fmt.Sprintf("org_%d", i%7)), "a key")
		if i%40 == 0 {
			logtest.Must(t, follower.CatchUp(patient(t), log.End(domain.Lifecycle)))
		}
	}
	logtest.Must(t, follower.CatchUp(patient(t), log.End(domain.Lifecycle)))
	report, err := projections.Rebuild(patient(t), projections.RebuildOptions{
		AdminURL: log.DB.AdminURL, Log: log, Projection: organizations.New(log.Pool), CompareOnly: true,
	})
	logtest.Must(t, err)
	if !report.Comparison.Equal() || report.Position != 300 {
		t.Errorf("the rebuild says %+v", report)
	}
}

var _ organizations.Log = (*eventstore.Store)(nil)
