package http_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"maps"
	nethttp "net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/MicahParks/jwkset"
	"github.com/golang-jwt/jwt/v5"

	"keyledger/domain"
	keyhttp "keyledger/http"
)

var tokenSecret = []byte("a secret of at least thirty-two bytes")

type claimSet map[string]any

// claimsOf are a good token's, with changes; nil takes a claim away.
func claimsOf(user string, changes claimSet) jwt.MapClaims {
	c := jwt.MapClaims{
		"userId": user, "email": "somebody@example.org", "sessionId": "s1",
		"iat": noon.Unix(), "exp": noon.Add(24 * time.Hour).Unix(), "iss": "https://issuer.example", "aud": "keyledger",
	}
	maps.Copy(c, changes)
	maps.DeleteFunc(c, func(_ string, v any) bool { return v == nil })
	return c
}

func sign(t testing.TB, method jwt.SigningMethod, key any, kid string, claims jwt.MapClaims) string {
	t.Helper()
	token := jwt.NewWithClaims(method, claims)
	if kid != "" {
		token.Header["kid"] = kid
	}
	text, err := token.SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// userToken is what BunShip's own login makes.
func userToken(t testing.TB, user string, changes claimSet) string {
	t.Helper()
	return sign(t, jwt.SigningMethodHS256, tokenSecret, "", claimsOf(user, changes))
}

func TestMembershipComesFromTheTokenOrFromTheLedger(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.addMember(acme, "user_1", "member")
	for name, test := range map[string]struct {
		user    string
		changes claimSet
		status  int
	}{
		"the ledger knows the member":                   {"user_1", nil, 200},
		"the ledger does not":                           {"user_2", nil, 403},
		"sub names the user as well":                    {"", claimSet{"userId": nil, "sub": "user_1"}, 200},
		"sub goes first":                                {"user_2", claimSet{"sub": "user_1"}, 200},
		"no user":                                       {"", claimSet{"userId": nil}, 401},
		"a user id with a space":                        {"user 1", nil, 401},
		"org_id":                                        {"user_2", claimSet{"org_id": acme, "org_role": "member"}, 200},
		"org_id without a role":                         {"user_2", claimSet{"org_id": acme}, 200},
		"org_id of another organization confines":       {"user_1", claimSet{"org_id": other}, 403},
		"a list of organizations":                       {"user_2", claimSet{"organizations": []string{"x", string(acme)}}, 200},
		"a map of organizations":                        {"user_2", claimSet{"organizations": map[string]string{string(acme): "owner"}}, 200},
		"an empty list confines":                        {"user_1", claimSet{"organizations": []string{}}, 403},
		"another list confines":                         {"user_1", claimSet{"organizations": []string{"x"}}, 403},
		"an unreadable list gives nothing":              {"user_1", claimSet{"organizations": 7}, 403},
		"null organizations are none":                   {"user_1", claimSet{"org_id": "", "organizations": nil}, 200},
		"not yet valid":                                 {"user_1", claimSet{"nbf": noon.Add(time.Hour).Unix()}, 401},
		"wrong audience":                                {"user_1", claimSet{"aud": "another"}, 401},
		"one of several audiences":                      {"user_1", claimSet{"aud": []string{"another", "keyledger"}}, 200},
		"no audience":                                   {"user_1", claimSet{"aud": nil}, 401},
		"no issuer":                                     {"user_1", claimSet{"iss": nil}, 401},
		"exp that is no number":                         {"user_1", claimSet{"exp": "tomorrow"}, 401},
		"exp far beyond int64 is no date but not a 500": {"user_1", claimSet{"exp": 1e300}, 401},
	} {
		t.Run(name, func(t *testing.T) {
			a := s.ask("GET", bunshipPath, "Authorization: Bearer "+userToken(t, test.user, test.changes))
			if a.status != test.status {
				t.Errorf("got %d %s, want %d", a.status, a.body, test.status)
			}
			if b := s.ask("GET", bullseyePath, "authorization: bearer  "+userToken(t, test.user, test.changes)); b.status != test.status {
				t.Errorf("Bullseye: got %d %s, want %d", b.status, b.body, test.status)
			}
		})
	}
}

func TestNobodyIsAMemberOfTheReservedOrganization(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.addMember(domain.SystemOrganization, "user_1", "owner")
	for _, changes := range []claimSet{nil, {"org_id": "system"}, {"organizations": []string{"system"}}} {
		s.ask("GET", "/api/v1/organizations/system/api-keys", "Authorization: Bearer "+userToken(t, "user_1", changes)).is(t, 403, bunshipNotMember)
	}
}

// issuer is somebody who publishes keys.
type issuer struct {
	*httptest.Server
	asked atomic.Int64
	down  atomic.Bool
	keys  atomic.Pointer[string]
}

func newIssuer(t testing.TB, keys map[string]any) *issuer {
	t.Helper()
	i := &issuer{}
	i.publish(t, keys)
	i.Server = httptest.NewServer(nethttp.HandlerFunc(func(w nethttp.ResponseWriter, _ *nethttp.Request) {
		i.asked.Add(1)
		if i.down.Load() {
			w.WriteHeader(nethttp.StatusBadGateway)
			return
		}
		_, _ = w.Write([]byte(*i.keys.Load()))
	}))
	t.Cleanup(i.Close)
	return i
}

func (i *issuer) publish(t testing.TB, keys map[string]any) {
	t.Helper()
	store := jwkset.NewMemoryStorage()
	for kid, key := range keys {
		jwk, err := jwkset.NewJWKFromKey(key, jwkset.JWKOptions{Metadata: jwkset.JWKMetadataOptions{KID: kid}, Marshal: jwkset.JWKMarshalOptions{Private: true}})
		if err != nil {
			t.Fatal(err)
		}
		if err := store.KeyWrite(context.Background(), jwk); err != nil {
			t.Fatal(err)
		}
	}
	text, err := store.JSONPrivate(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	all := string(text)
	i.keys.Store(&all)
}

type keyPair interface{ Public() crypto.PublicKey }

func newPair[K keyPair](t testing.TB, key K, err error) K {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestTokensAreVerifiedWithTheIssuersPublicKeys(t *testing.T) {
	t.Parallel()
	rs, err := rsa.GenerateKey(rand.Reader, 2048)
	rs = newPair(t, rs, err)
	es, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	es = newPair(t, es, err)
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	ed = newPair(t, ed, err)
	symmetric := []byte("a symmetric key, which does not belong here")
	i := newIssuer(t, map[string]any{"rs": rs.Public(), "es": es.Public(), "ed": ed.Public(), "oct": symmetric})
	s := start(t, func(o *keyhttp.Options) {
		o.Tokens = keyhttp.TokenOptions{JWKSURL: i.URL, Secret: tokenSecret, Client: i.Client()}
	})
	claims := claimsOf("user_1", claimSet{"org_id": acme})
	der, err := x509.MarshalPKIXPublicKey(rs.Public())
	if err != nil {
		t.Fatal(err)
	}
	public := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})

	for name, test := range map[string]struct {
		token  string
		status int
	}{
		"RS256":                             {sign(t, jwt.SigningMethodRS256, rs, "rs", claims), 200},
		"ES256":                             {sign(t, jwt.SigningMethodES256, es, "es", claims), 200},
		"EdDSA":                             {sign(t, jwt.SigningMethodEdDSA, ed, "ed", claims), 200},
		"no key id":                         {sign(t, jwt.SigningMethodES256, es, "", claims), 200},
		"the shared secret still":           {sign(t, jwt.SigningMethodHS256, tokenSecret, "", claims), 200},
		"the key of another id":             {sign(t, jwt.SigningMethodRS256, rs, "es", claims), 401},
		"an unknown id":                     {sign(t, jwt.SigningMethodRS256, rs, "unknown", claims), 401},
		"an algorithm that is not allowed":  {sign(t, jwt.SigningMethodRS512, rs, "rs", claims), 401},
		"PS256 with an RSA key":             {sign(t, jwt.SigningMethodPS256, rs, "rs", claims), 401},
		"no signature":                      {sign(t, jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, "", claims), 401},
		"the public key as a secret":        {sign(t, jwt.SigningMethodHS256, public, "rs", claims), 401},
		"the public key's DER as a secret":  {sign(t, jwt.SigningMethodHS256, der, "", claims), 401},
		"a secret that was published":       {sign(t, jwt.SigningMethodHS256, symmetric, "oct", claims), 401},
		"a critical extension that we miss": {withHeader(t, rs, "rs", claims, "crit", []string{"b64"}), 401},
	} {
		t.Run(name, func(t *testing.T) {
			if a := s.ask("GET", bunshipPath, "Authorization: Bearer "+test.token); a.status != test.status {
				t.Errorf("got %d %s, want %d", a.status, a.body, test.status)
			}
		})
	}
}

func withHeader(t testing.TB, key any, kid string, claims jwt.MapClaims, name string, value any) string {
	t.Helper()
	token := jwt.NewWithClaims(jwt.SigningMethodRS256, claims)
	token.Header["kid"], token.Header[name] = kid, value
	text, err := token.SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestAnIssuerThatCannotBeAskedIsNotTheTokensFault(t *testing.T) {
	t.Parallel()
	_, old, err := ed25519.GenerateKey(rand.Reader)
	old = newPair(t, old, err)
	_, fresh, err := ed25519.GenerateKey(rand.Reader)
	fresh = newPair(t, fresh, err)
	i := newIssuer(t, map[string]any{"old": old.Public()})
	i.down.Store(true)
	s := start(t, func(o *keyhttp.Options) { o.Tokens = keyhttp.TokenOptions{JWKSURL: i.URL, Client: i.Client()} })
	token := func(kid string, key ed25519.PrivateKey) string {
		return "Authorization: Bearer " + sign(t, jwt.SigningMethodEdDSA, key, kid, claimsOf("user_1", claimSet{"org_id": acme}))
	}
	expect := func(status int, kid string, key ed25519.PrivateKey, asked int64) {
		t.Helper()
		before := i.asked.Load()
		a := s.ask("GET", bunshipPath, token(kid, key))
		if a.status != status || i.asked.Load()-before != asked {
			t.Errorf("got %d %s after asking %d times, want %d and %d", a.status, a.body, i.asked.Load()-before, status, asked)
		}
		if status == 503 {
			a.has(t, "Retry-After", "1")
		}
	}
	expect(503, "old", old, 1)
	expect(503, "old", old, 0) // asked a moment ago
	s.pass(2 * time.Second)
	i.down.Store(false)
	expect(200, "old", old, 1)
	expect(200, "old", old, 0)
	expect(401, "fresh", fresh, 0) // asked a moment ago, and it was not there
	s.pass(time.Minute)
	i.publish(t, map[string]any{"fresh": fresh.Public()})
	expect(200, "fresh", fresh, 1)
	expect(401, "old", old, 0) // withdrawn
	s.pass(time.Minute)
	i.down.Store(true)
	expect(200, "fresh", fresh, 0)
	expect(503, "old", old, 1) // who knows
	expect(200, "fresh", fresh, 0)
	s.pass(time.Hour)
	expect(200, "fresh", fresh, 1) // what was fetched before stays good
}

func TestWithoutConfigurationNoTokenIsBelieved(t *testing.T) {
	t.Parallel()
	s := start(t, func(o *keyhttp.Options) { o.Tokens = keyhttp.TokenOptions{} })
	for _, key := range [][]byte{tokenSecret, {}} {
		token := sign(t, jwt.SigningMethodHS256, key, "", claimsOf("user_1", claimSet{"org_id": acme}))
		s.ask("GET", bunshipPath, "Authorization: Bearer "+token).is(t, 401, bunshipBadToken)
	}
}

func TestAShortSecretIsWarnedAbout(t *testing.T) {
	t.Parallel()
	s := start(t, func(o *keyhttp.Options) { o.Tokens = keyhttp.TokenOptions{Secret: []byte("short-and-secret")} })
	if log := s.log.String(); !strings.Contains(log, "the JWT secret is short") || strings.Contains(log, "short-and-secret") {
		t.Errorf("got %s", log)
	}
}

func TestAMalformedJWKSURLIsAnError(t *testing.T) {
	t.Parallel()
	for _, address := range []string{"://", "file:///etc/passwd", "jwks.json"} {
		_, err := keyhttp.New(keyhttp.Options{Ledger: newLedger(), Verifier: newLedger(), Keys: newLedger(), Tokens: keyhttp.TokenOptions{JWKSURL: address}})
		if domain.CodeOf(err) != domain.CodeInvalid {
			t.Errorf("%s: %v", address, err)
		}
	}
}

func TestAGarbledJWKSIsNotTheTokensFault(t *testing.T) {
	t.Parallel()
	i := newIssuer(t, nil)
	text := "{"
	i.keys.Store(&text)
	s := start(t, func(o *keyhttp.Options) { o.Tokens = keyhttp.TokenOptions{JWKSURL: i.URL, Client: i.Client()} })
	_, key, err := ed25519.GenerateKey(rand.Reader)
	key = newPair(t, key, err)
	a := s.ask("GET", bunshipPath, "Authorization: Bearer "+sign(t, jwt.SigningMethodEdDSA, key, "k", claimsOf("user_1", nil)))
	if a.status != 503 {
		t.Errorf("got %s", fmt.Sprint(a))
	}
}
