package http_test

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/attribute"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"keyledger/domain"
	keyhttp "keyledger/http"
)

func TestRequestIDs(t *testing.T) {
	t.Parallel()
	s := start(t)
	seen := map[string]bool{}
	for range 100 {
		id := s.ask("GET", "/livez").header.Get("X-Request-Id")
		if len(id) != 32 || seen[id] {
			t.Fatalf("got %q", id)
		}
		seen[id] = true
	}
	for given, kept := range map[string]bool{
		"req-1.a_b:C": true, strings.Repeat("x", 128): true,
		strings.Repeat("x", 129): false, "a b": false, "é": false, `a"b`: false, "<a>": false, canary: false,
	} {
		if got := s.ask("GET", "/livez", "X-Request-ID: "+given).header.Get("X-Request-Id"); (got == given) != kept {
			t.Errorf("%q became %q", given, got)
		}
	}
}

func TestTheAccessLogTellsWhatHappenedAndNoSecret(t *testing.T) {
	t.Parallel()
	s := start(t, func(o *keyhttp.Options) { o.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")} })
	key := s.key(acme, "admin")
	token := userToken(t, "user_1", claimSet{"org_id": acme})
	a := s.ask("GET", bullseyePath+"?limit=2&token="+canary, "X-API-Key: "+key, "X-Request-ID: req-7", "X-Forwarded-For: 198.51.100.7",
		"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	if a.status != 200 {
		t.Fatalf("got %d %s", a.status, a.body)
	}
	var line map[string]any
	if err := json.Unmarshal([]byte(s.log.String()), &line); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]any{
		"level": "INFO", "msg": "request", "method": "GET", "route": "/api/v1/organization/:organization/api-keys", "status": 200.0,
		"request_id": "req-7", "trace_id": "0af7651916cd43dd8448eb211c80319c", "source": "198.51.100.7", "verdict": "VALID", "organization": "org_abc123",
	} {
		if line[name] != want {
			t.Errorf("%s is %v, want %v", name, line[name], want)
		}
	}

	made := s.ask("POST", bullseyePath, "X-API-Key: "+key, `{"name":"n"}`)
	plain := decode[struct {
		PlainKey string `json:"plainKey"`
	}](t, made.body).PlainKey
	var answers strings.Builder
	for _, r := range [][]string{
		{"POST", verifyPath, fmt.Sprintf(`{"key":%q}`, plain)},
		{"POST", verifyPath, fmt.Sprintf(`{"key":%q`, plain)},
		{"POST", verifyPath, "Content-Type: " + plain, plain},
		{"GET", "/" + plain},
		{"GET", bullseyePath + "/" + plain, "X-API-Key: " + plain},
		{"DELETE", bullseyePath + "/" + plain, "X-API-Key: " + key},
		{"GET", "/api/v1/organization/" + plain + "/api-keys", "X-API-Key: " + key},
		{"GET", "/api/v1/organizations/" + plain + "/api-keys", "Authorization: Bearer " + token},
		{"GET", bunshipPath + "?cursor=" + plain + "&limit=" + plain, "Authorization: Bearer " + token},
		{"GET", bunshipPath + "?wait=" + plain, "X-Keyledger-Min-Position: " + plain, "Authorization: Bearer " + token},
		{"POST", bullseyePath, "X-API-Key: " + key, "Idempotency-Key: é" + plain, `{"name":"n"}`},
		{"POST", bullseyePath, "X-API-Key: " + key, "X-Request-ID: " + plain, `{"name":"n","scopes":["` + plain + `"]}`},
		{"GET", bullseyePath, "Authorization: " + plain},
		{"GET", bullseyePath, "Authorization: Bearer " + plain, "X-API-Key: " + key},
		{"GET", bullseyePath, "X-API-Key: " + key, "traceparent: " + plain, "X-Forwarded-For: " + plain},
	} {
		a := s.ask(r[0], r[1], r[2:]...)
		answers.WriteString(a.body + fmt.Sprint(a.header))
	}
	s.set(func(g *ledger) { g.panicking = true })
	s.ask("GET", bullseyePath, "X-API-Key: "+key)
	s.set(func(g *ledger) { g.panicking, g.down = false, errPostgresAway })
	s.ask("GET", bullseyePath, "X-API-Key: "+key)
	log := s.log.String()
	for _, secret := range []string{key, plain, token, canary, string(tokenSecret)} {
		if strings.Contains(log, secret) {
			t.Errorf("the log tells a secret: %s", log)
		}
		if strings.Contains(answers.String(), secret) {
			t.Errorf("an answer tells a secret: %s", &answers)
		}
	}
	for _, want := range []string{"the list is broken", `"stack":`, "connection refused", `"level":"ERROR"`, `"level":"WARN"`} {
		if !strings.Contains(log, want) {
			t.Errorf("no %s in the log", want)
		}
	}
}

func TestVerificationsAreNotLoggedAtInfo(t *testing.T) {
	t.Parallel()
	buffer := &logBuffer{}
	s := start(t, func(o *keyhttp.Options) { o.Logger = slog.New(slog.NewTextHandler(buffer, nil)) })
	s.ask("POST", verifyPath, `{"key":"x"}`)
	s.ask("GET", "/livez")
	s.ask("GET", "/nothing")
	if buffer.String() != "" {
		t.Errorf("got %s", buffer)
	}
}

func TestOnlyTrustedProxiesAreBelieved(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		trusted   []string
		forwarded []string
		want      string
	}{
		"nobody is trusted":               {nil, []string{"203.0.113.9"}, "127.0.0.1"},
		"somebody else is":                {[]string{"10.0.0.0/8"}, []string{"203.0.113.9"}, "127.0.0.1"},
		"nothing was forwarded":           {[]string{"127.0.0.1/32"}, nil, "127.0.0.1"},
		"one proxy":                       {[]string{"127.0.0.1/32"}, []string{"203.0.113.9"}, "203.0.113.9"},
		"what stands left is made up":     {[]string{"127.0.0.1/32"}, []string{"1.1.1.1, 203.0.113.9"}, "203.0.113.9"},
		"two proxies":                     {[]string{"127.0.0.1/32", "10.0.0.0/8"}, []string{"1.1.1.1, 203.0.113.9, 10.1.1.1"}, "203.0.113.9"},
		"two lines":                       {[]string{"127.0.0.1/32", "10.0.0.0/8"}, []string{"203.0.113.9", "10.1.1.1"}, "203.0.113.9"},
		"all are proxies":                 {[]string{"127.0.0.1/32", "10.0.0.0/8"}, []string{"10.2.2.2, 10.1.1.1"}, "10.2.2.2"},
		"nonsense ends the walk":          {[]string{"127.0.0.1/32", "10.0.0.0/8"}, []string{"203.0.113.9, unknown, 10.1.1.1"}, "10.1.1.1"},
		"with a port":                     {[]string{"127.0.0.1/32"}, []string{"203.0.113.9:1234"}, "203.0.113.9"},
		"IPv6":                            {[]string{"127.0.0.1/32"}, []string{"2001:db8::1"}, "2001:db8::1"},
		"IPv6 in brackets":                {[]string{"127.0.0.1/32"}, []string{"[2001:db8::1]"}, "2001:db8::1"},
		"IPv6 with a port":                {[]string{"127.0.0.1/32"}, []string{"[2001:db8::1]:443"}, "2001:db8::1"},
		"IPv4 in IPv6 is IPv4":            {[]string{"127.0.0.1/32", "10.0.0.0/8"}, []string{"203.0.113.9, ::ffff:10.1.1.1"}, "203.0.113.9"},
		"a zone is nobody's business":     {[]string{"127.0.0.1/32"}, []string{"fe80::1%eth0"}, "fe80::1"},
		"an empty element ends the walk":  {[]string{"127.0.0.1/32"}, []string{"203.0.113.9,"}, "127.0.0.1"},
		"an element is not an arithmetic": {[]string{"127.0.0.1/32"}, []string{"3405803785"}, "127.0.0.1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := start(t, func(o *keyhttp.Options) {
				for _, prefix := range test.trusted {
					o.TrustedProxies = append(o.TrustedProxies, netip.MustParsePrefix(prefix))
				}
			})
			lines := []string{"X-API-Key: " + s.keyWith(createAnything).Reveal(), `{"name":"n"}`}
			for _, f := range test.forwarded {
				lines = append(lines, "X-Forwarded-For: "+f)
			}
			s.ask("POST", bullseyePath, lines...)
			if got := s.requests[len(s.requests)-1].Metadata.Source.String(); got != test.want {
				t.Errorf("got %s, want %s", got, test.want)
			}
		})
	}
}

func TestSpansStandUnderTheCallers(t *testing.T) {
	t.Parallel()
	spans := tracetest.NewSpanRecorder()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans))
	s := start(t, func(o *keyhttp.Options) { o.TracerProvider = provider })
	key := s.keyWith(createAnything).Reveal()
	s.ask("POST", bullseyePath, "X-API-Key: "+key, "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", `{"name":"n"}`)
	s.ask("POST", verifyPath, fmt.Sprintf(`{"key":%q}`, key))
	s.set(func(g *ledger) { g.down = errPostgresAway })
	s.ask("GET", bullseyePath, "X-API-Key: "+key)
	ended := spans.Ended()
	if len(ended) != 3 {
		t.Fatalf("got %d spans", len(ended))
	}
	create, verify, list := ended[0], ended[1], ended[2]
	if create.Name() != "POST /api/v1/organization/:organization/api-keys" || create.SpanKind() != trace.SpanKindServer ||
		create.SpanContext().TraceID().String() != "0af7651916cd43dd8448eb211c80319c" || create.Parent().SpanID().String() != "b7ad6b7169203331" {
		t.Errorf("got %v under %v", create.Name(), create.Parent())
	}
	if m := s.requests[len(s.requests)-1].Metadata; m.TraceID != "0af7651916cd43dd8448eb211c80319c" {
		t.Errorf("got %+v", m)
	}
	attributes := map[attribute.Key]string{}
	for _, a := range verify.Attributes() {
		attributes[a.Key] = a.Value.String()
	}
	if verify.Parent().IsValid() || attributes["http.response.status_code"] != "200" || attributes["keyledger.verdict"] != domain.OutcomeValid.String() {
		t.Errorf("got %v", attributes)
	}
	if list.Status().Code.String() != "Error" {
		t.Errorf("got %v", list.Status())
	}
}
