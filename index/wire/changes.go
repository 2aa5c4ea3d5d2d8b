package wire

import (
	"encoding/binary"
	"fmt"
	"strings"

	"keyledger/domain"
)

// Change is an event of the lifecycle lane as far as verdicts depend on it: KeyCreated
// without its prefix and its actor, KeyRevoked without its reason, RevocationFenced
// without all that it says, OrganizationErased. Event is nil for anything else.
type Change struct {
	Position domain.Position
	Version  uint64
	Event    domain.Event
}

// AppendChange appends it.
func AppendChange(dst []byte, ch Change) []byte {
	short := func(kind Kind, id domain.KeyID) []byte {
		return AppendFrame(dst, kind, func(b []byte) []byte {
			b = binary.AppendUvarint(b, uint64(ch.Position))
			b = binary.AppendUvarint(b, ch.Version)
			return append(b, id[:]...)
		})
	}
	switch e := ch.Event.(type) {
	case domain.KeyCreated:
		kind := KindCreated
		if e.Quota.Given() {
			kind = KindQuotaCreated
		}
		return AppendFrame(dst, kind, func(b []byte) []byte {
			b = binary.AppendUvarint(b, uint64(ch.Position))
			b = append(b, e.Digest[:]...)
			b = append(b, e.Key[:]...)
			b = appendText(b, string(e.Organization))
			b = appendScopes(b, e.Scopes)
			b = binary.AppendUvarint(b, uint64(e.RateLimit))
			b = appendMoment(b, e.ExpiresAt)
			b = appendText(b, e.Name)
			if e.Quota.Given() {
				b = appendQuota(b, e.Quota)
			}
			return b
		})
	case domain.KeyRevoked:
		return short(KindRevoked, e.Key)
	case domain.RevocationFenced:
		return short(KindTouched, e.Key)
	case domain.OrganizationErased:
		return AppendFrame(dst, KindErased, func(b []byte) []byte {
			return appendText(binary.AppendUvarint(b, uint64(ch.Position)), string(e.Organization))
		})
	case domain.MemberAdded, domain.MemberRemoved, domain.KeyUsed, nil:
	}
	return appendPosition(dst, KindPosition, ch.Position)
}

// ReadChange reads one of the kinds that AppendChange writes.
func ReadChange(kind Kind, payload []byte) (ch Change, err error) {
	c := cursor{rest: payload}
	ch.Position = domain.Position(c.uint())
	switch kind {
	case KindCreated, KindQuotaCreated:
		e := domain.KeyCreated{}
		copy(e.Digest[:], c.bytes(len(e.Digest)))
		copy(e.Key[:], c.bytes(len(e.Key)))
		e.Organization = domain.OrganizationID(strings.Clone(c.text()))
		for _, s := range c.scopes() {
			e.Scopes = append(e.Scopes, domain.Scope(strings.Clone(string(s))))
		}
		limit := c.uint()
		e.RateLimit, e.ExpiresAt, e.Name = uint32(limit), c.moment(), strings.Clone(c.text())
		if kind == KindQuotaCreated {
			e.Quota = c.quota()
		}
		if limit >= 1<<32 {
			c.bad = true
		}
		ch.Version, ch.Event = 1, e
	case KindRevoked, KindTouched:
		ch.Version = c.uint()
		var id domain.KeyID
		copy(id[:], c.bytes(len(id)))
		ch.Event = domain.KeyRevoked{Key: id}
		if kind == KindTouched {
			ch.Event = domain.RevocationFenced{Key: id}
		}
	case KindErased:
		ch.Event = domain.OrganizationErased{Organization: domain.OrganizationID(strings.Clone(c.text()))}
	case KindPosition:
	default:
		return ch, fmt.Errorf("%w: kind %d is no change", ErrMalformed, kind)
	}
	return ch, c.end("a change")
}

// AppendAsked asks whoever reads to confirm a position.
func AppendAsked(dst []byte, position domain.Position) []byte {
	return appendPosition(dst, KindAsked, position)
}

// AppendAlive says that nothing has happened.
func AppendAlive(dst []byte) []byte {
	return AppendFrame(dst, KindAlive, func(b []byte) []byte { return b })
}
