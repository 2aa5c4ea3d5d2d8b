package index

import (
	"errors"
	"fmt"
	"sync/atomic"
	"unsafe"
)

// Everything that grows with the number of keys lives in segments: arrays that
// hold no pointers, so that the garbage collector never looks inside them, and
// that are made one at a time and never move, so that growing copies nothing and
// readers need no lock. A directory of fixed size points at them.

const directorySize = 1 << 14

// slab is an array of T that grows by segments of S, which hold T.
type slab[S any] struct {
	segments [directorySize]atomic.Pointer[S]
}

func (s *slab[S]) segment(i uint32) *S { return s.segments[i].Load() }

// grow makes a segment. One goroutine at a time.
func (s *slab[S]) grow(i uint32) error {
	if i >= directorySize {
		return errFull
	}
	s.segments[i].Store(new(S))
	return nil
}

const (
	segmentBits = 14
	segmentSize = 1 << segmentBits
)

// growTo makes sure that there is a place for a reference.
func growTo[T any](s *slab[[segmentSize]T], ref uint32) error {
	if ref > mostRefs {
		return errFull
	}
	if s.segment(ref>>segmentBits) != nil {
		return nil
	}
	return s.grow(ref >> segmentBits)
}

// made counts the segments.
func (s *slab[S]) made() int {
	n := 0
	for n < directorySize && s.segments[n].Load() != nil {
		n++
	}
	return n
}

func (s *slab[S]) bytes() uint64 {
	// The size of a variable would do as well, but a segment is too large for the stack: each call would make
	// one on the heap.
	return uint64(s.made()) * uint64(unsafe.Sizeof(*(*S)(nil)))
}

var errFull = errors.New("the verification index is full")

// arena keeps texts for good. What is written is never moved, changed or used
// again, which is what makes the strings of text safe.
type arena struct {
	chunks slab[chunk]
	end    uint64 // the writer's
}

const (
	chunkBits  = 20
	offsetBits = chunkBits + 14 // 14 bits: directorySize
)

type chunk [1 << chunkBits]byte

// add keeps a text and gives its place. Every text has a place of its own, the
// empty one too.
func (a *arena) add(text string) (offset uint64, err error) {
	need := uint64(max(len(text), 1))
	if need > 1<<chunkBits {
		return 0, fmt.Errorf("a text of %d bytes does not fit into the verification index", len(text))
	}
	if room := 1<<chunkBits - a.end&(1<<chunkBits-1); room < need {
		a.end += room
	}
	i := uint32(a.end >> chunkBits)
	if i >= directorySize {
		return 0, errFull
	}
	if a.chunks.segment(i) == nil {
		if err := a.chunks.grow(i); err != nil {
			return 0, err
		}
	}
	offset = a.end
	copy(a.chunks.segment(i)[offset&(1<<chunkBits-1):], text)
	a.end += need
	return offset, nil
}

// text gives what was kept, without copying it. The string points into a chunk:
// its bytes were written before the offset was published by an atomic store, are
// never written again, and are kept by the garbage collector as long as the string is.
func (a *arena) text(offset uint64, length uint32) string {
	if length == 0 {
		return ""
	}
	return unsafe.String(&a.chunks.segment(uint32(offset >> chunkBits))[offset&(1<<chunkBits-1)], length)
}
