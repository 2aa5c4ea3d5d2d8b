package audit_test

import (
	"context"
	"crypto/rand"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"keyledger/domain"
	"keyledger/eventstore"
	"keyledger/internal/audit"
	"keyledger/internal/testkit"
	"keyledger/publisher"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// ledger has three keys, of which the second is revoked, and both streams.
func ledger(t *testing.T) (audit.Ledger, *pgx.Conn, *nats.Conn) {
	t.Helper()
	db := testkit.Database(t)
	pool, err := eventstore.Connect(t.Context(), db.URL, eventstore.ConnectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	store, err := eventstore.Open(t.Context(), eventstore.Options{Pool: pool, MasterKey: make([]byte, eventstore.MasterKeySize)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- store.Run(ctx) }()

	var ids []domain.KeyID
	for range 3 {
		ids = append(ids, create(t, store, domain.Actor{Kind: domain.ActorConsole}))
	}
	if _, _, err := store.ChangeKey(ctx, domain.Request{}, ids[1], domain.RevokeKey{Now: time.Now(), Organization: "org_a"}); err != nil {
		t.Fatal(err)
	}
	create(t, store, domain.Actor{Kind: domain.ActorKey, Key: ids[0]})

	broker := testkit.NATS(t)
	js, err := jetstream.New(broker.Conn)
	if err != nil {
		t.Fatal(err)
	}
	relay, err := publisher.New(js, store, domain.Lifecycle, publisher.Options{})
	if err != nil {
		t.Fatal(err)
	}
	relayed := make(chan error, 1)
	go func() { relayed <- relay.Run(ctx) }()
	if err := relay.WaitFor(ctx, 5); err != nil {
		t.Fatal(err)
	}
	cancel()
	<-relayed
	<-ended

	conn, err := pgx.Connect(t.Context(), db.AdminURL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
	if _, err := conn.Exec(t.Context(), `ALTER TABLE events_lifecycle DISABLE TRIGGER USER; ALTER TABLE events DISABLE TRIGGER USER`); err != nil {
		t.Fatal(err)
	}
	return audit.Ledger{DatabaseURL: db.AdminURL, NATSURL: broker.URL}, conn, broker.Conn
}

func create(t *testing.T, store *eventstore.Store, actor domain.Actor) domain.KeyID {
	t.Helper()
	id, err := domain.NewID(time.Now(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key := domain.KeyID(id)
	_, _, err = store.ChangeKey(t.Context(), domain.Request{Metadata: domain.Metadata{Actor: actor}}, key, domain.CreateKey{
		Now: time.Now(), Key: key, Organization: "org_a", Digest: domain.Digest{1, id[15]}, Name: "n", Scopes: domain.Scopes{"read"}, Granter: domain.Scopes{"*"},
	})
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestAGoodLedgerHasNoFaults(t *testing.T) {
	t.Parallel()
	l, _, _ := ledger(t)
	report, err := audit.Run(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	if len(report.Faults) > 0 || report.Events[domain.Lifecycle] != 5 || len(report.Keys) != 4 {
		t.Errorf("%+v", report)
	}
}

func TestPlantedFaultsAreFound(t *testing.T) {
	t.Parallel()
	for name, plant := range map[string]string{
		"is missing":                  `DELETE FROM events WHERE position = 3`,
		"is the head":                 `DELETE FROM events WHERE position = 5`,
		"stands where 1 should":       `UPDATE events SET version = 2 WHERE position = 3`,
		"was recorded before":         `UPDATE events SET recorded_at = 'epoch' WHERE position = 3`,
		"written by a newer version":  `UPDATE events SET schema = 9 WHERE position = 3`,
		"in the stream of":            `UPDATE events SET stream = 'key/00000000-0000-7000-8000-000000000000' WHERE position = 1`,
		"after its revocation":        `UPDATE events SET metadata = (SELECT convert_to('{"actor":{"kind":"key","keyId":"' || (convert_from(data, 'UTF8')::jsonb->>'keyId') || '"}}', 'UTF8') FROM events WHERE position = 4) WHERE position = 5`,
		"is not the log's event":      `UPDATE events SET data = convert_to(replace(convert_from(data, 'UTF8'), 'read', 'rule:x'), 'UTF8') WHERE position = 3`,
		"the log's last event is 4":   `DELETE FROM events WHERE position = 5; UPDATE log_head SET position = 4 WHERE lane = 'lifecycle'`,
		"the stream's last message":   "stream",
		"position 2 is not the log's": "swap",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l, conn, nc := ledger(t)
			switch plant {
			case "stream":
				message := nats.NewMsg("keyledger.lifecycle.org_a.x.created")
				message.Header.Set(publisher.HeaderPosition, "6")
				if _, err := nc.RequestMsg(message, time.Minute); err != nil {
					t.Fatal(err)
				}
			case "swap":
				name = "is not the log's event"
				if _, err := conn.Exec(t.Context(), `UPDATE events SET id = gen_random_uuid() WHERE position = 2`); err != nil {
					t.Fatal(err)
				}
			default:
				if _, err := conn.Exec(t.Context(), plant); err != nil {
					t.Fatal(err)
				}
			}
			report, err := audit.Run(t.Context(), l)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range report.Faults {
				if strings.Contains(f.String(), name) {
					return
				}
			}
			t.Errorf("not found: %v", report.Faults)
		})
	}
}
