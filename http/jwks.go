package http

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	nethttp "net/http"
	"net/url"
	"sync"
	"time"

	"github.com/MicahParks/jwkset"

	"keyledger/domain"
)

const (
	jwksTimeout   = 5 * time.Second
	jwksLifetime  = 15 * time.Minute // after which keys are looked up anew, so that a withdrawn one is forgotten
	jwksPause     = 10 * time.Second // between two fetches for ids that nobody knows
	jwksPauseDown = time.Second      // after one that failed
	mostJWKSBytes = 1 << 20
)

// jwks is a store of an issuer's public keys. It fetches them when they are
// needed, and tells two things apart that the library's own store does not: a key
// that the issuer does not have, and an issuer that cannot be asked.
type jwks struct {
	*jwkset.MemoryJWKSet // what was fetched last
	url                  string
	client               *nethttp.Client
	clock                func() time.Time

	fetching sync.Mutex // held by the one who fetches

	mu      sync.Mutex
	asked   time.Time // when the last fetch ended
	fetched time.Time // when the last one that succeeded did
	failure error     // of the last one
}

func newJWKS(address string, client *nethttp.Client, clock func() time.Time) (*jwks, error) {
	if u, err := url.Parse(address); err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		return nil, domain.Invalid("jwks-url", "must be an http or https URL")
	}
	if client == nil {
		client = &nethttp.Client{Timeout: jwksTimeout}
	}
	return &jwks{MemoryJWKSet: jwkset.NewMemoryStorage(), url: address, client: client, clock: clock}, nil
}

// KeyRead gives the key with an id.
func (j *jwks) KeyRead(ctx context.Context, id string) (jwkset.JWK, error) {
	stale := j.refresh(ctx, false)
	key, err := j.MemoryJWKSet.KeyRead(ctx, id)
	if !errors.Is(err, jwkset.ErrKeyNotFound) {
		return key, err
	}
	if stale == nil {
		stale = j.refresh(ctx, true) // it may be new
	}
	if key, err = j.MemoryJWKSet.KeyRead(ctx, id); err != nil && stale != nil {
		return jwkset.JWK{}, stale
	}
	return key, err
}

// KeyReadAll gives all keys, for a token that names none.
func (j *jwks) KeyReadAll(ctx context.Context) ([]jwkset.JWK, error) {
	stale := j.refresh(ctx, false)
	keys, err := j.MemoryJWKSet.KeyReadAll(ctx)
	if err == nil && len(keys) == 0 && stale != nil {
		return nil, stale
	}
	return keys, err
}

// refresh fetches the keys when they have become old, or somebody looks for one
// that is not among them. Its error says that the issuer could not be asked: what
// was fetched before stays good, and nobody who has it waits for a fetch.
func (j *jwks) refresh(ctx context.Context, missing bool) error {
	needed, some, err := j.state(missing)
	if !needed {
		return err
	}
	if some && !missing {
		if !j.fetching.TryLock() {
			return nil
		}
	} else {
		j.fetching.Lock()
	}
	defer j.fetching.Unlock()
	if needed, _, err = j.state(missing); !needed { // somebody else has just done it
		return err
	}
	keys, err := j.fetch(ctx)
	if err == nil {
		err = j.KeyReplaceAll(ctx, keys)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.asked, j.failure = j.clock(), err
	if err != nil {
		return domain.Unavailable(err)
	}
	j.fetched = j.asked
	return nil
}

// state says whether a fetch is needed, whether there was ever a successful one,
// and, when none is needed, how the last one failed.
func (j *jwks) state(missing bool) (needed, some bool, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	some = !j.fetched.IsZero()
	now := j.clock()
	switch {
	case j.failure != nil:
		return now.Sub(j.asked) >= jwksPauseDown, some, domain.Unavailable(j.failure)
	case !some:
		return true, false, nil
	case missing:
		return now.Sub(j.asked) >= jwksPause, true, nil
	}
	return now.Sub(j.fetched) >= jwksLifetime, true, nil
}

func (j *jwks) fetch(ctx context.Context) ([]jwkset.JWK, error) {
	ctx, cancel := context.WithTimeout(ctx, jwksTimeout)
	defer cancel()
	request, err := nethttp.NewRequestWithContext(ctx, nethttp.MethodGet, j.url, nil)
	if err != nil {
		return nil, fmt.Errorf("fetch the JWKS: %w", err)
	}
	response, err := j.client.Do(request)
	if err != nil {
		return nil, fmt.Errorf("fetch the JWKS: %w", err)
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != nethttp.StatusOK {
		return nil, fmt.Errorf("fetch the JWKS: status %d", response.StatusCode)
	}
	var set jwkset.JWKSMarshal
	if err := json.NewDecoder(io.LimitReader(response.Body, mostJWKSBytes)).Decode(&set); err != nil {
		return nil, fmt.Errorf("read the JWKS: %w", err)
	}
	keys := make([]jwkset.JWK, 0, len(set.Keys))
	for _, marshalled := range set.Keys {
		// Secrets do not belong into a public set, and must never verify anything.
		if marshalled.KTY == jwkset.KtyOct || marshalled.USE == jwkset.UseEnc {
			continue
		}
		key, err := jwkset.NewJWKFromMarshal(marshalled, jwkset.JWKMarshalOptions{}, jwkset.JWKValidateOptions{})
		if err != nil {
			continue // of a kind that we do not know; the others are still good
		}
		keys = append(keys, key)
	}
	return keys, nil
}
