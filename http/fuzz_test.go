package http_test

import (
	"encoding/json"
	"errors"
	"io"
	nethttp "net/http"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"

	"keyledger/domain"
	keyhttp "keyledger/http"
)

// What the fast way reads, the slow way reads alike.
func FuzzQuestions(f *testing.F) {
	for _, body := range []string{
		`{"key":"bsk_live_a1b2c3d4e5f6a1b2c3d4e5f6a1b2c3d4","scopes":["read"],"organizationId":"org_abc123"}`,
		` { "scopes" : [ ] , "key" : "" } `, `{"key":"a","key":"b"}`, `{"key":"a",}`, `{"key":"a"}x`, `{}`, `{"key":"\u0061"}`, `{"key":"a"`, `{"scopes":["a:b","a:b"],"key":"k"}`,
		`{"key":"a","durable":true}`, `{"durable" : false ,"key":"a"}`, `{"key":"a","durable":tru}`, `{"key":"a","durable":truefalse}`, `{"key":"a","durable":null}`, `{"key":"a","durable":1}`,
	} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		slow, slowly, err := keyhttp.Decode(body)
		if fast, quickly, ok := keyhttp.Scan(body); ok && (err != nil || quickly != slowly || !reflect.DeepEqual(fast, slow)) {
			t.Errorf("fast %+v, slow %+v, %v", fast, slow, err)
		}
		mustBeAClientsError(t, err)
	})
}

func FuzzCreations(f *testing.F) {
	for _, body := range []string{
		`{"name":"n","scopes":["read"],"rateLimit":5,"expiresAt":"2030-01-01T00:00:00Z"}`, `{"name":null}`, `[]`, `{"a":{"b":[[]]}}`, `{"rateLimit":1e5}`, "\xff",
		strings.Repeat(`{"a":`, 40), `{"name":"a","n\u0061me":"b"}`,
		`{"name":"n","scopes":["read"],"quota":{"limit":1000000000000,"refill":"month","x":[{}]}}`, `{"quota":{"limit":0}}`, `{"quota":{"limit":1,"limit":2}}`, `{"quota":{"lim`,
	} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		seed, ship, own := keyhttp.ReadCreations(body)
		mustBeAClientsError(t, seed)
		mustBeAClientsError(t, ship)
		mustBeAClientsError(t, own)
		if (seed == nil || ship == nil || own == nil) && !json.Valid(body) {
			t.Errorf("took %q", body)
		}
	})
}

func mustBeAClientsError(t *testing.T, err error) {
	t.Helper()
	if err == nil {
		return
	}
	var e *domain.Error
	if !errors.As(err, &e) || e.Code != domain.CodeInvalid && e.Code != domain.CodeMalformed {
		t.Errorf("got %v", err)
		return
	}
	switch e.Field {
	case "", "body", "key", "scopes", "organizationId", "durable", "name", "rateLimit", "quota", "quota.limit", "quota.refill", "expiresAt", "environment":
	default:
		t.Errorf("an error names the field %q", e.Field)
	}
}

func FuzzCursors(f *testing.F) {
	key := []byte("a key for cursors")
	id := domain.KeyID{1, 2, 3}
	f.Add(keyhttp.WriteCursor(key, acme, id), string(acme))
	f.Add(keyhttp.WriteCursor(key, other, id), string(acme))
	f.Add(keyhttp.WriteCursor([]byte("another key"), acme, id), string(acme))
	f.Add("", "")
	f.Fuzz(func(t *testing.T, text, organization string) {
		got, again, err := keyhttp.Cursor(key, domain.OrganizationID(organization), text)
		if err != nil {
			if domain.CodeOf(err) != domain.CodeInvalid || got != (domain.KeyID{}) {
				t.Errorf("got %v, %v", got, err)
			}
			return
		}
		// There is one spelling of a cursor, and nobody else can write it.
		if again != text || organization != string(acme) || got != id {
			t.Errorf("took %q of %q as %v", text, organization, got)
		}
	})
}

// Whatever a client presents as its credential is answered with 200, 400 or 401.
func FuzzCredentials(f *testing.F) {
	s := start(f)
	s.addMember(acme, "user_1", "member")
	key := s.key(acme, "read")
	token := userToken(f, "user_1", nil)
	f.Add(key, "")
	f.Add("", "Bearer "+key)
	f.Add(key, "Bearer "+token)
	f.Add("", "Bearer "+token)
	f.Add("", "bearer "+token[:len(token)-1]+"A")
	f.Add("", "Bearer "+strings.Replace(token, ".", "..", 1))
	f.Add("", "Bearer e30.e30.")
	f.Add("", "Basic e30.e30.e30")
	f.Fuzz(func(t *testing.T, apiKey, authorization string) {
		request, err := nethttp.NewRequestWithContext(t.Context(), nethttp.MethodGet, s.url+bunshipPath, nil)
		if err != nil {
			t.Fatal(err)
		}
		for name, value := range map[string]string{"X-API-Key": apiKey, "Authorization": authorization} {
			if len(value) > 4096 || strings.ContainsFunc(value, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
				t.Skip("not a header")
			}
			request.Header.Set(name, value)
		}
		response, err := s.client.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = response.Body.Close() }()
		body, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		good := strings.TrimSpace(apiKey) == key || strings.Contains(authorization, key) || strings.Contains(authorization, token)
		switch {
		case response.StatusCode == nethttp.StatusOK && good:
		case response.StatusCode == nethttp.StatusTooManyRequests && good:
		case response.StatusCode == nethttp.StatusBadRequest, response.StatusCode == nethttp.StatusUnauthorized:
		default:
			t.Errorf("got %d %s", response.StatusCode, body)
		}
	})
}

func FuzzTexts(f *testing.F) {
	for _, text := range []string{"", "plain", `a "quoted" \ one`, "\x00\x1f\x7f", "é\u2028👩‍💻", "\xff", "</script>"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var got string
		if err := json.Unmarshal(keyhttp.AppendText(text), &got); err != nil {
			t.Fatal(err)
		}
		if utf8.ValidString(text) && got != text {
			t.Errorf("%q became %q", text, got)
		}
	})
}

func FuzzTraceparents(f *testing.F) {
	f.Add("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	f.Add("ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	f.Add("00-00000000000000000000000000000000-b7ad6b7169203331-01")
	f.Fuzz(func(t *testing.T, parent string) {
		id := keyhttp.TraceID(parent)
		if id != "" && (len(id) != 32 || strings.Trim(id, "0123456789abcdef") != "" || strings.Trim(id, "0") == "") {
			t.Errorf("took %q for a trace id", id)
		}
	})
}

func FuzzTokens(f *testing.F) {
	f.Add("a.b.c")
	f.Add("bsk_live_00")
	f.Add("..")
	f.Fuzz(func(t *testing.T, text string) {
		want := strings.Count(text, ".") == 2 && strings.Trim(text, ".-_0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ") == ""
		if want && keyhttp.LooksLikeToken(text) != want || !want && keyhttp.LooksLikeToken(text) && strings.ContainsAny(text, " \"\x00/+=") {
			t.Errorf("%q", text)
		}
	})
}
