package index

import (
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"keyledger/domain"
)

// take moves what a walk finds into a snapshot.
func take(t *testing.T, w *Walk, l *Loading, most int) {
	t.Helper()
	rows := make([]Row, 7)
	for most > 0 {
		n := w.Next(rows)
		if n == 0 {
			return
		}
		for i := range rows[:n] {
			r := &rows[i]
			if err := l.Add(&Key{
				Digest: r.Digest, ID: r.ID, Organization: r.Organization, Name: r.Name, Scopes: l.Scopes(r.Scopes), Limit: r.Limit,
				ExpiresAt: r.ExpiresAt, Revoked: r.Revoked, Disabled: r.Disabled, Version: r.Version,
			}); err != nil {
				t.Error(err)
				return
			}
		}
		most -= n
	}
}

// The keys change all the time while they are walked through, in two parts; then the events
// since the beginning make the copy what the original is.
func TestACopyThatIsTakenWhileTheKeysChangeBecomesTheSame(t *testing.T) {
	t.Parallel()
	const keys = 3000
	x := empty(Options{})
	now := time.Now()
	var log []Event
	var mu sync.Mutex
	apply := func(version uint64, e domain.Event) {
		mu.Lock()
		defer mu.Unlock()
		log = append(log, Event{Position: domain.Position(len(log) + 1), Version: version, Event: e})
		if err := x.Apply(log[len(log)-1:]); err != nil {
			t.Error(err)
		}
	}
	create := func(n int) {
		apply(1, domain.KeyCreated{
			Key: idOf(n), Organization: domain.OrganizationID([]string{"org_1", "org_2"}[n%2]), Digest: secretOf(n), Name: string(rune('a' + n%26)),
			Scopes: domain.Scopes{"read", scopeNames[n%len(scopeNames)]}, RateLimit: uint32(n), ExpiresAt: now.Add(time.Duration(n-keys/2) * time.Minute).Truncate(time.Microsecond),
		})
	}
	for n := range keys {
		create(n)
	}
	var changing sync.WaitGroup
	changing.Go(func() {
		for n := range keys {
			apply(2, domain.KeyRevoked{Key: idOf((n * 7) % keys)})
			create(keys + n)
			if n%3 == 0 {
				apply(3, domain.RevocationFenced{Key: idOf((n * 7) % keys)})
			}
		}
	})
	first, err := x.Walk(Cursor{})
	if err != nil {
		t.Fatal(err)
	}
	l := Begin(first.History(), first.Cursor().From, first.Len())
	take(t, first, l, keys/3)
	rest, err := x.Walk(first.Cursor())
	if err != nil {
		t.Fatal(err)
	}
	take(t, rest, l, 1<<30)
	end, err := rest.End()
	if err != nil {
		t.Fatal(err)
	}
	l.Through(end)
	copied := New(Options{})
	copied.Replace(l, end, 0)
	changing.Wait()
	if copied.Ready() != (end == l.Position()) {
		t.Error("ready before everything is there that some keys show")
	}
	if err := copied.Apply(log[l.Position():]); err != nil {
		t.Fatal(err)
	}
	if copied.Len() != x.Len() || copied.Position() != x.Position() || !copied.Ready() {
		t.Fatalf("%d keys at %d, want %d at %d", copied.Len(), copied.Position(), x.Len(), x.Position())
	}
	for n := range 2 * keys {
		v := domain.Verification{Digest: secretOf(n), Now: now, Free: true}
		want, _ := x.Verify(v)
		got, err := copied.Verify(v)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Fatalf("key %d: %v (-original +copy)\n%s", n, err, diff)
		}
		if organization, ok := copied.OrganizationOf(want.Key); !ok || organization != want.Organization {
			t.Fatalf("key %d is of %s, %v", n, organization, ok)
		}
	}
	if _, ok := x.OrganizationOf(domain.KeyID{1}); ok {
		t.Error("an unknown key belongs to somebody")
	}
	// Behind what was copied, nothing is let pass twice.
	if err := copied.Apply([]Event{{Position: x.Position() + 1, Version: 1, Event: log[0].Event}}); !errors.Is(err, ErrBroken) {
		t.Errorf("a key was created twice: %v", err)
	}
}

func TestACursorEndsWhenTheKeysAreLoadedAnew(t *testing.T) {
	t.Parallel()
	x := New(Options{})
	if _, err := x.Walk(Cursor{}); domain.CodeOf(err) != domain.CodeUnavailable {
		t.Errorf("a walk before the keys are loaded: %v", err)
	}
	x = filled(t, plainKeys(10))
	w, err := x.Walk(Cursor{})
	if err != nil {
		t.Fatal(err)
	}
	w.Next(make([]Row, 3))
	x.Distrust()
	if _, err := w.End(); domain.CodeOf(err) != domain.CodeUnavailable {
		t.Errorf("keys that are not to be trusted: %v", err)
	}
	x.Replace(Begin(History{}, 10, 0), 10, 0)
	if _, err := w.End(); domain.CodeOf(err) != domain.CodeUnavailable {
		t.Errorf("keys that were replaced: %v", err)
	}
	if _, err := x.Walk(w.Cursor()); domain.CodeOf(err) != domain.CodeNotFound {
		t.Errorf("a cursor of before: %v", err)
	}
}
