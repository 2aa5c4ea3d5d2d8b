package projections

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"math/big"
	"math/bits"
	"strconv"

	"keyledger/domain"
	"keyledger/eventstore"
)

// A projection's state is a number: the sum, modulo 2^256, of the SHA-256 hashes of its
// rows. It does not depend on the order of the rows, and a fold brings it up to date with the rows
// that it changes: the old hash is taken away and the new one added. So "replayed equals
// live" is a comparison of numbers, and since the number is kept at every thousandth
// position, the comparison says when the two parted.
//
// What is personal is no part of it: a number that stays for ever must not be a
// digest of what may be erased. The comparison of rows covers that.
//
// It finds what went wrong. It does not keep out somebody who writes to the
// database, who could write another number as well, nor one who searches for rows of the
// same sum, which is easier for sums than for hashes. Against those there are the tree over the log
// and a fold made anew.

// StateEvery is at which positions the state is kept.
const StateEvery = 1000

// Sum is a number modulo 2^256, its lowest word first.
type Sum [4]uint64

// Plus adds a hash n times.
func (s *Sum) Plus(hash [sha256.Size]byte, n uint64) {
	var carry, over, low, c uint64
	for i := range s {
		over, low = bits.Mul64(binary.LittleEndian.Uint64(hash[8*i:]), n)
		low, c = bits.Add64(low, carry, 0)
		carry = over + c // at most 2^64-2, plus one
		s[i], c = bits.Add64(s[i], low, 0)
		carry += c
	}
}

// Minus takes a hash away.
func (s *Sum) Minus(hash [sha256.Size]byte) {
	var borrow uint64
	for i := range s {
		s[i], borrow = bits.Sub64(s[i], binary.LittleEndian.Uint64(hash[8*i:]), borrow)
	}
}

// less gives s - t.
func (s Sum) less(t Sum) Sum {
	var borrow uint64
	for i := range s {
		s[i], borrow = bits.Sub64(s[i], t[i], borrow)
	}
	return s
}

// String is the number in decimal digits, as the database has it.
func (s Sum) String() string {
	var bytes [32]byte
	for i, word := range s {
		binary.BigEndian.PutUint64(bytes[8*(3-i):], word)
	}
	return new(big.Int).SetBytes(bytes[:]).String()
}

// Change is how a run of events changes a projection's state.
type Change struct {
	Sum   Sum // what has been added so far
	after domain.Position
	marks []mark
}

// mark is what had been added up to a position that is kept.
type mark struct {
	position domain.Position
	sum      Sum
}

// NewChange begins a run behind a position.
func NewChange(after domain.Position) Change { return Change{after: after} }

// Through says that everything up to a position is added, and nothing behind it.
func (c *Change) Through(position domain.Position) {
	for at := (c.after/StateEvery + 1) * StateEvery; at <= position; at += StateEvery {
		c.marks = append(c.marks, mark{at, c.Sum})
		c.after = at
	}
}

const modulus = `115792089237316195423570985008687907853269984665640564039457584007913129639936` // 2^256

// effects are the parts of a fold's statement that move the state, whose arguments
// are numbered behind those n that it has.
func (c *Change) effects(n int) (assignment, effects string, args []any) {
	argument := func(value any) string {
		args = append(args, value)
		return "$" + strconv.Itoa(n+len(args))
	}
	assignment = `, state = mod(c.state + ` + argument(c.Sum.String()) + `::numeric, ` + modulus + `)`
	if len(c.marks) == 0 {
		return assignment, "", args
	}
	// The statement sees the state after it: each mark is that, less what came behind it.
	positions, less := make([]int64, len(c.marks)), make([]string, len(c.marks))
	for i, m := range c.marks {
		positions[i], less[i] = int64(m.position), m.sum.less(c.Sum).String()
	}
	return assignment, `, marked AS (
INSERT INTO projection_states (name, position, epoch, state)
SELECT m.name, s.position, $6, mod(m.state + s.less, ` + modulus + `)
  FROM moved m, unnest(` + argument(positions) + `::bigint[], ` + argument(less) + `::numeric[]) AS s (position, less)
 WHERE m.state IS NOT NULL
    ON CONFLICT (name, position) DO UPDATE SET epoch = excluded.epoch, state = excluded.state)`, args
}

// compareStates gives the first position at which two folds of the same lane differ, 0
// when they do not, and how many positions were compared.
func compareStates(ctx context.Context, db DB, name, other string) (first domain.Position, compared uint64, err error) {
	err = db.QueryRow(ctx, `
SELECT coalesce(min(b.position) FILTER (WHERE a.state <> b.state), 0), count(*)
  FROM (SELECT name, position, state FROM projection_states UNION ALL SELECT name, position, state FROM projection_checkpoints) a
  JOIN (SELECT name, position, state FROM projection_states UNION ALL SELECT name, position, state FROM projection_checkpoints) b
    ON b.name = $2 AND b.position = a.position
 WHERE a.name = $1 AND a.position > 0 AND a.state IS NOT NULL AND b.state IS NOT NULL`, name, other).Scan(&first, &compared)
	return first, compared, eventstore.Wrap(err, "compare the states of %s", name)
}
