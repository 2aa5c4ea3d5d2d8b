package projections_test

import (
	"crypto/sha256"
	"encoding/binary"
	"math/big"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"keyledger/domain"
	"keyledger/projections"
	"keyledger/projections/internal/logtest"
	"keyledger/projections/keylist"
	"keyledger/projections/usage"
)

func TestASumIsThatOfTheNumbers(t *testing.T) {
	t.Parallel()
	modulus := new(big.Int).Lsh(big.NewInt(1), 256)
	rapid.Check(t, func(t *rapid.T) {
		var sum projections.Sum
		want := new(big.Int)
		for range rapid.IntRange(0, 20).Draw(t, "steps") {
			hash := [32]byte(rapid.SliceOfN(rapid.OneOf(rapid.Byte(), rapid.Just(byte(255))), 32, 32).Draw(t, "hash"))
			var reversed [32]byte
			for i, b := range hash {
				reversed[31-i] = b
			}
			number := new(big.Int).SetBytes(reversed[:])
			if rapid.Bool().Draw(t, "less") {
				sum.Minus(hash)
				want.Sub(want, number)
			} else {
				n := rapid.OneOf(rapid.Uint64(), rapid.Just(uint64(1)), rapid.Just(^uint64(0))).Draw(t, "times")
				sum.Plus(hash, n)
				want.Add(want, number.Mul(number, new(big.Int).SetUint64(n)))
			}
		}
		if got := want.Mod(want, modulus).String(); got != sum.String() {
			t.Fatalf("the sum is %s, not %s", sum, got)
		}
	})
}

// many makes so many keys, revokes every third, and drives the list there.
func many(t *testing.T, log *logtest.Log, keys int) []domain.Key {
	t.Helper()
	all := make([]domain.Key, keys)
	var makers sync.WaitGroup
	for worker := range 32 {
		makers.Go(func() {
			for i := worker; i < keys; i += 32 {
				key, err := log.TryCreate("org_a", "a key", time.Now())
				if err == nil && i%3 == 0 {
					_, err = log.TryRevoke(key)
				}
				if err != nil {
					t.Error(err)
				}
				all[i] = key
			}
		})
	}
	makers.Wait()
	return all
}

func compareOnly(t *testing.T, log *logtest.Log, p projections.Rebuildable) projections.Comparison {
	t.Helper()
	report, err := projections.Rebuild(patient(t), projections.RebuildOptions{AdminURL: log.DB.AdminURL, Log: log, Projection: p, CompareOnly: true})
	logtest.Must(t, err)
	return report.Comparison
}

func TestTwoFoldsAreComparedAtEveryThousand(t *testing.T) {
	t.Parallel()
	log := logtest.New(t)
	keys := many(t, log, 1800) // 2,400 events
	live := follow(log, keylist.New(log.Pool))
	// In steps of another length than a rebuild's, and from several processes.
	for at, i := domain.Position(0), 0; at < log.End(domain.Lifecycle); i++ {
		at = min(at+777, log.End(domain.Lifecycle))
		logtest.Must(t, []*projections.Follower{live, follow(log, keylist.New(log.Pool))}[i%2].CatchUp(patient(t), at))
	}
	c := compareOnly(t, log, keylist.New(log.Pool))
	if !c.Equal() || c.States != 3 { // at 1,000, at 2,000 and at the end
		t.Fatalf("the comparison says %+v", c)
	}
	// An erasure changes rows, and no state: nothing personal is in it.
	_, _, err := log.ChangeOrganization(t.Context(), domain.Request{}, "org_a", domain.EraseOrganization{Now: time.Now().UTC(), Organization: "org_a"})
	logtest.Must(t, err)
	logtest.Must(t, live.CatchUp(patient(t), log.End(domain.Lifecycle)))
	if c := compareOnly(t, log, keylist.New(log.Pool)); !c.Equal() || c.States != 3 {
		t.Fatalf("after an erasure the comparison says %+v", c)
	}

	owner := log.Owner()
	plant := func(sql string, args ...any) {
		t.Helper()
		_, err := owner.Exec(t.Context(), sql, args...)
		logtest.Must(t, err)
	}
	// A row that is wrong shows in the states from its next change on.
	plant(`UPDATE keylist SET rate_limit = 1 WHERE key_id = $1`, [16]byte(keys[1].ID))
	if c := compareOnly(t, log, keylist.New(log.Pool)); c.Equal() || c.Diverged != 0 {
		t.Errorf("a row that nothing has changed since shows in the states: %+v", c)
	}
	_, _, err = log.ChangeKey(t.Context(), domain.Request{}, keys[1].ID, domain.RevokeKey{Now: time.Now().UTC().Truncate(time.Microsecond), Organization: "org_a"})
	logtest.Must(t, err)
	logtest.Must(t, live.CatchUp(patient(t), log.End(domain.Lifecycle)))
	if c := compareOnly(t, log, keylist.New(log.Pool)); c.Diverged != log.End(domain.Lifecycle) {
		t.Errorf("the fold of a wrong row does not show: %+v", c)
	}
	if cured := rebuild(t, log, keylist.New(log.Pool)); cured.Comparison.Equal() || !cured.Swapped {
		t.Errorf("%+v", cured)
	}
	plant(`UPDATE projection_states SET state = state + 1 WHERE name = 'keylist' AND position = 2000`)
	if c := compareOnly(t, log, keylist.New(log.Pool)); c.Diverged != 2000 || c.Equal() {
		t.Errorf("the first position that differs is %+v", c)
	}
	if cured := rebuild(t, log, keylist.New(log.Pool)); !cured.Swapped {
		t.Errorf("%+v", cured)
	}
	if c := compareOnly(t, log, keylist.New(log.Pool)); !c.Equal() || c.States != 3 {
		t.Errorf("after a swap: %+v", c)
	}
}

// The state is what the documentation says: hashed a second time here, from the rows.
func TestTheStateOfUsesIsTheSumOfTheirRows(t *testing.T) {
	t.Parallel()
	log := logtest.New(t)
	populate(t, log)
	var sum projections.Sum
	rows, err := log.Pool.Query(t.Context(), `SELECT key_id, hour, outcome, count FROM usage_hours`)
	logtest.Must(t, err)
	for rows.Next() {
		var id [16]byte
		var hour time.Time
		var outcome int16
		var count int64
		logtest.Must(t, rows.Scan(&id, &hour, &outcome, &count))
		text := append([]byte("keyledger usage 1"), id[:]...)
		text = binary.BigEndian.AppendUint64(text, uint64(hour.Unix()))
		sum.Plus(sha256.Sum256(append(text, byte(outcome))), uint64(count))
	}
	logtest.Must(t, rows.Err())
	var state string
	logtest.Must(t, log.Pool.QueryRow(t.Context(), `SELECT state::text FROM projection_checkpoints WHERE name = 'usage'`).Scan(&state))
	if state != sum.String() || state == "0" {
		t.Errorf("the state is %s, and the rows sum up to %s", state, sum)
	}
	if c := compareOnly(t, log, usage.New(log.Pool)); !c.Equal() || c.States != 1 {
		t.Errorf("%+v", c)
	}
}
