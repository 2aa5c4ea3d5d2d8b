package client

import (
	"context"
	"encoding/json"
	"errors"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"keyledger/domain"
)

// Key is a key as the ledger knows it. Nobody knows its secret any more.
type Key struct {
	ID           KeyID
	Organization OrganizationID
	Name         string
	Prefix       string // what is shown of the secret for ever
	Environment  Environment
	Scopes       Scopes
	RateLimit    uint32 // requests a minute; 0: none
	Quota        Quota
	Status       Status
	CreatedAt    time.Time
	CreatedBy    string    // the user; empty when no person is known
	ExpiresAt    time.Time // zero: never
	RevokedAt    time.Time // zero: it is not
	LastUsedAt   time.Time // zero: never, or not known of the past
	Uses         uint64    // accepted ones
}

// Environment is the second word of a key: bsk_live_ or bsk_test_.
type Environment string

// The environments. A key that was made elsewhere may have none.
const (
	Live Environment = "live"
	Test Environment = "test"
)

// Status says in one word whether a key is accepted, and if not, why.
type Status string

// The statuses of a key.
const (
	StatusActive   Status = "active"
	StatusRevoked  Status = "revoked"
	StatusDisabled Status = "disabled"
	StatusExpired  Status = "expired"
)

// NoRateLimit asks for a key without a limit.
const NoRateLimit = -1

// NewKey is what may be said of a key that is to be made.
type NewKey struct {
	Name        string
	Scopes      Scopes      // at least one
	RateLimit   int         // requests a minute; 0: the deployment's default; NoRateLimit: none
	Quota       NewQuota    // zero: none
	ExpiresAt   time.Time   // zero: never
	Environment Environment // empty: Live
}

// NewQuota is how many uses a key has in all of a period.
type NewQuota struct {
	Limit  uint64 // 1 to 1,000,000,000,000
	Refill Refill
}

// CreatedKey is a new key. Keep its secret: it is shown this once.
type CreatedKey struct {
	Key
	Secret   Secret
	Position Token // of its creation
}

// ErrSecretLost says that the key was made, and that its secret is lost: the answer
// that showed it never arrived, or was given to an earlier call under the same
// idempotency key. Revoke the key that is returned with it and make another one.
var ErrSecretLost = errors.New("keyledger: the key exists, and its secret was shown in an answer before this one")

// CreateKey makes a key in an organization. It needs the scope admin. With
// ErrSecretLost, the key is returned as well.
func (c *Client) CreateKey(ctx context.Context, organization OrganizationID, k NewKey) (CreatedKey, error) {
	path, err := keysPath(organization)
	if err != nil {
		return CreatedKey{}, err
	}
	body := map[string]any{"name": k.Name, "scopes": k.Scopes}
	switch {
	case k.RateLimit > 0:
		body["rateLimit"] = k.RateLimit
	case k.RateLimit == NoRateLimit:
		body["rateLimit"] = nil
	case k.RateLimit < 0:
		return CreatedKey{}, invalid("rateLimit", "rateLimit must not be negative")
	}
	if !k.ExpiresAt.IsZero() {
		body["expiresAt"] = k.ExpiresAt.UTC().Format(time.RFC3339Nano)
	}
	if k.Quota != (NewQuota{}) {
		body["quota"] = map[string]any{"limit": k.Quota.Limit, "refill": k.Quota.Refill}
	}
	if k.Environment != "" {
		body["environment"] = k.Environment
	}
	text, err := json.Marshal(body)
	if err != nil {
		return CreatedKey{}, invalid("", "the key cannot be written as JSON")
	}
	var made struct {
		Key    wireKey `json:"key"`
		Secret *string `json:"secret"`
	}
	a, err := c.ask(ctx, call{method: http.MethodPost, path: path, body: text, write: true}, &made)
	if err != nil {
		return CreatedKey{}, err
	}
	created := CreatedKey{Position: a.position}
	if created.Key, err = made.Key.key(); err != nil {
		return CreatedKey{}, err
	}
	if made.Secret == nil {
		return created, ErrSecretLost
	}
	created.Secret, err = domain.ParseSecret(*made.Secret)
	return created, err
}

// Revocation is how a key was ended.
type Revocation struct {
	Key     Key
	Changed bool // false: it was revoked before

	// Fenced says that no verifier accepts the key any more, anywhere. It is false
	// only for one that was not waited for; then it is so from FenceBy on.
	Fenced  bool
	FenceBy time.Time
	// Waited is how long that took; Confirmed, how many verifiers said that they know;
	// Expired, how many leases were waited for instead.
	Waited             time.Duration
	Confirmed, Expired int

	Position Token // of the revocation
}

// RevokeKey ends a key for good, and returns when no verifier accepts it any more.
// It needs the scope admin. The reason may be empty; it is kept sealed. Revoking a
// key again is no error.
func (c *Client) RevokeKey(ctx context.Context, organization OrganizationID, id KeyID, reason string) (Revocation, error) {
	return c.revoke(ctx, organization, id, reason, nil)
}

// RevokeKeyAsync is RevokeKey without the wait for other verifiers: Fenced may be false.
func (c *Client) RevokeKeyAsync(ctx context.Context, organization OrganizationID, id KeyID, reason string) (Revocation, error) {
	return c.revoke(ctx, organization, id, reason, http.Header{"Prefer": {"respond-async"}})
}

func (c *Client) revoke(ctx context.Context, organization OrganizationID, id KeyID, reason string, header http.Header) (Revocation, error) {
	path, err := keysPath(organization)
	if err != nil {
		return Revocation{}, err
	}
	body := map[string]string{}
	if reason != "" {
		body["reason"] = reason
	}
	text, err := json.Marshal(body)
	if err != nil {
		return Revocation{}, invalid("reason", "the reason cannot be written as JSON")
	}
	var ended struct {
		Key       wireKey    `json:"key"`
		Changed   bool       `json:"changed"`
		Fenced    bool       `json:"fenced"`
		FenceBy   *time.Time `json:"fenceBy"`
		WaitedMs  float64    `json:"waitedMs"`
		Confirmed int        `json:"confirmed"`
		Expired   int        `json:"expired"`
	}
	a, err := c.ask(ctx, call{method: http.MethodDelete, path: append(path, id.String()), header: header, body: text, write: true}, &ended)
	if err != nil {
		return Revocation{}, err
	}
	r := Revocation{
		Changed: ended.Changed, Fenced: ended.Fenced, FenceBy: orZero(ended.FenceBy), Waited: time.Duration(ended.WaitedMs * float64(time.Millisecond)),
		Confirmed: ended.Confirmed, Expired: ended.Expired, Position: a.position,
	}
	r.Key, err = ended.Key.key()
	return r, err
}

// GetKey gives one key. It needs the scope read.
func (c *Client) GetKey(ctx context.Context, organization OrganizationID, id KeyID) (Key, error) {
	path, err := keysPath(organization)
	if err != nil {
		return Key{}, err
	}
	var got struct {
		Key wireKey `json:"key"`
	}
	if _, err := c.ask(ctx, call{method: http.MethodGet, path: append(path, id.String()), read: true}, &got); err != nil {
		return Key{}, err
	}
	return got.Key.key()
}

// ListOptions choose a page of a list.
type ListOptions struct {
	Limit  int    // 1 to 1,000; 0: 100
	Cursor string // of the page before; empty: the first page
	// At shows the keys as they stood at a position, a moment (RFC 3339), or so long
	// ago (24h); empty: now.
	At string
}

// KeyPage is a part of a list.
type KeyPage struct {
	Keys []Key  // newest first, revoked ones too
	Next string // the next page's cursor; empty when this is the last one
}

// ListKeys gives a page of an organization's keys. It needs the scope read.
func (c *Client) ListKeys(ctx context.Context, organization OrganizationID, o ListOptions) (KeyPage, error) {
	path, err := keysPath(organization)
	if err != nil {
		return KeyPage{}, err
	}
	query := url.Values{}
	if o.Limit != 0 {
		query.Set("limit", strconv.Itoa(o.Limit))
	}
	set(query, "cursor", o.Cursor)
	set(query, "at", o.At)
	var got struct {
		Keys       []wireKey `json:"keys"`
		NextCursor *string   `json:"nextCursor"`
	}
	if _, err := c.ask(ctx, call{method: http.MethodGet, path: path, query: query, read: true}, &got); err != nil {
		return KeyPage{}, err
	}
	page := KeyPage{Keys: make([]Key, len(got.Keys)), Next: orZero(got.NextCursor)}
	for i := range got.Keys {
		if page.Keys[i], err = got.Keys[i].key(); err != nil {
			return KeyPage{}, err
		}
	}
	return page, nil
}

// Keys walks through all of an organization's keys, page by page, newest first. It
// ends with the first error.
func (c *Client) Keys(ctx context.Context, organization OrganizationID, o ListOptions) iter.Seq2[Key, error] {
	return func(yield func(Key, error) bool) {
		for {
			page, err := c.ListKeys(ctx, organization, o)
			if err != nil {
				yield(Key{}, err)
				return
			}
			for _, k := range page.Keys {
				if !yield(k, nil) {
					return
				}
			}
			if o.Cursor = page.Next; o.Cursor == "" {
				return
			}
		}
	}
}

// wireKey is a key as it is sent.
type wireKey struct {
	ID              string     `json:"id"`
	OrganizationID  string     `json:"organizationId"`
	Name            string     `json:"name"`
	Prefix          string     `json:"prefix"`
	Environment     *string    `json:"environment"`
	Scopes          Scopes     `json:"scopes"`
	RateLimit       *uint32    `json:"rateLimit"`
	Quota           *wireQuota `json:"quota"`
	Status          string     `json:"status"`
	CreatedAt       time.Time  `json:"createdAt"`
	CreatedByUserID *string    `json:"createdByUserId"`
	ExpiresAt       *time.Time `json:"expiresAt"`
	RevokedAt       *time.Time `json:"revokedAt"`
	LastUsedAt      *time.Time `json:"lastUsedAt"`
	Uses            uint64     `json:"uses"`
}

func (w *wireKey) key() (Key, error) {
	id, err := domain.ParseKeyID(w.ID)
	if err != nil {
		return Key{}, &Error{Code: "internal", Message: "the answer's key has no id"}
	}
	return Key{
		ID: id, Organization: OrganizationID(w.OrganizationID), Name: w.Name, Prefix: w.Prefix, Environment: Environment(orZero(w.Environment)), Scopes: w.Scopes,
		RateLimit: orZero(w.RateLimit), Quota: w.Quota.quota(), Status: Status(w.Status), CreatedAt: w.CreatedAt, CreatedBy: orZero(w.CreatedByUserID),
		ExpiresAt: orZero(w.ExpiresAt), RevokedAt: orZero(w.RevokedAt), LastUsedAt: orZero(w.LastUsedAt), Uses: w.Uses,
	}, nil
}

func keysPath(organization OrganizationID) ([]string, error) {
	return organizationPath(organization, "keys")
}

// organizationPath makes sure that an organization's name stays one part of the path.
func organizationPath(organization OrganizationID, rest ...string) ([]string, error) {
	if _, err := domain.ParseOrganizationID(string(organization)); err != nil {
		return nil, invalid("organizationId", "organizationId must be 1 to 64 letters, digits, underscores or hyphens")
	}
	for _, part := range rest {
		if part == "" || part == "." || part == ".." {
			return nil, invalid("id", "this is no id")
		}
	}
	return append([]string{"api", "v1", "organizations", string(organization)}, rest...), nil
}

func invalid(field, message string) error {
	return &Error{Code: "invalid", Field: field, Message: message}
}

func orZero[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

func set(query url.Values, name, value string) {
	if value != "" {
		query.Set(name, value)
	}
}
