package http_test

import (
	"context"
	"crypto/rand"
	"fmt"
	nethttp "net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"golang.org/x/sync/errgroup"

	"keyledger/domain"
	"keyledger/eventstore"
	keyhttp "keyledger/http"
	"keyledger/index"
	"keyledger/internal/testkit"
	"keyledger/projections"
	"keyledger/projections/keylist"
	"keyledger/projections/usage"
	"keyledger/projections/verification"
)

// realSite is a server on a real log, list and index.
type realSite struct {
	*site
	store      *eventstore.Store
	accountant *verification.Accountant
}

func startReal(t *testing.T) *realSite {
	t.Helper()
	logger := testkit.Logger(t)
	pool, err := eventstore.Connect(t.Context(), testkit.Database(t).URL, eventstore.ConnectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	store, err := eventstore.Open(t.Context(), eventstore.Options{Pool: pool, MasterKey: make([]byte, 32), Logger: logger})
	if err != nil {
		t.Fatal(err)
	}
	lists := projections.NewFollower(store, keylist.New(pool), projections.FollowerOptions{Logger: logger})
	uses := projections.NewFollower(store, usage.New(pool), projections.FollowerOptions{Logger: logger})
	keys := index.New(index.Options{Logger: logger})
	projection := verification.New(keys, verification.Options{Pool: pool, Log: store, Logger: logger})
	accountant, err := verification.NewAccountant(keys, store, verification.AccountantOptions{Logger: logger})
	if err != nil {
		t.Fatal(err)
	}
	running, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	group, running := errgroup.WithContext(running)
	for _, run := range []func(context.Context) error{store.Run, lists.Run, uses.Run, projection.Run} {
		group.Go(func() error {
			if err := run(running); running.Err() == nil {
				return fmt.Errorf("it ended too early: %w", err)
			}
			return nil
		})
	}
	t.Cleanup(func() {
		stop()
		if err := group.Wait(); err != nil {
			t.Error(err)
		}
	})
	_, epoch := store.Ledger()
	s := &realSite{store: store, accountant: accountant}
	s.site = start(t, func(o *keyhttp.Options) {
		o.Ledger, o.Verifier, o.Keys, o.Epoch, o.Clock = store, keys, keylist.NewList(pool, lists), epoch, nil
		o.Tokens.Issuer, o.Tokens.Audience = "", ""
	})
	poll := time.NewTicker(time.Millisecond)
	defer poll.Stop()
	for !keys.Ready() {
		<-poll.C
	}
	return s
}

// change appends what the command line would.
func (s *realSite) makeKey(scopes ...domain.Scope) (string, domain.KeyID) {
	s.t.Helper()
	secret, err := domain.NewSecret(domain.DefaultKeyFormat, false, rand.Reader)
	if err != nil {
		s.t.Fatal(err)
	}
	id, err := domain.NewID(time.Now(), rand.Reader)
	if err != nil {
		s.t.Fatal(err)
	}
	key, receipt, err := s.store.ChangeKey(s.t.Context(), console(s.t), domain.KeyID(id), domain.CreateKey{
		Now: time.Now().UTC().Truncate(time.Microsecond), Key: domain.KeyID(id), Organization: acme, Digest: secret.Digest(),
		Prefix: secret.VisiblePrefix(domain.DefaultKeyFormat), Name: "First", Scopes: scopes, Granter: scopes, RateLimit: 100_000,
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.await(receipt)
	return secret.Reveal(), key.ID
}

// await returns when the server verifies at a write's position.
func (s *realSite) await(receipt domain.Receipt) {
	s.t.Helper()
	a := s.ask("POST", verifyPath+"?wait=10s", "X-Keyledger-Min-Position: "+receipt.Token().String(), `{"key":"x"}`)
	if a.status != nethttp.StatusOK {
		s.t.Fatalf("got %d %s", a.status, a.body)
	}
}

func console(t testing.TB) domain.Request {
	t.Helper()
	request := domain.Request{Metadata: domain.Metadata{Actor: domain.Actor{Kind: domain.ActorConsole}}}
	if _, err := rand.Read(request.ID[:]); err != nil {
		t.Fatal(err)
	}
	return request
}

func TestBothDialectsOnTheRealLedger(t *testing.T) {
	t.Parallel()
	s := startReal(t)
	admin, adminID := s.makeKey("*")
	_, receipt, err := s.store.ChangeOrganization(t.Context(), console(t), acme, domain.AddMember{Now: time.Now().UTC(), Organization: acme, User: "user_1", Role: "member"})
	if err != nil {
		t.Fatal(err)
	}
	s.await(receipt)
	user := "Authorization: Bearer " + sign(t, jwt.SigningMethodHS256, tokenSecret, "", claimsOf("user_1", claimSet{"exp": time.Now().Add(time.Hour).Unix(), "iat": nil}))
	key := "X-API-Key: " + admin

	first := s.ask("POST", bullseyePath, key, "Idempotency-Key: a", `{"name":"Zoë's"}`)
	made := decode[struct {
		APIKey   bullseyeKey `json:"apiKey"`
		PlainKey string      `json:"plainKey"`
	}](t, first.body)
	if first.status != 201 || made.APIKey.CreatedByUserID != nil {
		t.Fatalf("got %d %s", first.status, first.body)
	}
	again := s.ask("POST", bullseyePath, key, "Idempotency-Key: a", `{"name":"Zoë's"}`)
	if again.status != 201 || again.body != strings.Replace(first.body, `"`+made.PlainKey+`"`, "null", 1) {
		t.Errorf("got %d %s after %s", again.status, again.body, first.body)
	}
	again.has(t, "Idempotent-Replayed", "true").has(t, "X-Keyledger-Position", first.header.Get("X-Keyledger-Position"))
	if a := s.ask("POST", bullseyePath, key, "Idempotency-Key: a", `{"name":"Other"}`); a.status != 422 {
		t.Errorf("got %d %s", a.status, a.body)
	}
	verdict := func(code string) {
		t.Helper()
		if a := s.ask("POST", verifyPath, fmt.Sprintf(`{"key":%q,"scopes":["write"]}`, made.PlainKey)); !strings.Contains(a.body, `"code":"`+code+`"`) {
			t.Errorf("got %d %s", a.status, a.body)
		}
	}
	verdict("VALID")
	if err := s.accountant.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	id, err := domain.ParseKeyID(made.APIKey.ID)
	if err != nil {
		t.Fatal(err)
	}
	usagePath := bunshipPath + "/" + id.String() + "/usage"
	for !strings.Contains(s.ask("GET", usagePath, user).body, `"usage":{"requests":1,"rateLimit":1000}`) {
		if t.Context().Err() != nil {
			t.Fatal(s.ask("GET", usagePath, user).body)
		}
	}

	ship := s.ask("POST", bunshipPath, user, `{"name":"Ship","rateLimit":2}`)
	shipped := decode[struct{ Data struct{ ID, Key string } }](t, ship.body).Data
	list := decode[struct {
		APIKeys []bullseyeKey `json:"apiKeys"`
	}](t, s.ask("GET", bullseyePath, key).body).APIKeys
	var names []string
	for _, k := range list {
		names = append(names, k.Name)
	}
	if !slices.Equal(names, []string{"Ship", "Zoë's", "First"}) || list[0].CreatedByUserID == nil || *list[0].CreatedByUserID != "user_1" || list[1].LastUsedAt == nil {
		t.Errorf("got %+v", list)
	}
	shipKey := "X-API-Key: " + shipped.Key
	s.ask("GET", bunshipPath+"?limit=1", shipKey).has(t, "X-RateLimit-Limit", "2").has(t, "X-RateLimit-Remaining", "1")
	page := decode[struct {
		Pagination struct{ NextCursor string }
	}](t, s.ask("GET", bunshipPath+"?limit=2", shipKey).body).Pagination
	if a := s.ask("GET", bunshipPath, shipKey); a.status != 429 || a.header.Get("Retry-After") == "" {
		t.Errorf("got %d %v", a.status, a.header)
	}
	if a := s.ask("GET", bunshipPath+"?limit=2&cursor="+page.NextCursor, user); !strings.Contains(a.body, `"id":"`+adminID.String()) || strings.Count(a.body, `"id":`) != 1 {
		t.Errorf("got %d %s", a.status, a.body)
	}

	s.ask("DELETE", bunshipPath+"/"+id.String(), user, "Idempotency-Key: r").is(t, 200, `{"success":true,"message":"API key revoked successfully"}`)
	verdict("REVOKED")
	s.ask("DELETE", bunshipPath+"/"+id.String(), user, "Idempotency-Key: r").is(t, 200, `{"success":true,"message":"API key revoked successfully"}`).
		has(t, "Idempotent-Replayed", "true")
	s.ask("DELETE", bunshipPath+"/"+id.String(), user).is(t, 404, bunshipNotFound)
	if a := s.ask("DELETE", bullseyePath+"/"+id.UUID(), key); a.status != 200 || !strings.Contains(a.body, `"status":"revoked"`) || strings.Contains(a.body, `"lastUsedAt":null`) {
		t.Errorf("got %d %s", a.status, a.body)
	}
	s.ask("GET", bullseyePath, "X-API-Key: "+made.PlainKey).is(t, 401, bullseyeUnauthorized)
}

// Many commands race with the revocation of the key that authorises them. What
// is answered with 201 was committed before the revocation, and whatever starts
// after it was answered is refused.
func TestNothingIsCreatedByAKeyThatIsRevoked(t *testing.T) {
	t.Parallel()
	s := startReal(t)
	admin, _ := s.makeKey("*")
	for range 5 {
		acting, id := s.makeKey("*")
		var mu sync.Mutex
		var made []domain.Position
		var group sync.WaitGroup
		started := make(chan struct{}, 64)
		for range 8 {
			group.Go(func() {
				for {
					a := s.ask("POST", bullseyePath, "X-API-Key: "+acting, `{"name":"n"}`)
					select {
					case started <- struct{}{}:
					default:
					}
					if a.status != 201 {
						if a.status != 401 {
							t.Errorf("got %d %s", a.status, a.body)
						}
						return
					}
					mu.Lock()
					made = append(made, positionOf(t, a))
					mu.Unlock()
				}
			})
		}
		for range 16 {
			<-started
		}
		a := s.ask("DELETE", bullseyePath+"/"+id.UUID(), "X-API-Key: "+admin)
		s.ask("POST", bullseyePath, "X-API-Key: "+acting, `{"name":"n"}`).is(t, 401, bullseyeUnauthorized)
		group.Wait()
		if a.status != 200 || len(made) == 0 || slices.Max(made) > positionOf(t, a) {
			t.Errorf("got %d %s; created %v, revoked at %d", a.status, a.body, made, positionOf(t, a))
		}
	}
}

func positionOf(t testing.TB, a answer) domain.Position {
	t.Helper()
	token, err := domain.ParseToken(a.header.Get("X-Keyledger-Position"))
	if err != nil {
		t.Errorf("%v in %d %s", err, a.status, a.body)
	}
	return token.Position
}
