package faults_test

import (
	"encoding/hex"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"keyledger/eventstore"
	"keyledger/internal/postgres"
	"keyledger/internal/servertest"
	"keyledger/internal/testkit"
)

// On one node in exact mode a quota is never overspent, however the server ends and however often,
// and nothing of it is lost: what the log says was accepted is the quota to the use.
func TestAQuotaIsSpentToTheUseWhateverEndsTheServer(t *testing.T) {
	t.Parallel()
	const limit = 1_500
	exact := []string{"--usage", "exact"}
	server := servertest.Start(t, servertest.Options{Args: exact})
	admin := server.Bootstrap(organization, "--rate-limit", "0")
	used := createQuotaKey(t, client{t: t, base: server.URL(), key: admin}, fmt.Sprintf(`{"limit":%d,"refill":"none"}`, limit))
	s := startUses(t, server.URL(), fmt.Sprintf(`{"key":%q}`, used.secret), true)
	for round := range rounds(t) {
		s.await(t, uint64(someCommands()))
		if round%2 == 0 {
			server.Kill()
		} else {
			server.Stop()
		}
		server = servertest.Start(t, servertest.Options{Args: exact, DataDir: server.DataDir()})
		url := server.URL()
		s.base.Store(&url)
	}
	await(t, "the end of the quota", func() bool { return s.exceeded.Load() > 0 })
	server.Kill()
	server = servertest.Start(t, servertest.Options{Args: exact, DataDir: server.DataDir()})
	url := server.URL()
	s.base.Store(&url)
	exceeded := s.exceeded.Load()
	await(t, "the end of the quota after another start", func() bool { return s.exceeded.Load() > exceeded+workers })
	s.stop()

	recorded := acceptedUses(t, client{t: t, base: server.URL(), key: admin}, used.id)
	if accepted := s.answered.Load(); recorded != limit || accepted > limit {
		t.Errorf("of a quota of %d uses %d were accepted, and %d are recorded", limit, accepted, recorded)
	}
	t.Logf("of a quota of %d uses %d were answered, and %d are recorded; %d were refused", limit, s.answered.Load(), recorded, s.exceeded.Load())
}

// A day's quota that was used up at one node is used up at the other one as soon as that has heard.
func TestServersHearWhatIsSpentOfAQuota(t *testing.T) {
	t.Parallel()
	cluster, broker := testkit.Postgres(t, postgres.Options{}), testkit.NATS(t)
	options := servertest.Options{Args: []string{"--usage", "exact"}, Env: []string{
		"DATABASE_URL=" + cluster.URL(), "KEYLEDGER_DATABASE_ADMIN_URL=" + cluster.AdminURL(), "NATS_URL=" + broker.URL,
		"KEYLEDGER_MASTER_KEY=" + hex.EncodeToString(make([]byte, eventstore.MasterKeySize)),
		"KEYLEDGER_JWT_SECRET=a secret of both nodes, for their tokens",
		"KEYLEDGER_LEASE=10s", // each question is asked once: no lease may end because the machine is busy
	}}
	server, second := servertest.Start(t, options), servertest.Start(t, options)
	admin := server.Bootstrap(organization, "--rate-limit", "0")
	first := client{t: t, base: server.URL(), key: admin}
	used := createQuotaKey(t, first, `{"limit":5,"refill":"none"}`)
	for range 3 {
		if _, _, answer := (client{t: t, base: server.URL(), key: used.secret}).verify(); !strings.Contains(answer, `"VALID"`) {
			t.Fatal(answer)
		}
	}
	there := client{t: t, base: second.URL(), key: admin}
	await(t, "what was spent at the first server", func() bool {
		_, _, answer := there.do(http.MethodGet, "/api/v1/organizations/"+organization+"/keys/"+used.id, "")
		return strings.Contains(answer, `"remaining":2`)
	})
	var codes []string
	for range 3 {
		_, _, answer := (client{t: t, base: second.URL(), key: used.secret}).verify()
		var verdict struct{ Code string }
		mustUnmarshal(t, answer, &verdict)
		codes = append(codes, verdict.Code)
	}
	if got := strings.Join(codes, " "); got != "VALID VALID QUOTA_EXCEEDED" {
		t.Errorf("the second server says %s", got)
	}
	await(t, "the end at the first server", func() bool {
		_, _, answer := first.do(http.MethodGet, "/api/v1/organizations/"+organization+"/keys/"+used.id, "")
		return strings.Contains(answer, `"remaining":0`)
	})
}

type quotaKey struct{ id, secret string }

func createQuotaKey(t *testing.T, admin client, quota string) quotaKey {
	t.Helper()
	status, _, answer := admin.do(http.MethodPost, "/api/v1/organizations/"+organization+"/keys", `{"name":"q","scopes":["read"],"rateLimit":null,"quota":`+quota+`}`)
	var made struct {
		Key    struct{ ID string }
		Secret string
	}
	mustUnmarshal(t, answer, &made)
	if status != http.StatusCreated || made.Secret == "" {
		t.Fatalf("%d: %s", status, answer)
	}
	return quotaKey{made.Key.ID, made.Secret}
}

// acceptedUses is what the log says was accepted.
func acceptedUses(t *testing.T, reader client, id string) uint64 {
	t.Helper()
	_, _, answer := reader.do(http.MethodGet, "/api/v1/organizations/"+organization+"/keys/"+id+"/usage?interval=day", "")
	var usage struct {
		Total struct{ Accepted uint64 }
	}
	mustUnmarshal(t, answer, &usage)
	return usage.Total.Accepted
}
