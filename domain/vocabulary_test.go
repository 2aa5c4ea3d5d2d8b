package domain_test

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/oklog/ulid/v2"
	"pgregory.net/rapid"

	"keyledger/domain"
)

func errorsAs[T error](err error, target *T) bool { return errors.As(err, target) }

func TestAnIDIsAULIDAndAUUIDOfVersionSevenAtOnce(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		at := time.UnixMilli(rapid.Int64Range(0, 1<<47).Draw(t, "milliseconds"))
		entropy := bytes.NewReader(rapid.SliceOfN(rapid.Byte(), 10, 10).Draw(t, "entropy"))
		id, err := domain.NewID(at, entropy)
		if err != nil {
			t.Fatal(err)
		}
		u, err := uuid.Parse(id.UUID())
		if err != nil || u.Version() != 7 || u.Variant() != uuid.RFC4122 {
			t.Fatalf("%s is a UUID of version %d and variant %v (%v)", id.UUID(), u.Version(), u.Variant(), err)
		}
		l, err := ulid.ParseStrict(id.ULID())
		if err != nil || l.Time() != uint64(at.UnixMilli()) {
			t.Fatalf("%s is a ULID of %d, not of %d (%v)", id.ULID(), l.Time(), at.UnixMilli(), err)
		}
		key := domain.KeyID(id)
		for _, spelling := range []string{key.String(), key.UUID(), id.ULID(), strings.ToUpper(key.UUID()), strings.ToLower(id.ULID())} {
			if back, err := domain.ParseKeyID(spelling); err != nil || back != key {
				t.Fatalf("%s is read as %v (%v)", spelling, back, err)
			}
		}
	})
}

func TestWhatIsNoKeyIDIsRefused(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"", "key_", "key_01JNZ", "550e8400e29b41d4a716446655440000", "550e8400-e29b-41d4-a716-44665544000", "550e8400-e29b-41d4-a716-44665544000g",
		"key_8ZZZZZZZZZZZZZZZZZZZZZZZZZ", "key_01JNZ0000000000000000000I!", "key_key_01JNZ0000000000000000000AA", "550e8400-e29b-41d4-a716-4466554400\x00\x00",
	} {
		if id, err := domain.ParseKeyID(text); err == nil {
			t.Errorf("%q is read as %s", text, id)
		}
	}
}

func TestASecretIsWhatItsClientsWerePromised(t *testing.T) {
	t.Parallel()
	secret, err := domain.NewSecret(domain.DefaultKeyFormat, false, bytes.NewReader(bytes.Repeat([]byte{0xa1, 0xb2}, 8)))
	if err != nil {
		t.Fatal(err)
	}
	if plain := secret.Reveal(); plain != "bsk_live_a1b2a1b2a1b2a1b2a1b2a1b2a1b2a1b2" {
		t.Errorf("the secret is %s", plain)
	}
	if prefix := secret.VisiblePrefix(domain.DefaultKeyFormat); prefix != "bsk_live_a1b2" {
		t.Errorf("its prefix is %s", prefix)
	}
	if _, err := domain.NewSecret(domain.DefaultKeyFormat, true, bytes.NewReader(nil)); err == nil {
		t.Error("a secret was made without randomness")
	}
}

func TestASecretNeverPrintsItself(t *testing.T) {
	t.Parallel()
	secret, err := domain.NewSecret(domain.DefaultKeyFormat, false, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	hidden := secret.Reveal()[13:]
	var out bytes.Buffer
	type holder struct{ Secret domain.Secret }
	for _, format := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		fmt.Fprintf(&out, format, secret)
		fmt.Fprintf(&out, format, &secret)
		fmt.Fprintf(&out, format, holder{secret})
		fmt.Fprintf(&out, format, []domain.Secret{secret})
	}
	for _, handler := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
		slog.New(handler).Info("made", "secret", secret, "in", holder{secret}, "pointer", &secret)
	}
	text, err := json.Marshal(map[string]any{"a": secret, "b": holder{secret}})
	if err != nil {
		t.Fatal(err)
	}
	out.Write(text)
	if strings.Contains(out.String(), hidden) || strings.Contains(out.String(), fmt.Sprintf("%x", hidden)) {
		t.Errorf("the secret stands in %s", out.String())
	}
}

func TestScopesImplyWhatTheySay(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		have domain.Scopes
		want domain.Scope
		is   bool
	}{
		{domain.Scopes{"read"}, "read", true},
		{domain.Scopes{"read"}, "write", false},
		{domain.Scopes{"admin"}, "read", true},
		{domain.Scopes{"admin"}, "write", true},
		{domain.Scopes{"admin"}, "agency:read", false},
		{domain.Scopes{"admin"}, "verify", false},
		{domain.Scopes{"admin"}, "*", false},
		{domain.Scopes{"*"}, "admin", true},
		{domain.Scopes{"*"}, "members:read", true},
		{domain.Scopes{"*"}, "members:*", true},
		{domain.Scopes{"*"}, "system:verify", false},
		{domain.Scopes{"*"}, "system:*", false},
		{domain.Scopes{"system:*"}, "system:verify", true},
		{domain.Scopes{"system:*"}, "verify", true},
		{domain.Scopes{"system:verify"}, "verify", true},
		{domain.Scopes{"system:audit"}, "verify", false},
		{domain.Scopes{"verify"}, "system:verify", false},
		{domain.Scopes{"members:*"}, "members:read", true},
		{domain.Scopes{"members:*"}, "members:*", true},
		{domain.Scopes{"members:*"}, "member:read", false},
		{domain.Scopes{"members:*"}, "memberships:read", false},
		{domain.Scopes{"members:read"}, "members:*", false},
		{nil, "read", false},
	} {
		if got := test.have.Imply(test.want); got != test.is {
			t.Errorf("%v imply %s: %v", test.have, test.want, got)
		}
	}
}

func TestImplicationIsTransitive(t *testing.T) {
	t.Parallel()
	scope := rapid.SampledFrom([]domain.Scope{"read", "write", "admin", "verify", "*", "a:x", "a:y", "a:*", "b:*", "system:verify", "system:*"})
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := scope.Draw(t, "a"), scope.Draw(t, "b"), scope.Draw(t, "c")
		if (domain.Scopes{a}).Imply(b) && (domain.Scopes{b}).Imply(c) && !(domain.Scopes{a}).Imply(c) {
			t.Fatalf("%s implies %s implies %s, and %s does not imply %s", a, b, c, a, c)
		}
	})
}

func TestOnlyWellFormedScopesAreTaken(t *testing.T) {
	t.Parallel()
	good, err := domain.ParseScopes([]string{"write", "read", "write", "*", "members:read", "webhooks:*", "agency:write"})
	if err != nil || len(good) != 6 || good[0] != "write" {
		t.Errorf("%v, %v", good, err)
	}
	for _, bad := range []string{"", " ", "root", "read ", "a:", ":b", "a:b:c", "a.b:c", "a:>", ">", "a*:b", "*:b", "a:b*", "*:*", "a:b\x00", "é:b", strings.Repeat("a", 40) + ":" + strings.Repeat("b", 40)} {
		if _, err := domain.ParseScopes([]string{bad}); domain.CodeOf(err) != domain.CodeInvalid {
			t.Errorf("%q is taken as a scope (%v)", bad, err)
		}
	}
	if _, err := domain.ParseScopes(nil); err == nil {
		t.Error("no scope at all is taken")
	}
}

func TestNamesAreWhatAPersonCanRead(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{"  CI/CD ": "CI/CD", "Schlüssel 🔑": "Schlüssel 🔑", strings.Repeat("é", 100): strings.Repeat("é", 100)} {
		if got, err := domain.ParseName(text); err != nil || got != want {
			t.Errorf("%q is read as %q (%v)", text, got, err)
		}
	}
	for _, bad := range []string{"", "   ", "\t\n", strings.Repeat("a", 101), "a\x00b", "a\nb", "a\u202eb", "a\u2066b", "\u200b", "\u200d", "a\xffb", "a\u2028b", "\ufeff", "a\u0085b"} {
		if got, err := domain.ParseName(bad); domain.CodeOf(err) != domain.CodeInvalid {
			t.Errorf("%q is taken as the name %q (%v)", bad, got, err)
		}
	}
}

func TestOrganizationsAreTokensOfASubject(t *testing.T) {
	t.Parallel()
	for _, good := range []string{"org_abc123", "a", "ORG-1", strings.Repeat("a", 64)} {
		if _, err := domain.ParseOrganizationID(good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	for _, bad := range []string{"", "a.b", "a b", "a*", ">", "a\x00", "é", strings.Repeat("a", 65), "a/b", "a\n"} {
		if _, err := domain.ParseOrganizationID(bad); err == nil {
			t.Errorf("%q is taken as an organization", bad)
		}
	}
}

func TestATokenIsReadAsItWasWritten(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		token := domain.Token{
			Epoch: rapid.Uint32().Draw(t, "epoch"), Lane: rapid.SampledFrom(domain.Lanes()).Draw(t, "lane"),
			Position: domain.Position(rapid.Uint64Range(0, 1<<63-1).Draw(t, "position")),
		}
		if back, err := domain.ParseToken(token.String()); err != nil || back != token {
			t.Fatalf("%s is read as %v (%v)", token, back, err)
		}
	})
	for _, bad := range []string{"", "1", "1:lifecycle", "1:lifecycle:", "1:other:2", "x:usage:1", "1:usage:-1", "1:usage:9223372036854775808", "4294967296:usage:1", "1:usage:1:1"} {
		if _, err := domain.ParseToken(bad); err == nil {
			t.Errorf("%q is taken as a token", bad)
		}
	}
}

func TestACommandIDDependsOnEveryPart(t *testing.T) {
	t.Parallel()
	seen := map[domain.CommandID]string{}
	for _, c := range []struct {
		organization   domain.OrganizationID
		actor          domain.Actor
		operation, key string
	}{
		{"org_a", domain.Actor{Kind: "user", User: "ada"}, "create", "k"},
		{"org_b", domain.Actor{Kind: "user", User: "ada"}, "create", "k"},
		{"org_a", domain.Actor{Kind: "user", User: "bob"}, "create", "k"},
		{"org_a", domain.Actor{Kind: "key", Key: keyID}, "create", "k"},
		{"org_a", domain.Actor{Kind: "user", User: "ada"}, "revoke", "k"},
		{"org_a", domain.Actor{Kind: "user", User: "ada"}, "create", "l"},
		{"org_a", domain.Actor{Kind: "user", User: "adac"}, "reate", "k"},
	} {
		id := domain.CommandIDFor(c.organization, c.actor, c.operation, c.key)
		if other, ok := seen[id]; ok {
			t.Errorf("%+v has the id of %s", c, other)
		}
		seen[id] = fmt.Sprintf("%+v", c)
	}
}

func FuzzParsersNeverPanicAndTakeOnlyWhatTheyWrite(f *testing.F) {
	for _, seed := range []string{"key_01JNZ0000000000000000000AA", "550e8400-e29b-41d4-a716-446655440000", "1:lifecycle:7", "read", "a:*", "bsk_live_a1b2", "VALID"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if id, err := domain.ParseKeyID(text); err == nil {
			if back, err := domain.ParseKeyID(id.String()); err != nil || back != id {
				t.Errorf("%q: %s is not read back", text, id)
			}
		}
		if token, err := domain.ParseToken(text); err == nil {
			if back, err := domain.ParseToken(token.String()); err != nil || back != token {
				t.Errorf("%q: %s is not read back", text, token)
			}
		}
		if name, err := domain.ParseName(text); err == nil {
			if again, err := domain.ParseName(name); err != nil || again != name {
				t.Errorf("%q: the name %q is not stable", text, name)
			}
		}
		_, _ = domain.ParseScopes([]string{text})
		_, _ = domain.ParseSecret(text)
		_, _ = domain.ParseOutcome(text)
		_, _ = domain.ParseUserID(text)
	})
}

func TestAReasonMayBeEmptyAndIsOneLine(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{"": "", "  \t": "", " left the company ": "left the company", strings.Repeat("é", 500): strings.Repeat("é", 500)} {
		if got, err := domain.ParseReason(text); err != nil || got != want {
			t.Errorf("%q: got %q, %v", text, got, err)
		}
	}
	for _, bad := range []string{strings.Repeat("é", 501), "a\nb", "a\u202eb", "a\xff"} {
		if got, err := domain.ParseReason(bad); domain.CodeOf(err) != domain.CodeInvalid {
			t.Errorf("%q: got %q, %v", bad, got, err)
		}
	}
}
