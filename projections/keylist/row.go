package keylist

import (
	"crypto/sha256"
	"encoding/binary"
	"time"

	"github.com/jackc/pgx/v5/pgtype"

	"keyledger/domain"
)

// entry is a row: a key, and where its stream and the lane stood when it changed last.
type entry struct {
	domain.Key
	Version  uint64
	Position domain.Position
}

// columns are a row of the table k, as a row scans them.
const columns = `k.key_id, k.organization, k.digest, k.prefix, k.name, k.scopes, k.rate_limit,
       k.created_at, k.created_by, k.expires_at, k.disabled, k.revoked, k.revoked_at, k.version, k.position,
       k.quota_limit, k.quota_refill`

// row is what pgx scans. Every column is null where a status row has no key
// beside it.
type row struct {
	id           pgtype.UUID
	organization pgtype.Text
	digest       []byte
	prefix       pgtype.Text
	name         pgtype.Text
	scopes       []string
	rateLimit    pgtype.Int4
	createdAt    pgtype.Timestamptz
	createdBy    pgtype.Text
	expiresAt    pgtype.Timestamptz
	disabled     pgtype.Bool
	revoked      pgtype.Bool
	revokedAt    pgtype.Timestamptz
	version      pgtype.Int8
	position     pgtype.Int8
	quotaLimit   pgtype.Int8
	quotaRefill  pgtype.Text
}

func (r *row) targets() []any {
	return []any{
		&r.id, &r.organization, &r.digest, &r.prefix, &r.name, &r.scopes, &r.rateLimit,
		&r.createdAt, &r.createdBy, &r.expiresAt, &r.disabled, &r.revoked, &r.revokedAt, &r.version, &r.position,
		&r.quotaLimit, &r.quotaRefill,
	}
}

func (r *row) entry() entry {
	e := entry{
		Key: domain.Key{
			ID: r.id.Bytes, Organization: domain.OrganizationID(r.organization.String), Prefix: r.prefix.String, Name: r.name.String,
			Scopes: make(domain.Scopes, len(r.scopes)), RateLimit: uint32(r.rateLimit.Int32),
			Quota:     domain.Quota{Limit: uint64(r.quotaLimit.Int64), Refill: domain.Refill(r.quotaRefill.String)},
			CreatedAt: r.createdAt.Time.UTC(), CreatedBy: domain.UserID(r.createdBy.String),
			Disabled: r.disabled.Bool, Revoked: r.revoked.Bool,
		},
		Version: uint64(r.version.Int64), Position: domain.Position(r.position.Int64),
	}
	copy(e.Digest[:], r.digest)
	for i, scope := range r.scopes {
		e.Scopes[i] = domain.Scope(scope)
	}
	if r.expiresAt.Valid {
		e.ExpiresAt = r.expiresAt.Time.UTC()
	}
	if r.revokedAt.Valid {
		e.RevokedAt = r.revokedAt.Time.UTC()
	}
	return e
}

// hash is the row's part in the projection's state: everything in it but what is personal.
func (e *entry) hash() [sha256.Size]byte {
	var buffer [512]byte
	b := append(buffer[:0], "keyledger keylist 1"...)
	b = append(b, e.ID[:]...)
	b = append(b, e.Digest[:]...)
	for _, text := range [...]string{string(e.Organization), e.Prefix} {
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(text))), text...)
	}
	b = binary.BigEndian.AppendUint32(b, uint32(len(e.Scopes)))
	for _, scope := range e.Scopes {
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(scope))), scope...)
	}
	b = binary.BigEndian.AppendUint32(b, e.RateLimit)
	for _, t := range [...]time.Time{e.CreatedAt, e.ExpiresAt, e.RevokedAt} {
		b = binary.BigEndian.AppendUint64(b, uint64(t.UnixMicro())) // the zero time is before every other
	}
	b = append(b, flag(e.Disabled), flag(e.Revoked))
	b = binary.BigEndian.AppendUint64(b, e.Version)
	b = binary.BigEndian.AppendUint64(b, uint64(e.Position))
	if e.Quota.Given() { // what has none is hashed as before there were any
		b = append(binary.BigEndian.AppendUint64(b, e.Quota.Limit), e.Quota.Refill...)
	}
	return sha256.Sum256(b)
}

func flag(set bool) byte {
	if set {
		return 1
	}
	return 0
}
