package verification

import (
	"encoding/binary"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"keyledger/domain"
	"keyledger/index"
)

// What a row of the list says comes out of the index as the domain sees it, in
// whatever pieces the rows come.
func TestRowsBecomeTheKeysThatTheyWere(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 22, 12, 0, 0, 123456000, time.UTC)
	rapid.Check(t, func(t *rapid.T) {
		keys := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) domain.Key {
			return domain.Key{
				Organization: domain.OrganizationID(rapid.SampledFrom([]string{"org_1", "org_2", "a-much-longer-organization-name"}).Draw(t, "organization")),
				Name:         rapid.SampledFrom([]string{"n", "the name of a key", "Schlüssel 🔑"}).Draw(t, "name"),
				Scopes:       domain.Scopes(rapid.SliceOfNDistinct(rapid.SampledFrom([]domain.Scope{"read", "write", "agency:*", "*"}), 1, 4, rapid.ID).Draw(t, "scopes")),
				RateLimit:    rapid.SampledFrom([]uint32{0, 1, 100, domain.MostRateLimit}).Draw(t, "limit"),
				Quota:        rapid.SampledFrom([]domain.Quota{{}, {}, {Limit: 1, Refill: domain.RefillNone}, {Limit: domain.MostQuota, Refill: domain.RefillDay}, {Limit: 300, Refill: domain.RefillMonth}}).Draw(t, "quota"),
				ExpiresAt:    rapid.SampledFrom([]time.Time{{}, now, now.Add(time.Microsecond), now.Add(time.Hour)}).Draw(t, "expires"),
				Disabled:     rapid.Bool().Draw(t, "disabled"), Revoked: rapid.Bool().Draw(t, "revoked"),
			}
		}), 0, 20).Draw(t, "keys")
		stream := copyHeader()
		for i := range keys {
			keys[i].ID, keys[i].Digest = domain.KeyID{1, byte(i)}, domain.Digest{2, byte(i)}
			stream = appendRow(stream, keys[i], uint64(i+1), 7)
		}
		stream = append(stream, 0xff, 0xff)
		l := index.Begin(index.History{}, 7, len(keys))
		reader := copyReader{fields: copyFields, row: newRowLoader(l).row}
		for len(stream) > 0 {
			n := rapid.IntRange(1, len(stream)).Draw(t, "piece")
			if _, err := reader.Write(stream[:n]); err != nil {
				t.Fatal(err)
			}
			stream = stream[n:]
		}
		if err := reader.end(); err != nil {
			t.Fatal(err)
		}
		x := index.New(index.Options{})
		x.Replace(l, 7, 0)
		unknown := x.UnknownQuotas()
		x.Known(unknown)
		for i, key := range keys {
			got, err := x.Verify(domain.Verification{Digest: key.Digest, Now: now, Free: true})
			if err != nil {
				t.Fatal(err)
			}
			want := domain.Verdict{
				Outcome: key.Judge(now, nil), Key: key.ID, Organization: key.Organization, Name: key.Name, Scopes: key.Scopes, ExpiresAt: key.ExpiresAt,
				Version: uint64(i + 1), Position: 7, Limit: domain.Limit{PerMinute: key.RateLimit},
			}
			if want.Quota.Quota = key.Quota; key.Quota.Given() {
				want.Quota.Remaining = key.Quota.Limit
				if want.Outcome == domain.OutcomeValid {
					want.Quota.Remaining--
				}
				want.Quota.Reset = key.Quota.Refill.Next(key.Quota.Refill.Start(now))
			}
			got.Limit.Remaining, got.Limit.Next, got.Limit.Reset = 0, time.Time{}, time.Time{}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Fatalf("(-domain +index)\n%s", diff)
			}
		}
	})
}

func copyHeader() []byte { return append(slices.Clone(copySignature[:]), 0, 0, 0, 0, 0, 0, 0, 0) }

func appendRow(b []byte, key domain.Key, version uint64, position domain.Position) []byte {
	field := func(value []byte) {
		b = binary.BigEndian.AppendUint32(b, uint32(len(value)))
		b = append(b, value...)
	}
	flag := func(set bool) {
		if set {
			field([]byte{1})
		} else {
			field([]byte{0})
		}
	}
	b = binary.BigEndian.AppendUint16(b, copyFields)
	field(key.Digest[:])
	field(key.ID[:])
	field([]byte(key.Organization))
	field([]byte(key.Name))
	array := binary.BigEndian.AppendUint32(nil, 1)
	array = binary.BigEndian.AppendUint32(array, 0)
	array = binary.BigEndian.AppendUint32(array, 25)
	array = binary.BigEndian.AppendUint32(array, uint32(len(key.Scopes)))
	array = binary.BigEndian.AppendUint32(array, 1)
	for _, s := range key.Scopes {
		array = binary.BigEndian.AppendUint32(array, uint32(len(s)))
		array = append(array, s...)
	}
	field(array)
	field(binary.BigEndian.AppendUint32(nil, key.RateLimit))
	if key.ExpiresAt.IsZero() {
		b = append(b, 0xff, 0xff, 0xff, 0xff)
	} else {
		field(binary.BigEndian.AppendUint64(nil, uint64(key.ExpiresAt.UnixMicro()-postgresEpoch)))
	}
	flag(key.Disabled)
	flag(key.Revoked)
	field(binary.BigEndian.AppendUint64(nil, version))
	field(binary.BigEndian.AppendUint64(nil, uint64(position)))
	field(binary.BigEndian.AppendUint64(nil, key.Quota.Limit))
	field([]byte(key.Quota.Refill))
	return b
}
