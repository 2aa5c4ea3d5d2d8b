package domain_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"keyledger/domain"
)

var (
	noon   = time.Date(2026, 1, 15, 12, 0, 0, 0, time.UTC)
	keyID  = domain.KeyID{0x01, 0x9b, 0xc0, 0x9a, 0x3e, 0x00, 0x7a, 0xaa, 0x8b, 0xbb, 1, 2, 3, 4, 5, 6}
	digest = domain.Digest{1, 2, 3}
)

func created() domain.KeyCreated {
	return domain.KeyCreated{
		Key: keyID, Organization: "org_a", Digest: digest, Prefix: "bsk_live_a1b2", Name: "CI", Scopes: domain.Scopes{"read"}, RateLimit: 10, At: noon, CreatedBy: "ada",
	}
}

func creation() domain.CreateKey {
	return domain.CreateKey{
		Now: noon, Key: keyID, Organization: "org_a", Digest: digest, Prefix: "bsk_live_a1b2", Name: "CI", Scopes: domain.Scopes{"read"}, RateLimit: 10, CreatedBy: "ada",
		Granter: domain.Scopes{"admin"},
	}
}

func TestKeyDecisions(t *testing.T) {
	t.Parallel()
	revoked := domain.KeyRevoked{Key: keyID, Organization: "org_a", At: noon}
	use := func(outcome domain.Outcome, at time.Time) []domain.Event {
		return []domain.Event{domain.KeyUsed{Organization: "org_a", At: at, Uses: []domain.Use{{Key: keyID, Outcome: outcome, Count: 1, First: at, Last: at}}}}
	}
	expiring := created()
	expiring.ExpiresAt = noon.Add(time.Hour)
	quoted := created()
	quoted.Quota = domain.Quota{Limit: 5, Refill: domain.RefillDay}
	with := func(change func(*domain.CreateKey)) domain.CreateKey {
		c := creation()
		change(&c)
		return c
	}
	for name, test := range map[string]struct {
		given   []domain.Event
		when    domain.KeyCommand
		then    []domain.Event
		refused domain.Code
		field   string
	}{
		"a key is created":              {nil, creation(), []domain.Event{created()}, "", ""},
		"a key is not created twice":    {[]domain.Event{created()}, creation(), nil, domain.CodeUnprocessable, ""},
		"a key needs a scope":           {nil, with(func(c *domain.CreateKey) { c.Scopes = nil }), nil, domain.CodeInvalid, "scopes"},
		"a key expires in the future":   {nil, with(func(c *domain.CreateKey) { c.ExpiresAt = noon }), nil, domain.CodeInvalid, "expiresAt"},
		"a limit has a limit":           {nil, with(func(c *domain.CreateKey) { c.RateLimit = domain.MostRateLimit + 1 }), nil, domain.CodeInvalid, "rateLimit"},
		"a key is created with a quota": {nil, with(func(c *domain.CreateKey) { c.Quota = quoted.Quota }), []domain.Event{quoted}, "", ""},
		"a quota has a limit": {nil, with(func(c *domain.CreateKey) {
			c.Quota = domain.Quota{Limit: domain.MostQuota + 1, Refill: domain.RefillDay}
		}), nil, domain.CodeInvalid, "quota.limit"},
		"a refill alone is no quota":              {nil, with(func(c *domain.CreateKey) { c.Quota.Refill = domain.RefillDay }), nil, domain.CodeInvalid, "quota.limit"},
		"a quota is refilled by what there is":    {nil, with(func(c *domain.CreateKey) { c.Quota = domain.Quota{Limit: 1, Refill: "week"} }), nil, domain.CodeInvalid, "quota.refill"},
		"nobody grants what they lack":            {nil, with(func(c *domain.CreateKey) { c.Scopes = domain.Scopes{"agency:read"} }), nil, domain.CodeForbidden, "scopes"},
		"admin does not grant everything":         {nil, with(func(c *domain.CreateKey) { c.Scopes = domain.Scopes{"*"} }), nil, domain.CodeForbidden, "scopes"},
		"a key is revoked":                        {[]domain.Event{created()}, domain.RevokeKey{Now: noon, Organization: "org_a"}, []domain.Event{revoked}, "", ""},
		"a revoked key is so already":             {[]domain.Event{created(), revoked}, domain.RevokeKey{Now: noon, Organization: "org_a"}, nil, "", ""},
		"an unknown key is not revoked":           {nil, domain.RevokeKey{Now: noon, Organization: "org_a"}, nil, domain.CodeNotFound, ""},
		"another organization's key is not found": {[]domain.Event{created()}, domain.RevokeKey{Now: noon, Organization: "org_b"}, nil, domain.CodeNotFound, ""},
		"a key is used":                           {[]domain.Event{created()}, domain.UseKey{Now: noon, Required: domain.Scopes{"read"}}, use(domain.OutcomeValid, noon), "", ""},
		"a revoked key is refused":                {[]domain.Event{created(), revoked}, domain.UseKey{Now: noon}, use(domain.OutcomeRevoked, noon), "", ""},
		"a key is good until it expires":          {[]domain.Event{expiring}, domain.UseKey{Now: noon.Add(time.Hour - 1)}, use(domain.OutcomeValid, noon.Add(time.Hour-1)), "", ""},
		"at its expiry a key is expired":          {[]domain.Event{expiring}, domain.UseKey{Now: noon.Add(time.Hour)}, use(domain.OutcomeExpired, noon.Add(time.Hour)), "", ""},
		"revoked hides expired":                   {[]domain.Event{expiring, revoked}, domain.UseKey{Now: noon.Add(time.Hour)}, use(domain.OutcomeRevoked, noon.Add(time.Hour)), "", ""},
		"expired hides a missing scope":           {[]domain.Event{expiring}, domain.UseKey{Now: noon.Add(time.Hour), Required: domain.Scopes{"write"}}, use(domain.OutcomeExpired, noon.Add(time.Hour)), "", ""},
		"a missing scope hides the limit":         {[]domain.Event{created()}, domain.UseKey{Now: noon, Required: domain.Scopes{"write"}, OverLimit: true}, use(domain.OutcomeInsufficientScope, noon), "", ""},
		"a key over its limit is refused":         {[]domain.Event{created()}, domain.UseKey{Now: noon, OverLimit: true}, use(domain.OutcomeRateLimited, noon), "", ""},
		"a key over its quota is refused":         {[]domain.Event{quoted}, domain.UseKey{Now: noon, OverQuota: true}, use(domain.OutcomeQuotaExceeded, noon), "", ""},
		"a quota hides the limit":                 {[]domain.Event{quoted}, domain.UseKey{Now: noon, OverQuota: true, OverLimit: true}, use(domain.OutcomeQuotaExceeded, noon), "", ""},
		"a missing scope hides the quota":         {[]domain.Event{quoted}, domain.UseKey{Now: noon, OverQuota: true, Required: domain.Scopes{"write"}}, use(domain.OutcomeInsufficientScope, noon), "", ""},
		"an unknown key is not used":              {nil, domain.UseKey{Now: noon}, nil, domain.CodeNotFound, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var key domain.Key
			for _, e := range test.given {
				var err error
				if key, err = domain.EvolveKey(key, e); err != nil {
					t.Fatal(err)
				}
			}
			events, err := domain.DecideKey(key, test.when)
			if test.refused != "" {
				if domain.CodeOf(err) != test.refused {
					t.Fatalf("refused with %v, not with %s", err, test.refused)
				}
				var e *domain.Error
				if errorsAs(err, &e) && e.Field != test.field {
					t.Errorf("the field at fault is %q, not %q", e.Field, test.field)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.then, events); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestEvolveRefusesWhatCannotFollow(t *testing.T) {
	t.Parallel()
	key, err := domain.EvolveKey(domain.Key{}, created())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := domain.EvolveKey(key, created()); err == nil {
		t.Error("a key was created twice")
	}
	if _, err := domain.EvolveKey(domain.Key{}, domain.KeyRevoked{}); err == nil {
		t.Error("a key was revoked before it was created")
	}
	for _, e := range []domain.Event{domain.KeyUsed{}, domain.MemberAdded{}, domain.MemberRemoved{}, domain.OrganizationErased{}, nil} {
		if _, err := domain.EvolveKey(key, e); err == nil {
			t.Errorf("%T became part of a key", e)
		}
	}
	for _, e := range []domain.Event{domain.KeyUsed{}, domain.KeyCreated{}, domain.KeyRevoked{}, nil} {
		if _, err := domain.EvolveOrganization(domain.Organization{}, e); err == nil {
			t.Errorf("%T became part of an organization", e)
		}
	}
}

func TestMembersComeAndGo(t *testing.T) {
	t.Parallel()
	var o domain.Organization
	change := func(c domain.OrganizationCommand, wantEvents int) {
		t.Helper()
		events, err := domain.DecideOrganization(o, c)
		if err != nil || len(events) != wantEvents {
			t.Fatalf("%d events, not %d (%v)", len(events), wantEvents, err)
		}
		before := o
		for _, e := range events {
			if o, err = domain.EvolveOrganization(o, e); err != nil {
				t.Fatal(err)
			}
		}
		if len(events) > 0 && before.Members != nil && len(before.Members) == len(o.Members) && cmp.Equal(before, o) {
			t.Error("the state before was changed as well")
		}
	}
	change(domain.AddMember{Now: noon, Organization: "org_a", User: "ada", Role: "member"}, 1)
	change(domain.AddMember{Now: noon, Organization: "org_a", User: "ada", Role: "member"}, 0)
	change(domain.AddMember{Now: noon.Add(time.Hour), Organization: "org_a", User: "ada", Role: "owner"}, 1)
	if diff := cmp.Diff(map[domain.UserID]domain.Member{"ada": {Role: "owner", Since: noon}}, o.Members); diff != "" {
		t.Error(diff)
	}
	change(domain.RemoveMember{Now: noon, Organization: "org_a", User: "bob"}, 0)
	change(domain.RemoveMember{Now: noon, Organization: "org_a", User: "ada"}, 1)
	if len(o.Members) != 0 {
		t.Errorf("%v is left", o.Members)
	}
}

// Whatever is decided can be folded, and a revoked key is refused for ever.
func TestEveryDecisionCanBeFolded(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var key domain.Key
		revoked := false
		for range rapid.IntRange(1, 12).Draw(t, "commands") {
			now := noon.Add(time.Duration(rapid.IntRange(0, 100).Draw(t, "seconds")) * time.Second)
			var command domain.KeyCommand
			switch rapid.IntRange(0, 2).Draw(t, "command") {
			case 0:
				c := creation()
				c.Now = now
				if rapid.Bool().Draw(t, "expires") {
					c.ExpiresAt = now.Add(time.Duration(rapid.IntRange(1, 60).Draw(t, "lifetime")) * time.Second)
				}
				command = c
			case 1:
				command = domain.RevokeKey{Now: now, Organization: "org_a"}
			default:
				command = domain.UseKey{Now: now, Required: domain.Scopes{"read"}}
			}
			events, err := domain.DecideKey(key, command)
			if err != nil {
				continue
			}
			for _, e := range events {
				if used, ok := e.(domain.KeyUsed); ok {
					if revoked && used.Uses[0].Outcome != domain.OutcomeRevoked {
						t.Fatalf("a revoked key is %v", used.Uses[0].Outcome)
					}
					continue
				}
				if key, err = domain.EvolveKey(key, e); err != nil {
					t.Fatal(err)
				}
			}
			revoked = revoked || key.Revoked
		}
	})
}

// Periods follow on one another without a gap, begin at full hours, and hold the moments in them.
func TestPeriodsOfAQuotaMeet(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		at := time.UnixMicro(rapid.Int64Range(0, 4e15).Draw(t, "at")).In(time.FixedZone("somewhere", rapid.IntRange(-12, 14).Draw(t, "zone")*3600))
		for _, refill := range []domain.Refill{domain.RefillDay, domain.RefillMonth} {
			start := refill.Start(at)
			next := refill.Next(start)
			if start.After(at) || !next.After(at) || !refill.Start(start).Equal(start) || !refill.Start(next).Equal(next) || !refill.Start(next.Add(-1)).Equal(start) {
				t.Fatalf("%v is in the %s from %v to %v", at, refill, start, next)
			}
			if start.Location() != time.UTC || !start.Equal(start.Truncate(time.Hour)) || start.Hour() != 0 || refill == domain.RefillMonth && start.Day() != 1 {
				t.Fatalf("a %s begins at %v", refill, start)
			}
		}
		if never := domain.RefillNone; !never.Start(at).IsZero() || !never.Next(never.Start(at)).IsZero() {
			t.Fatal("what is never refilled has a period")
		}
	})
}
