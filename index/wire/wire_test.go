package wire

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"keyledger/domain"
)

var (
	noon    = time.Date(2026, 1, 15, 12, 0, 0, 0, time.UTC)
	created = domain.KeyCreated{
		Key: domain.KeyID{1, 15: 2}, Digest: domain.Digest{3, 31: 4}, Organization: "org_1", Name: "The key",
		Scopes: domain.Scopes{"read", "orders:*"}, RateLimit: 1000, ExpiresAt: noon,
	}
)

func TestChangesComeBackAsTheyWere(t *testing.T) {
	t.Parallel()
	changes := []Change{
		{1, 1, created},
		{2, 1, domain.KeyCreated{Key: domain.KeyID{9}, Organization: "o", Quota: domain.Quota{Limit: domain.MostQuota, Refill: domain.RefillMonth}}},
		{3, 2, domain.KeyRevoked{Key: domain.KeyID{1}}},
		{4, 3, domain.RevocationFenced{Key: domain.KeyID{1}}},
		{5, 0, domain.OrganizationErased{Organization: "org_1"}},
		{1 << 40, 0, nil},
	}
	var stream []byte
	for _, c := range changes {
		stream = AppendChange(stream, c)
	}
	r := NewReader(bytes.NewReader(stream))
	for _, want := range changes {
		kind, payload, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		got, err := ReadChange(kind, payload)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%v (-want +got)\n%s", err, diff)
		}
	}
	if _, _, err := r.Next(); !errors.Is(err, io.EOF) {
		t.Errorf("after the last frame: %v", err)
	}
}

func TestASnapshotComesBackAsItWas(t *testing.T) {
	t.Parallel()
	header := Header{Ledger: domain.ID{7}, Epoch: 3, Position: 99, Keys: 2}
	keys := []Key{
		{Digest: domain.Digest{1}, ID: domain.KeyID{2}, Scopes: 1, Limit: 5, Version: 1, Name: "ü"},
		{Digest: domain.Digest{3}, ID: domain.KeyID{4}, Revoked: true, Disabled: true, Organization: 1, Version: 3, ExpiresAt: noon},
		{Digest: domain.Digest{5}, ID: domain.KeyID{6}, Version: 1, Name: "x", Quota: domain.Quota{Limit: 7, Refill: domain.RefillNone}},
	}
	stream := AppendHeader(nil, header)
	stream = AppendOrganization(stream, "org_1")
	stream = AppendScopes(stream, domain.Scopes{"read", "x:*"})
	stream = AppendFrame(stream, KindKeys, func(b []byte) []byte {
		for i := range keys[:2] {
			b = AppendKey(b, &keys[i])
		}
		return b
	})
	stream = AppendFrame(stream, KindQuotaKeys, func(b []byte) []byte { return AppendKey(b, &keys[2]) })
	stream = AppendCursor(stream, "here")
	stream = AppendEnd(stream, 101)
	r := NewReader(bytes.NewReader(stream))
	next := func(want Kind) []byte {
		t.Helper()
		kind, payload, err := r.Next()
		if err != nil || kind != want {
			t.Fatalf("kind %d, %v, want %d", kind, err, want)
		}
		return payload
	}
	if got, err := ReadHeader(next(KindHeader)); err != nil || got != header {
		t.Errorf("%+v, %v", got, err)
	}
	if got := next(KindOrganization); string(got) != "org_1" {
		t.Errorf("%q", got)
	}
	if got, err := ReadScopes(next(KindScopes)); err != nil || !cmp.Equal(got, domain.Scopes{"read", "x:*"}) {
		t.Errorf("%v, %v", got, err)
	}
	var got []Key
	for _, kind := range []Kind{KindKeys, KindQuotaKeys} {
		if err := ReadKeys(kind, next(kind), func(k *Key) error {
			own := *k
			own.Name = string([]byte(k.Name))
			got = append(got, own)
			return nil
		}); err != nil {
			t.Error(err)
		}
	}
	if !cmp.Equal(got, keys) {
		t.Error(cmp.Diff(keys, got))
	}
	if got := next(KindCursor); string(got) != "here" {
		t.Errorf("%q", got)
	}
	if got, err := ReadPosition(next(KindEnd)); err != nil || got != 101 {
		t.Errorf("%d, %v", got, err)
	}
}

func TestAReportComesBackAsItWas(t *testing.T) {
	t.Parallel()
	report := Report{Flush: 2, Expected: 7, Uses: []domain.Use{
		{Key: domain.KeyID{1}, Outcome: domain.OutcomeValid, Count: 5, First: noon, Last: noon.Add(time.Second), DecidedAt: 9},
		{Key: domain.KeyID{2}, Outcome: domain.OutcomeValidStale, Count: 1, First: noon, Last: noon, DecidedAt: 8},
	}}
	got, err := ReadReport(bytes.NewReader(AppendReport(nil, report)))
	if diff := cmp.Diff(report, got); err != nil || diff != "" {
		t.Errorf("%v (-want +got)\n%s", err, diff)
	}
	for name, uses := range map[string][]domain.Use{
		"none":                   nil,
		"of no key":              {{Outcome: domain.OutcomeNotFound, Count: 1, First: noon, Last: noon}},
		"of an unknown outcome":  {{Outcome: 200, Count: 1, First: noon, Last: noon}},
		"none of a key":          {{Outcome: domain.OutcomeValid, First: noon, Last: noon}},
		"more than can be":       {{Outcome: domain.OutcomeValid, Count: 1 << 60, First: noon, Last: noon}},
		"more than a report has": make([]domain.Use, MostUses+1),
	} {
		for i := range uses {
			if len(uses) > 1 {
				uses[i] = report.Uses[0]
			}
		}
		if _, err := ReadReport(bytes.NewReader(AppendReport(nil, Report{Flush: 1, Uses: uses}))); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The bytes are an interface: verifiers of an older build read them.
func TestTheBytesAreWhatTheyWere(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		got  []byte
		want string
	}{
		"header":  {AppendHeader(nil, Header{Ledger: domain.ID{0xaa, 15: 0xbb}, Epoch: 2, Position: 300, Keys: 1}), "0195808000" + "01" + "aa0000000000000000000000000000bb" + "02" + "ac02" + "01"},
		"revoked": {AppendChange(nil, Change{5, 2, domain.KeyRevoked{Key: domain.KeyID{1, 15: 2}}}), "1192808000" + "05" + "02" + "01000000000000000000000000000002"},
		"asked":   {AppendAsked(nil, 5), "1481808000" + "05"},
		"alive":   {AppendAlive(nil), "1580808000"},
		"created with a quota": {
			AppendChange(nil, Change{5, 1, domain.KeyCreated{Key: domain.KeyID{1, 15: 2}, Digest: domain.Digest{3, 31: 4}, Organization: "o", RateLimit: 9, Quota: domain.Quota{Limit: 300, Refill: domain.RefillDay}}}),
			"81ba808000" + "05" + "0300000000000000000000000000000000000000000000000000000000000004" + "01000000000000000000000000000002" + "016f" + "00" + "09" + "00" + "00" + "ac02" + "01",
		},
		"a key with a quota": {
			AppendKey(nil, &Key{Digest: domain.Digest{3, 31: 4}, ID: domain.KeyID{1, 15: 2}, Revoked: true, Limit: 9, Version: 2, Name: "n", Quota: domain.Quota{Limit: 1, Refill: domain.RefillMonth}}),
			"0300000000000000000000000000000000000000000000000000000000000004" + "01000000000000000000000000000002" + "01" + "00" + "00" + "09" + "02" + "00" + "016e" + "01" + "02",
		},
	} {
		if got := hex.EncodeToString(test.got); got != test.want {
			t.Errorf("%s is\n%s, want\n%s", name, got, test.want)
		}
	}
}

func TestWhatBreaksOffIsNotTakenForAnEnd(t *testing.T) {
	t.Parallel()
	whole := AppendChange(nil, Change{1, 1, created})
	for n := 1; n < len(whole); n++ {
		if _, _, err := NewReader(bytes.NewReader(whole[:n])).Next(); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%d of %d bytes: %v", n, len(whole), err)
		}
	}
	if _, _, err := NewReader(bytes.NewReader([]byte{1, 0xff, 0xff, 0xff, 0x7f})).Next(); !errors.Is(err, ErrMalformed) {
		t.Errorf("a huge frame: %v", err)
	}
}

// A verifier that was built before there were quotas must not say yes to a key whose quota is used up.
func TestWhoKnowsNothingOfQuotasDoesNotPassThemOver(t *testing.T) {
	t.Parallel()
	for _, kind := range []Kind{KindQuotaKeys, KindQuotaCreated} {
		if kind.Ignorable() {
			t.Errorf("a reader passes kind %d over", kind)
		}
	}
	for name, quota := range map[string]domain.Quota{"no limit": {Refill: domain.RefillDay}, "too many": {Limit: domain.MostQuota + 1, Refill: domain.RefillDay}, "another refill": {Limit: 1, Refill: "year"}} {
		payload := appendQuota(AppendKey(nil, &Key{Version: 1}), quota)
		if err := ReadKeys(KindQuotaKeys, payload, func(*Key) error { return nil }); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzReader(f *testing.F) {
	f.Add(AppendChange(nil, Change{1, 1, domain.KeyCreated{Quota: domain.Quota{Limit: 1, Refill: domain.RefillNone}}}))
	f.Add(AppendChange(nil, Change{1, 1, created}))
	f.Add(AppendHeader(nil, Header{Epoch: 1}))
	f.Add(AppendScopes(nil, created.Scopes))
	f.Add(AppendReport(nil, Report{Flush: 1, Uses: []domain.Use{{Count: 1, First: noon, Last: noon}}}))
	f.Fuzz(func(t *testing.T, stream []byte) {
		_, _ = ReadReport(bytes.NewReader(stream))
		r := NewReader(bytes.NewReader(stream))
		for {
			kind, payload, err := r.Next()
			if err != nil {
				return
			}
			_, _ = ReadHeader(payload)
			_, _ = ReadScopes(payload)
			_, _ = ReadPosition(payload)
			_ = ReadKeys(kind, payload, func(k *Key) error { return nil })
			if ch, err := ReadChange(kind, payload); err == nil && ch.Event != nil {
				again, err := ReadChange(kind, AppendChange(nil, ch)[5:])
				if diff := cmp.Diff(ch, again); err != nil || diff != "" {
					t.Errorf("%v\n%s", err, diff)
				}
			}
		}
	})
}
