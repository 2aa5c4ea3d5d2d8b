package verification

import (
	"fmt"
	"testing"
	"time"

	"keyledger/domain"
	"keyledger/eventstore"
)

func TestSmoke(t *testing.T) {
	x := New(Options{})
	x.contents.Store(newContents())
	now := time.Now()
	n := 200000
	for i := range n {
		s, _ := domain.ParseSecret(fmt.Sprintf("bsk_live_%032x", i))
		id, _ := domain.NewID(now, zero{i})
		err := x.Apply([]eventstore.Event{{Recorded: eventstore.Recorded{Position: domain.Position(i + 1), Version: 1}, Event: domain.KeyCreated{
			Key: domain.KeyID(id), Organization: domain.OrganizationID(fmt.Sprint("org", i%1000)), Digest: s.Digest(), Scopes: domain.Scopes{"read"}, RateLimit: 2, Name: fmt.Sprintf("key number %d", i),
		}}})
		if err != nil {
			t.Fatal(err)
		}
	}
	for i := range n + 10 {
		s, _ := domain.ParseSecret(fmt.Sprintf("bsk_live_%032x", i))
		for j := range 3 {
			v, err := x.Verify(domain.Verification{Digest: s.Digest(), Required: domain.Scopes{"read"}, Now: now})
			if err != nil {
				t.Fatal(err)
			}
			if i < n && j < 2 && v.Outcome != domain.OutcomeValid {
				t.Fatal(i, v)
			}
			if i < n && j == 2 && v.Outcome != domain.OutcomeRateLimited {
				t.Fatal(i, v)
			}
			if i < n && v.Name != fmt.Sprintf("key number %d", i) {
				t.Fatal(v)
			}
			if i >= n && v.Outcome != domain.OutcomeNotFound {
				t.Fatal(v)
			}
			if i%50000 == 0 {
				t.Log(v)
			}
		}
	}
	t.Logf("%+v", x.Memory())
}

type zero struct{ i int }

func (z zero) Read(b []byte) (int, error) { copy(b, fmt.Sprintf("%016x", z.i)[6:]); return len(b), nil }
