package index

import (
	"crypto/rand"
	"encoding/binary"
	"math/bits"

	"keyledger/domain"
)

// seed keys the hashes of the tables, so that nobody can choose ids, names or imported
// digests that collide.
type seed [4]uint64

func newSeed() seed {
	var s seed
	for i := range s {
		var b [8]byte
		_, _ = rand.Read(b[:]) // never fails
		s[i] = binary.LittleEndian.Uint64(b[:])
	}
	return s
}

// fold is a keyed product of 128 bits, folded into 64.
func fold(a, b uint64) uint64 {
	high, low := bits.Mul64(a, b)
	return high ^ low
}

func (s *seed) pair(a, b uint64) uint64 {
	return fold(fold(a^s[0], b^s[1])^s[2], 0x9e3779b97f4a7c15^s[3])
}

func (s *seed) digest(d *digestWords) uint64 {
	return fold(d[0]^s[0], d[1]^s[1]) ^ fold(d[2]^s[2], d[3]^s[3])
}

func (s *seed) id(id domain.KeyID) uint64 {
	return s.pair(binary.LittleEndian.Uint64(id[:8]), binary.LittleEndian.Uint64(id[8:]))
}

func (s *seed) text(text string) uint64 {
	sum := s[2] ^ uint64(len(text))
	for len(text) > 0 {
		var word uint64
		n := min(len(text), 8)
		for i := range n {
			word |= uint64(text[i]) << (8 * i)
		}
		sum = s.pair(sum, word)
		text = text[n:]
	}
	return sum
}
