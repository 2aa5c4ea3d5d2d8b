package faults_test

import (
	"encoding/hex"
	"strings"
	"testing"

	"keyledger/eventstore"
	"keyledger/index"
	"keyledger/internal/postgres"
	"keyledger/internal/servertest"
	"keyledger/internal/testkit"
)

func TestServersKeepALimitTogether(t *testing.T) {
	t.Parallel()
	cluster, broker := testkit.Postgres(t, postgres.Options{}), testkit.NATS(t)
	env := []string{
		"DATABASE_URL=" + cluster.URL(), "KEYLEDGER_DATABASE_ADMIN_URL=" + cluster.AdminURL(), "NATS_URL=" + broker.URL,
		"KEYLEDGER_MASTER_KEY=" + hex.EncodeToString(make([]byte, eventstore.MasterKeySize)),
		"KEYLEDGER_JWT_SECRET=a secret of both nodes, for their tokens",
	}
	const limit = 200
	nodes := []*servertest.Server{servertest.Start(t, servertest.Options{Env: env}), servertest.Start(t, servertest.Options{Env: env})}
	key := nodes[0].Bootstrap(organization, "--rate-limit", "200")
	for _, node := range nodes {
		node.AwaitLog("nodes that keep limits together")
		await(t, "the key", func() bool {
			_, _, body := client{t: t, base: node.URL(), key: key}.verify()
			return strings.Contains(body, `"VALID"`)
		})
	}
	accepted := len(nodes)
	for i := range 4 * limit {
		if _, _, body := (client{t: t, base: nodes[i%2].URL(), key: key}).verify(); strings.Contains(body, `"VALID"`) {
			accepted++
		}
	}
	if most := limit + len(nodes)*int(index.Chunk(limit)); accepted > most || accepted < limit/2 {
		t.Errorf("%d uses of %d were accepted by two servers", accepted, limit)
	}
	t.Logf("%d uses of %d were accepted by two servers", accepted, limit)
}
