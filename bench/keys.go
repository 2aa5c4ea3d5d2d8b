package main

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"time"

	"keyledger/domain"
)

// Keys of the measured ledgers are drawn from their number, so that every process
// of the bench knows them without being told.

const (
	plainSize     = len("bsk_live_") + domain.SecretCharacters
	organizations = 1000
)

// plainKey writes the i-th key as its client presents it.
func plainKey(dst []byte, i int) {
	copy(dst, "bsk_live_")
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], mix(uint64(i)))
	binary.BigEndian.PutUint64(b[8:], mix(uint64(i)+1<<62))
	hex.Encode(dst[len("bsk_live_"):plainSize], b[:])
}

func organizationOf(i int) domain.OrganizationID {
	return domain.OrganizationID(fmt.Sprintf("org_%05d", i%organizations))
}

func nameOf(i int) string { return fmt.Sprintf("the key %08d", i) }

// idOf draws an id for a moment: the kind tells those of keys from those of events.
func idOf(at time.Time, kind, i int) domain.ID {
	var id domain.ID
	binary.BigEndian.PutUint64(id[:8], uint64(at.UnixMilli())<<16)
	binary.BigEndian.PutUint64(id[8:], mix(uint64(i)+uint64(kind)<<60))
	binary.BigEndian.PutUint16(id[6:8], uint16(i)&0xfff|0x7000)
	id[8] = id[8]&0x3f | 0x80
	return id
}

// mix is the finaliser of SplitMix64: a permutation of all 64-bit numbers.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// shuffled is the numbers below n in random order.
func shuffled(n int) []uint32 {
	order := make([]uint32, n)
	for i := range order {
		order[i] = uint32(i)
	}
	r := rand.New(rand.NewPCG(1, 2))
	r.Shuffle(n, func(i, j int) { order[i], order[j] = order[j], order[i] })
	return order
}

// zipf is visits of n keys of which few are visited very often: the k-th most
// popular one with a frequency proportional to 1/k^1.01, wherever in memory it stands.
func zipf(n, visits int) []uint32 {
	popular := shuffled(n)
	z := rand.NewZipf(rand.New(rand.NewPCG(3, 4)), 1.01, 1, uint64(n-1))
	order := make([]uint32, visits)
	for i := range order {
		order[i] = popular[z.Uint64()]
	}
	return order
}
