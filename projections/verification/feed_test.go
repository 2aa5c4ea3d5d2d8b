package verification_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"keyledger/domain"
	"keyledger/index"
	"keyledger/index/wire"
	"keyledger/projections/internal/logtest"
	"keyledger/projections/verification"
)

// feedOf is a feed of a log, whose index has come to its end.
func feedOf(t *testing.T, log *logtest.Log) (*verification.Feed, *index.Index) {
	t.Helper()
	x := index.New(index.Options{})
	logtest.Background(t, "the index", verification.New(x, verification.Options{Pool: log.Pool, Log: log}).Run)
	logtest.Must(t, x.WaitFor(patient(t), log.End(domain.Lifecycle)))
	return verification.NewFeed(x, log), x
}

func TestTheFeedTellsWhatVerdictsDependOnAndNoMore(t *testing.T) {
	t.Parallel()
	log := logtest.New(t)
	key := log.Create("org_a", "a key ü")
	log.AddMember("org_a", "usr_1")
	log.Revoke(key)
	feed, _ := feedOf(t, log)
	ctx, cancel := context.WithCancel(patient(t))
	defer cancel()
	reader, writer := io.Pipe()
	go func() {
		for frames, err := range feed.Changes(ctx, 0) {
			if err != nil {
				_ = writer.CloseWithError(err)
				return
			}
			_, _ = writer.Write(frames)
		}
		_ = writer.Close()
	}()
	defer reader.Close()
	frames := wire.NewReader(reader)
	next := func(want wire.Kind) []byte {
		t.Helper()
		kind, payload, err := frames.Next()
		if err != nil || kind != want {
			t.Fatalf("kind %d, %v, want %d", kind, err, want)
		}
		return payload
	}
	ledger, epoch := feed.History()
	if h, err := wire.ReadHeader(next(wire.KindHeader)); err != nil || h != (wire.Header{Ledger: ledger, Epoch: epoch}) {
		t.Errorf("%+v, %v", h, err)
	}
	created, err := wire.ReadChange(wire.KindCreated, next(wire.KindCreated))
	logtest.Must(t, err)
	if e := created.Event.(domain.KeyCreated); created.Position != 1 || e.Key != key.ID || e.Digest != key.Digest || e.Name != key.Name || e.Organization != "org_a" || e.RateLimit != key.RateLimit {
		t.Errorf("%+v", created)
	}
	if position, err := wire.ReadPosition(next(wire.KindPosition)); err != nil || position != 2 {
		t.Errorf("%d, %v", position, err)
	}
	revoked, err := wire.ReadChange(wire.KindRevoked, next(wire.KindRevoked))
	if err != nil || revoked.Position != 3 || revoked.Version != 2 || revoked.Event != (domain.KeyRevoked{Key: key.ID}) {
		t.Errorf("%+v, %v", revoked, err)
	}
}

func TestASnapshotHasTheKeysAsTheyAre(t *testing.T) {
	t.Parallel()
	log := logtest.New(t)
	first, second := log.Create("org_a", "first"), log.Create("org_b", "second")
	log.Revoke(second)
	feed, x := feedOf(t, log)
	next, stop, err := feed.Snapshot("")
	logtest.Must(t, err)
	defer stop()
	var compressed bytes.Buffer
	for {
		part, err := next(t.Context())
		if errors.Is(err, io.EOF) {
			break
		}
		logtest.Must(t, err)
		compressed.Write(part)
	}
	decoder, err := zstd.NewReader(&compressed)
	logtest.Must(t, err)
	defer decoder.Close()
	keys := map[domain.KeyID]wire.Key{}
	var organizations []string
	frames := wire.NewReader(decoder)
	for ended := false; !ended; {
		kind, payload, err := frames.Next()
		logtest.Must(t, err)
		switch kind {
		case wire.KindOrganization:
			organizations = append(organizations, string(payload))
		case wire.KindKeys:
			logtest.Must(t, wire.ReadKeys(kind, payload, func(k *wire.Key) error { keys[k.ID] = *k; return nil }))
		case wire.KindEnd:
			position, err := wire.ReadPosition(payload)
			if err != nil || position != x.Position() {
				t.Errorf("it ends at %d, %v", position, err)
			}
			ended = true
		default:
		}
	}
	for _, want := range []domain.Key{first, second} {
		if k := keys[want.ID]; k.Digest != want.Digest || organizations[k.Organization] != string(want.Organization) || k.Revoked != (want.ID == second.ID) || k.Limit != want.RateLimit {
			t.Errorf("%+v", k)
		}
	}
	for _, cursor := range []string{"nonsense", "AAAAAAAAAAAAAAAAAAAAAAAAAAA"} {
		if _, _, err := feed.Snapshot(cursor); domain.CodeOf(err) != domain.CodeInvalid {
			t.Errorf("cursor %s: %v", cursor, err)
		}
	}
	if _, _, err := feed.Snapshot("AAAAAAAAAAEAAAAAAAAAAQAAAAE"); domain.CodeOf(err) != domain.CodeNotFound {
		t.Errorf("another index's cursor: %v", err)
	}
}

func TestAVerifiersReportIsRecordedOnce(t *testing.T) {
	t.Parallel()
	log := logtest.New(t)
	first, second := log.Create("org_a", "first"), log.Create("org_b", "second")
	feed, _ := feedOf(t, log)
	now := time.Now().UTC().Truncate(time.Millisecond)
	use := func(key domain.KeyID, count uint64) domain.Use {
		return domain.Use{Key: key, Outcome: domain.OutcomeValid, Count: count, First: now, Last: now, DecidedAt: 2}
	}
	verifier := logtest.NewID(t)
	report := wire.Report{Flush: 1, Uses: []domain.Use{use(first.ID, 3), use(second.ID, 4)}}
	for range 3 { // the answer was lost
		version, err := feed.Record(patient(t), verifier, report)
		if err != nil || version != 2 {
			t.Fatalf("version %d, %v", version, err)
		}
	}
	report = wire.Report{Flush: 2, Expected: 2, Uses: []domain.Use{use(first.ID, 5)}}
	if version, err := feed.Record(patient(t), verifier, report); err != nil || version != 3 {
		t.Fatalf("version %d, %v", version, err)
	}
	if n := recorded(t, log.Store)[domain.OutcomeValid]; n != 12 {
		t.Errorf("%d uses are recorded of 12", n)
	}
	later := use(first.ID, 1)
	later.Last = now.Add(time.Hour)
	for name, uses := range map[string][]domain.Use{
		"of an unknown key": {use(first.ID, 1), use(domain.KeyID{7}, 1)},
		"of the future":     {later},
	} {
		if _, err := feed.Record(patient(t), verifier, wire.Report{Flush: 3, Expected: 3, Uses: uses}); domain.CodeOf(err) != domain.CodeInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := recorded(t, log.Store)[domain.OutcomeValid]; n != 12 {
		t.Errorf("%d uses are recorded after some were refused", n)
	}
}
