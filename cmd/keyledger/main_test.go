package main_test

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"testing"

	"keyledger/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// answer is what a server has answered.
type answer struct {
	status int
	header http.Header
	body   string
}

// json reads the body into whatever it is expected to be.
func (a answer) json(t *testing.T, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(a.body), into); err != nil {
		t.Fatalf("the answer is no JSON: %v\n%s", err, a.body)
	}
}

// call does what curl does: a method, a URL, headers as "Name: value" pairs, a body.
func call(t *testing.T, method, url, body string, headers ...string) answer {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, url, bytes.NewReader([]byte(body)))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		request.Header.Set(headers[i], headers[i+1])
	}
	if body != "" {
		request.Header.Set("Content-Type", "application/json")
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{response.StatusCode, response.Header, string(text)}
}

// verdict asks a server about a key.
func verdict(t *testing.T, url, key string) string {
	t.Helper()
	var v struct{ Code string }
	call(t, http.MethodPost, url+"/api/v1/keys/verify", `{"key":"`+key+`"}`).json(t, &v)
	return v.Code
}
