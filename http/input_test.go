package http_test

import (
	"fmt"
	"strings"
	"testing"
)

// canary stands in every bad body, and in no answer.
const canary = "bsk_live_cafecafecafecafecafecafecafecafe"

func TestBadBodiesAreRefusedByNameAndNeverRepeated(t *testing.T) {
	t.Parallel()
	s := start(t)
	admin := "X-API-Key: " + s.keyWith(createAnything).Reveal()
	named := func(rest string) string { return `{"name":"n",` + rest + `}` }
	deep := func(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }
	for name, test := range map[string]struct{ body, field string }{
		"truncated":                        {`{"name":"` + canary, "name"},
		"truncated in the middle":          {`{"name":"n","scopes":["read"`, "scopes"},
		"a name and nothing":               {`{"name":`, "name"},
		"a stray comma":                    {`{"name":"n",}`, ""},
		"not an object":                    {`["` + canary + `"]`, "body"},
		"a string":                         {`"` + canary + `"`, "body"},
		"null":                             {`null`, "body"},
		"two objects":                      {`{"name":"n"}{"name":"` + canary + `"}`, ""},
		"text after the object":            {`{"name":"n"} ` + canary, ""},
		"a byte order mark":                {"\ufeff" + `{"name":"n"}`, ""},
		"only spaces":                      {"  \n", ""},
		"a duplicate name":                 {named(`"name":"` + canary + `"`), "name"},
		"a duplicate name in two forms":    {named(`"n\u0061me":"` + canary + `"`), "name"},
		"a duplicate unknown name":         {`{"` + canary + `":1,"` + canary + `":2}`, ""},
		"a duplicate name deep inside":     {named(`"x":{"` + canary + `":1,"` + canary + `":2}`), ""},
		"invalid UTF-8":                    {"{\"name\":\"\xff" + canary + "\"}", "name"},
		"invalid UTF-8 in an unknown name": {"{\"\xff" + canary + "\":1}", ""},
		"half a surrogate pair":            {`{"name":"\ud800` + canary + `"}`, "name"},
		"NUL":                              {`{"name":"` + canary + `\u0000"}`, "name"},
		"a raw NUL":                        {"{\"name\":\"" + canary + "\x00\"}", "name"},
		"a raw line break":                 {"{\"name\":\"" + canary + "\n\"}", "name"},
		"a control character":              {`{"name":"a\u0007` + canary + `"}`, "name"},
		"a text-direction override":        {`{"name":"a\u202e` + canary + `"}`, "name"},
		"a name of only spaces":            {`{"name":"  \u00a0 \t"}`, "name"},
		"an empty name":                    {`{"name":""}`, "name"},
		"a null name":                      {`{"name":null}`, "name"},
		"a name of 101 characters":         {`{"name":"` + strings.Repeat("é", 101) + `"}`, "name"},
		"a number for a name":              {`{"name":12345678901234567890}`, "name"},
		"an object for a name":             {`{"name":{"x":"` + canary + `"}}`, "name"},
		"33 levels":                        {named(`"x":` + deep(32)), ""},
		"10,000 levels":                    {named(`"x":` + deep(10_000)), ""},
		"10,000 levels that never end":     {named(`"x":` + strings.Repeat("[", 10_000)), ""},
		"10,000 levels in a known field":   {`{"name":` + deep(10_000) + `}`, "name"},
		"10,000 objects":                   {strings.Repeat(`{"a":`, 10_000), ""},
		"scopes that are no list":          {named(`"scopes":"` + canary + `"`), "scopes"},
		"scopes that are no strings":       {named(`"scopes":["read",1]`), "scopes"},
		"lists of scopes":                  {named(`"scopes":[["read"]]`), "scopes"},
		"an empty scope":                   {named(`"scopes":[""]`), "scopes"},
		"a scope with a NATS wildcard":     {named(`"scopes":["agency:>"]`), "scopes"},
		"a scope of dots":                  {named(`"scopes":["a.b:c"]`), "scopes"},
		"an unknown scope":                 {named(`"scopes":["` + canary + `"]`), "scopes"},
		"a scope with NUL":                 {named(`"scopes":["a:b\u0000"]`), "scopes"},
		"too many scopes":                  {named(`"scopes":["a:a` + strings.Join(manyScopes(65), `","a:a`) + `"]`), "scopes"},
		"an expiry without a zone":         {named(`"expiresAt":"2030-01-01T00:00:00"`), "expiresAt"},
		"a date":                           {named(`"expiresAt":"2030-01-01"`), "expiresAt"},
		"an expiry in the past":            {named(`"expiresAt":"2020-01-01T00:00:00Z"`), "expiresAt"},
		"the year one, which means never":  {named(`"expiresAt":"0001-01-01T00:00:00Z"`), "expiresAt"},
		"an expiry that is a number":       {named(`"expiresAt":1893456000`), "expiresAt"},
		"an expiry that is no date":        {named(`"expiresAt":"2030-02-30T00:00:00Z"`), "expiresAt"},
		"an expiry of nonsense":            {named(`"expiresAt":"` + canary + `"`), "expiresAt"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, path := range []string{bullseyePath, bunshipPath} {
				a := s.ask("POST", path, admin, test.body)
				if a.status != 400 || test.field != "" && !strings.Contains(a.body, `"field":"`+test.field+`"`) || test.field == "" && strings.Contains(a.body, `"field"`) {
					t.Errorf("%s: got %d %s", path, a.status, a.body)
				}
				if strings.Contains(a.body, canary) || strings.Contains(a.body, "cafe") {
					t.Errorf("%s repeats what was sent: %s", path, a.body)
				}
			}
		})
	}
	if log := s.log.String(); strings.Contains(log, canary) {
		t.Errorf("the log repeats what was sent: %s", log)
	}
}

func manyScopes(n int) []string {
	texts := make([]string, n)
	for i := range texts {
		texts[i] = fmt.Sprint(i)
	}
	return texts
}

func TestBadLimitsAreRefused(t *testing.T) {
	t.Parallel()
	s := start(t)
	admin := "X-API-Key: " + s.keyWith(createAnything).Reveal()
	for _, limit := range []string{"0", "-1", "1.5", "1e3", "1e400", "9223372036854775808", "100000001", `"5"`, "true", "[]", "{}", "-0", "1" + strings.Repeat("0", 5000)} {
		a := s.ask("POST", bunshipPath, admin, `{"name":"n","rateLimit":`+limit+`}`)
		a.is(t, 400, bunshipError("VALIDATION_ERROR", "Validation failed", `"field":"rateLimit","message":"must be an integer from 1 to 100000000"`))
	}
	for _, limit := range []string{"01", "+1", "0x10", "NaN"} {
		if a := s.ask("POST", bunshipPath, admin, `{"name":"n","rateLimit":`+limit+`}`); a.status != 400 || !strings.Contains(a.body, `"field":"rateLimit"`) {
			t.Errorf("%s: %d %s", limit, a.status, a.body)
		}
	}
}

func TestOddButGoodInputIsTaken(t *testing.T) {
	t.Parallel()
	s := start(t)
	admin := "X-API-Key: " + s.keyWith(createAnything).Reveal()
	for body, want := range map[string]string{
		`{"name":"n","x":` + strings.Repeat("[", 31) + strings.Repeat("]", 31) + `}`: `"name":"n"`,
		`{"name":"n","x":1e400,"y":123456789012345678901234567890}`:                  `"name":"n"`,
		`{"name":"  Zoë \"the\" 👩‍💻 \\ <b>&  "}`:                                     `"name":"Zoë \"the\" 👩‍💻 \\ <b>&"`,
		`{"name":"n\u00e9"}`: `"name":"né"`,
		` {"name" : "n" , "scopes" : [ "read" , "read" , "agency:*" ] } `: `"scopes":["read","agency:*"]`,
		`{"name":"n","expiresAt":"2030-01-01T02:00:00+02:00"}`:            `"expiresAt":"2030-01-01T00:00:00Z"`,
		`{"name":"n","expiresAt":"2030-01-01T00:00:00.999Z"}`:             `"expiresAt":"2030-01-01T00:00:00Z"`,
		`{"name":"n","expiresAt":"2030-01-01t00:00z"}`:                    `"expiresAt":"2030-01-01T00:00:00Z"`,
		`{"name":"n","expiresAt":"2030-01-01T02:00:00+0200"}`:             `"expiresAt":"2030-01-01T00:00:00Z"`,
		`{"name":"n","scopes":null,"expiresAt":null}`:                     `"expiresAt":null`,
		`{"NAME":1,"name":"n"}`:                                           `"name":"n"`,
	} {
		for path, status := range map[string]int{bullseyePath: 201, bunshipPath: 200} {
			if a := s.ask("POST", path, admin, "Content-Type: Application/JSON ; charset=latin1", body); a.status != status || !strings.Contains(a.body, want) {
				t.Errorf("%s: got %d %s, want %s", body, a.status, a.body, want)
			}
		}
	}
}

func TestCredentialsAreTakenOrRefusedButNeverGuessed(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.addMember(acme, "user_1", "member")
	key, second := s.key(acme, "admin"), s.key(acme, "admin")
	jwt := userToken(t, "user_1", nil)
	for name, test := range map[string]struct {
		lines  []string
		status int
	}{
		"X-API-Key":                        {[]string{"X-API-Key: " + key}, 200},
		"Bearer with a key":                {[]string{"Authorization: Bearer " + key}, 200},
		"bearer in lower case":             {[]string{"authorization: bearer " + key}, 200},
		"Bearer with a token":              {[]string{"Authorization: Bearer " + jwt}, 200},
		"the same key twice":               {[]string{"X-API-Key: " + key, "Authorization: Bearer " + key}, 200},
		"the same header twice":            {[]string{"X-API-Key: " + key, "X-API-Key: " + key}, 200},
		"a key and an empty Authorization": {[]string{"X-API-Key: " + key, "Authorization: "}, 200},
		"a token and an empty key":         {[]string{"X-API-Key: ", "Authorization: Bearer " + jwt}, 200},
		"two keys":                         {[]string{"X-API-Key: " + key, "Authorization: Bearer " + second}, 400},
		"a key and a token":                {[]string{"X-API-Key: " + key, "Authorization: Bearer " + jwt}, 400},
		"a key and Basic":                  {[]string{"X-API-Key: " + key, "Authorization: Basic dTpw"}, 400},
		"two X-API-Key":                    {[]string{"X-API-Key: " + key, "X-API-Key: " + second}, 400},
		"two Authorization":                {[]string{"Authorization: Bearer " + key, "Authorization: Bearer " + jwt}, 400},
		"a token in X-API-Key":             {[]string{"X-API-Key: " + jwt}, 401},
		"a list of keys":                   {[]string{"X-API-Key: " + key + ", " + second}, 401},
		"quotes":                           {[]string{`X-API-Key: "` + key + `"`}, 401},
		"a key that is too long":           {[]string{"X-API-Key: " + strings.Repeat("k", 300)}, 401},
		"a key that is not ASCII":          {[]string{"X-API-Key: clé"}, 401},
		"the visible prefix":               {[]string{"X-API-Key: " + key[:13]}, 401},
		"a key in upper case":              {[]string{"X-API-Key: " + strings.ToUpper(key)}, 401},
		"Bearer alone":                     {[]string{"Authorization: Bearer"}, 401},
		"a key without Bearer":             {[]string{"Authorization: " + key}, 401},
		"two dots":                         {[]string{"Authorization: Bearer .."}, 401},
		"three dots":                       {[]string{"Authorization: Bearer a.b.c.d"}, 401},
	} {
		t.Run(name, func(t *testing.T) {
			for _, path := range []string{bullseyePath, bunshipPath} {
				a := s.ask("GET", path, test.lines...)
				if a.status != test.status {
					t.Errorf("%s: got %d %s, want %d", path, a.status, a.body, test.status)
				}
			}
		})
	}
}

// Bad organizations, with and without a credential that is good elsewhere.
func TestAnOrganizationIDMustBeAToken(t *testing.T) {
	t.Parallel()
	s := start(t)
	key := "X-API-Key: " + s.key(acme, "admin")
	for _, id := range []string{"a.b", "a%20b", "*", "%3E", "a%00b", "%ff", "a%2Fb", "é"} {
		if a := s.ask("GET", "/api/v1/organization/"+id+"/api-keys", key); a.status != 400 || !strings.Contains(a.body, `"field":"organizationId"`) {
			t.Errorf("%s: %d %s", id, a.status, a.body)
		}
		if a := s.ask("GET", "/api/v1/organizations/"+id+"/api-keys", key); a.status != 400 || !strings.Contains(a.body, `"field":"orgId"`) {
			t.Errorf("%s: %d %s", id, a.status, a.body)
		}
	}
	if a := s.ask("GET", "/api/v1/organization/org%5Fabc123/api-keys", key); a.status != 200 {
		t.Errorf("an escaped underscore is one: %d %s", a.status, a.body)
	}
}
