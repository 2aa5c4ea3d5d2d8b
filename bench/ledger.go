package main

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"keyledger/domain"
	"keyledger/eventstore"
)

// ledger is a database with very many keys. They did not come through the log's
// front door, which would take a minute for each million, but by COPY into events
// and list at once; what stands there is what the log and its fold would have written.
type ledger struct {
	*database
	keys  int
	began time.Time             // when the first key was made
	seals [organizations]sealer // of the organizations' personal data
}

func startLedger(ctx context.Context) (*ledger, error) {
	db, err := startDatabase(ctx)
	if err != nil {
		return nil, err
	}
	l := &ledger{database: db, began: time.Now().UTC().Add(-90 * 24 * time.Hour).Truncate(time.Millisecond)}
	if err := l.makeDataKeys(ctx); err != nil {
		l.stop()
		return nil, err
	}
	return l, nil
}

// createdAt is when the i-th key was made: one each half millisecond.
func (l *ledger) createdAt(i int) time.Time {
	return l.began.Add(time.Duration(i) * 500 * time.Microsecond)
}

// grow adds keys until there are so many.
func (l *ledger) grow(ctx context.Context, keys int) error {
	fmt.Fprintf(os.Stderr, "\rmaking %s keys\033[K", thousands(float64(keys)))
	defer fmt.Fprint(os.Stderr, "\r\033[K")
	copied := make(chan error, 1)
	go func() { copied <- l.copy(ctx, keys, "keylist", listColumns, l.listRow) }()
	// Beyond a million only the list is read, and its index.
	logged := keys <= million
	var err error
	if logged {
		err = l.copy(ctx, keys, "events_lifecycle", eventColumns, l.eventRow)
	}
	if err = errors.Join(err, <-copied); err != nil {
		return err
	}
	conn, err := pgx.Connect(ctx, l.adminURL)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	for _, statement := range []string{
		fmt.Sprintf(`UPDATE log_head SET position = %d, recorded_at = '%s' WHERE lane = 'lifecycle'`, keys, l.createdAt(keys-1).Format(time.RFC3339Nano)),
		`UPDATE projection_checkpoints c SET ledger_id = h.ledger_id, epoch = h.epoch, position = h.position
		   FROM log_head h WHERE h.lane = 'lifecycle' AND c.name = 'keylist'`,
		// What autovacuum would do in the middle of a measurement.
		`VACUUM (ANALYZE) keylist`, `VACUUM (ANALYZE) events_lifecycle`, `CHECKPOINT`,
	} {
		if _, err := conn.Exec(ctx, statement); err != nil {
			return err
		}
	}
	l.keys = keys
	if !logged {
		return nil
	}
	return l.check(ctx)
}

// check reads the last key as the log's readers do.
func (l *ledger) check(ctx context.Context) error {
	pool, err := eventstore.Connect(ctx, l.url, eventstore.ConnectOptions{MaxConns: 2})
	if err != nil {
		return err
	}
	defer pool.Close()
	store, err := eventstore.Open(ctx, eventstore.Options{Pool: pool, MasterKey: masterKey()})
	if err != nil {
		return err
	}
	for r, err := range store.Read(ctx, domain.Lifecycle, domain.Position(l.keys-1)) {
		if err != nil {
			return err
		}
		e, err := store.Decode(ctx, r)
		if err != nil {
			return err
		}
		if created, ok := e.Event.(domain.KeyCreated); !ok || created.Name != nameOf(l.keys-1) {
			return fmt.Errorf("the last key is %+v", e.Event)
		}
		return nil
	}
	return errors.New("the last key is not in the log")
}

func (l *ledger) copy(ctx context.Context, keys int, table string, columns []string, row func(i int) []any) error {
	conn, err := pgx.Connect(ctx, l.adminURL)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	i := l.keys
	_, err = conn.CopyFrom(ctx, pgx.Identifier{table}, columns, pgx.CopyFromFunc(func() ([]any, error) {
		if i == keys {
			return nil, nil
		}
		i++
		return row(i - 1), nil
	}))
	if err != nil {
		return fmt.Errorf("copy into %s: %w", table, err)
	}
	return nil
}

var listColumns = []string{
	"key_id", "organization", "digest", "prefix", "name", "scopes", "rate_limit", "created_at", "created_by",
	"expires_at", "disabled", "revoked", "revoked_at", "version", "position",
}

func (l *ledger) listRow(i int) []any {
	plain := make([]byte, plainSize)
	plainKey(plain, i)
	digest := sha256.Sum256(plain)
	at := l.createdAt(i)
	return []any{
		[16]byte(idOf(at, 1, i)), string(organizationOf(i)), digest[:], string(plain[:13]), nameOf(i),
		[]string{"read", "write"},
		int32(domain.MostRateLimit), at, "",
		nil, false, false, nil, int64(1), int64(i + 1),
	}
}

var eventColumns = []string{
	"lane", "position", "epoch", "id", "stream", "version", "organization", "type", "schema", "recorded_at", "data", "metadata", "sealed",
}

func (l *ledger) eventRow(i int) []any {
	plain := make([]byte, plainSize)
	plainKey(plain, i)
	at := l.createdAt(i)
	key, id := domain.KeyID(idOf(at, 1, i)), idOf(at, 2, i)
	data := fmt.Appendf(nil, `{"keyId":"%s","organizationId":"%s","digest":"%s","prefix":"%s","scopes":["read","write"],"rateLimit":%d,"expiresAt":null,"at":"%s"}`,
		key, organizationOf(i), domain.Digest(sha256.Sum256(plain)).Hex(), plain[:13], domain.MostRateLimit, at.Format("2006-01-02T15:04:05.000000Z"))
	stream := string(eventstore.KeyStream(key))
	return []any{
		string(domain.Lifecycle), int64(i + 1), int32(1), [16]byte(id), stream, int64(1), string(organizationOf(i)), "KeyCreated", int16(1), at, data,
		[]byte(`{"actor":{"kind":"console"}}`), l.seals[i%organizations].seal(id, stream, i),
	}
}

// sealer writes the sealed sections of one organization, as the log's keyring does.
type sealer struct{ cipher.AEAD }

func (s sealer) seal(id domain.ID, stream string, i int) []byte {
	sealed := make([]byte, 17, 96)
	sealed[0], sealed[4] = 1, 1 // format, and number of the data key
	// Never the same twice under one key, since no two events have a number in common.
	binary.BigEndian.PutUint64(sealed[9:17], uint64(i))
	about := append(append([]byte("keyledger sealed 1\x00"), id[:]...), stream...)
	return s.Seal(sealed, sealed[5:17], []byte(`{"name":"`+nameOf(i)+`"}`), about)
}

func newGCM(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// makeDataKeys draws the organizations' data keys and wraps them with the master key.
func (l *ledger) makeDataKeys(ctx context.Context) error {
	master, err := newGCM(masterKey())
	if err != nil {
		return err
	}
	rows := make([][]any, organizations)
	for i := range organizations {
		fresh, nonce := make([]byte, 32), make([]byte, 12)
		_, _ = rand.Read(fresh)
		_, _ = rand.Read(nonce)
		if l.seals[i].AEAD, err = newGCM(fresh); err != nil {
			return err
		}
		organization := string(organizationOf(i))
		about := fmt.Appendf(nil, "keyledger data key 1\x00%s\x001", organization)
		rows[i] = []any{organization, int32(1), master.Seal(nonce, nonce, fresh, about)}
	}
	conn, err := pgx.Connect(ctx, l.adminURL)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	_, err = conn.CopyFrom(ctx, pgx.Identifier{"data_keys"}, []string{"organization", "number", "wrapped"}, pgx.CopyFromRows(rows))
	return err
}

// makeLookups makes the table that services without an index ask: one row a key,
// found by its digest.
func (l *ledger) makeLookups(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, l.adminURL)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	for statement := range strings.SplitSeq(lookupSchema, ";") {
		if _, err := conn.Exec(ctx, statement); err != nil {
			return err
		}
	}
	return nil
}

const lookupSchema = `
	CREATE TABLE lookups WITH (fillfactor = 80) AS
	SELECT key_id, digest, organization, name, scopes, rate_limit, expires_at, revoked, now() AS last_used_at FROM keylist;
	ALTER TABLE lookups ADD PRIMARY KEY (key_id);
	CREATE UNIQUE INDEX ON lookups (digest);
	VACUUM (ANALYZE) lookups;
	CHECKPOINT`
