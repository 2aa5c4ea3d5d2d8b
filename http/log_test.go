package http_test

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"io"
	nethttp "net/http"
	"strings"
	"testing"

	"keyledger/domain"
	keyhttp "keyledger/http"
)

// tiles answers what a transparency log of 300 leaves would, and notes what it
// was asked.
type tiles struct {
	asked struct {
		level  int
		number int64
		width  int
	}
	large bool
}

func (*tiles) Checkpoint(_ context.Context, lane domain.Lane) ([]byte, error) {
	if lane == domain.Usage {
		return nil, domain.Errorf(domain.CodeNotFound, "there is no such checkpoint yet")
	}
	return []byte("keyledger/x/1/lifecycle\n300\nAAAA\n\n— keyledger/x/1/lifecycle AAAA\n"), nil
}

func (l *tiles) Tile(_ context.Context, _ domain.Lane, level int, number int64, width int) ([]byte, error) {
	l.asked.level, l.asked.number, l.asked.width = level, number, width
	return make([]byte, 32*width), nil
}

func (l *tiles) Entries(_ context.Context, _ domain.Lane, _ int64, width int) ([][]byte, error) {
	entries := make([][]byte, width)
	for i := range entries {
		entries[i] = []byte{byte(i)}
	}
	if l.large {
		entries[0] = make([]byte, 1<<16)
	}
	return entries, nil
}

func (*tiles) Inclusion(_ context.Context, _ domain.Lane, position, size domain.Position) ([32]byte, [][32]byte, error) {
	if position > size {
		return [32]byte{}, nil, domain.Invalid("position", "must be from 1 to the size of the tree")
	}
	return sha256.Sum256([]byte("leaf")), [][32]byte{sha256.Sum256([]byte("a")), sha256.Sum256([]byte("b"))}, nil
}

func (*tiles) Consistency(context.Context, domain.Lane, domain.Position, domain.Position) ([][32]byte, error) {
	return nil, nil
}

func (s *site) fetch(path, key string) (int, nethttp.Header, []byte) {
	s.t.Helper()
	request, err := nethttp.NewRequestWithContext(s.t.Context(), nethttp.MethodGet, s.url+path, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	if key != "" {
		request.Header.Set("X-API-Key", key)
	}
	response, err := s.client.Do(request)
	if err != nil {
		s.t.Fatal(err)
	}
	defer response.Body.Close() //nolint:errcheck // it is read to its end
	body, err := io.ReadAll(response.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return response.StatusCode, response.Header, body
}

func TestHashesOfTheLogArePublicAndFoundByTheirPaths(t *testing.T) {
	t.Parallel()
	l := &tiles{}
	s := start(t, func(o *keyhttp.Options) { o.Log = l })
	status, header, body := s.fetch("/api/v1/log/lifecycle/checkpoint", "")
	if status != 200 || !strings.HasPrefix(header.Get("Content-Type"), "text/plain") || !strings.HasPrefix(string(body), "keyledger/x/1/lifecycle\n300\n") {
		t.Errorf("the checkpoint is %d %s %s", status, header.Get("Content-Type"), body)
	}
	for path, want := range map[string][3]int64{
		"0/000":               {0, 0, 256},
		"0/001.p/44":          {0, 1, 44},
		"1/000.p/1":           {1, 0, 1},
		"2/x001/x234/067":     {2, 1234067, 256},
		"0/x001/x234/067.p/9": {0, 1234067, 9},
	} {
		status, header, body := s.fetch("/api/v1/log/lifecycle/tile/"+path, "")
		if got := [3]int64{int64(l.asked.level), l.asked.number, int64(l.asked.width)}; status != 200 || got != want || len(body) != 32*int(want[2]) {
			t.Errorf("%s: %d, tile %v with %d bytes", path, status, got, len(body))
		}
		if !strings.Contains(header.Get("Cache-Control"), "immutable") {
			t.Errorf("%s is not cached for ever", path)
		}
	}
	for _, path := range []string{
		"lifecycle/tile/0/0", "lifecycle/tile/0/1234", "lifecycle/tile/00/000", "lifecycle/tile/8/000", "lifecycle/tile/-1/000", "lifecycle/tile/0/000.p/0",
		"lifecycle/tile/0/000.p/256", "lifecycle/tile/0/000.p/01", "lifecycle/tile/0/x001", "lifecycle/tile/0/001/002", "lifecycle/tile/0/x000/001",
		"lifecycle/tile/0/" + strings.Repeat("x999/", 9) + "999", "other/tile/0/000", "other/checkpoint", "usage/checkpoint",
	} {
		if status, _, body := s.fetch("/api/v1/log/"+path, ""); status != 404 {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
}

func TestEntriesOfTheLogAreForAuditorsOfTheService(t *testing.T) {
	t.Parallel()
	l := &tiles{}
	s := start(t, func(o *keyhttp.Options) { o.Log = l })
	auditor := s.key(domain.SystemOrganization, domain.ScopeSystemAudit)
	for name, try := range map[string]struct {
		key    string
		status int
	}{
		"nobody":                 {"", 401},
		"an unknown key":         {"bsk_live_00000000000000000000000000000000", 401},
		"an organization's key":  {s.key(acme, domain.ScopeAll), 403},
		"a verifier's":           {s.key(domain.SystemOrganization, domain.ScopeSystemVerify), 403},
		"an auditor's":           {auditor, 200},
		"one that has the scope": {s.key(acme, domain.ScopeSystemAudit), 403},
	} {
		if status, _, body := s.fetch("/api/v1/log/lifecycle/tile/entries/000.p/3", try.key); status != try.status {
			t.Errorf("%s: %d %s", name, status, body)
		}
	}
	_, _, body := s.fetch("/api/v1/log/lifecycle/tile/entries/000.p/3", auditor)
	if want := "\x00\x01\x00\x00\x01\x01\x00\x01\x02"; string(body) != want {
		t.Errorf("the bundle is %q", body)
	}
	l.large = true
	if status, _, _ := s.fetch("/api/v1/log/lifecycle/tile/entries/000.p/3", auditor); status != 404 {
		t.Errorf("an entry that does not fit is answered with %d", status)
	}
	status, _, body := s.fetch("/api/v1/log/lifecycle/entries/000.p/3", auditor)
	if status != 200 || binary.BigEndian.Uint32(body) != 1<<16 || len(body) != 3*4+1<<16+2 {
		t.Errorf("the larger encoding gives %d and %d bytes", status, len(body))
	}
}

func TestProofsAreGivenAsJSON(t *testing.T) {
	t.Parallel()
	s := start(t, func(o *keyhttp.Options) { o.Log = &tiles{} })
	status, _, body := s.fetch("/api/v1/log/lifecycle/proof/inclusion?position=2&size=300", "")
	var proof struct {
		Lane     string
		Position uint64
		Size     uint64
		LeafHash []byte
		Proof    [][]byte
	}
	if err := json.Unmarshal(body, &proof); err != nil || status != 200 || proof.Position != 2 || proof.Size != 300 || len(proof.LeafHash) != 32 || len(proof.Proof) != 2 {
		t.Errorf("%d %s (%v)", status, body, err)
	}
	if status, _, body := s.fetch("/api/v1/log/lifecycle/proof/consistency?from=1&to=300", ""); status != 200 || string(body) != `{"lane":"lifecycle","from":1,"to":300,"proof":[]}` {
		t.Errorf("%d %s", status, body)
	}
	for _, query := range []string{"inclusion", "inclusion?position=1", "inclusion?position=0&size=1", "inclusion?position=-1&size=1", "inclusion?position=1&position=2&size=3", "inclusion?position=9&size=3", "consistency?from=x&to=2"} {
		if status, _, body := s.fetch("/api/v1/log/lifecycle/proof/"+query, ""); status != 400 {
			t.Errorf("%s: %d %s", query, status, body)
		}
	}
}

func TestWithoutATransparencyLogThereAreNoRoutesForIt(t *testing.T) {
	t.Parallel()
	s := start(t)
	if status, _, _ := s.fetch("/api/v1/log/lifecycle/checkpoint", ""); status != 404 {
		t.Errorf("it answers %d", status)
	}
}
