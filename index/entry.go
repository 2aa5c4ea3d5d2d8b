package index

import (
	"encoding/binary"
	"runtime"
	"sync/atomic"
	"time"

	"keyledger/domain"
)

// entry is a key in eight words, one cache line:
//
//	0-3  its digest
//	4-5  its id
//	6     9 bits  length of its name
//	     55 bits  when it expires: instant
//	7    28 bits  its profile, and 2 that are not used
//	     34 bits  where its name stands
//
// The last word is never the same twice, since no two names share a place and
// every change brings another version and so another profile. So it tells whether all that was
// read between two looks at it belongs together. It is zero while the other words change.
// What changes most, revoking, changes this one word alone.
type entry [8]atomic.Uint64

const (
	instantBits  = 55
	instantMask  = 1<<instantBits - 1
	inMillis     = 1 << (instantBits - 1)
	mostNameSize = 1<<(64-instantBits) - 1
)

// instant packs a moment into 55 bits: microseconds until the year 2540, and
// milliseconds from then on. 0 is never.
func instant(t time.Time) uint64 {
	if t.IsZero() {
		return 0
	}
	if micros := t.UnixMicro(); micros < inMillis {
		return uint64(max(micros, 1))
	}
	return min(uint64(t.UnixMilli()), inMillis-1) | inMillis
}

// moment unpacks it.
func moment(i uint64) time.Time {
	switch {
	case i == 0:
		return time.Time{}
	case i&inMillis != 0:
		return time.UnixMilli(int64(i &^ inMillis)).UTC()
	}
	return time.UnixMicro(int64(i)).UTC()
}

// passed says whether a moment, given in microseconds, has come.
func passed(i uint64, micros int64) bool {
	switch {
	case i == 0:
		return false
	case i&inMillis != 0:
		return micros >= int64(i&^inMillis)*1000
	}
	return micros >= int64(i)
}

// found is an entry as it was at one moment.
type found struct {
	id      domain.KeyID
	name    uint64 // place
	size    uint32
	expires uint64 // instant
	profile uint32
}

// read gives the entry if it has the digest. The whole digest is compared, in a time
// that does not depend on where it differs.
func (e *entry) read(d *digestWords, f *found) bool {
	for {
		state := e[7].Load()
		if (e[0].Load()^d[0])|(e[1].Load()^d[1])|(e[2].Load()^d[2])|(e[3].Load()^d[3]) != 0 {
			return false
		}
		first, second, detail := e[4].Load(), e[5].Load(), e[6].Load()
		if state == 0 || e[7].Load() != state {
			runtime.Gosched() // it changes at this moment
			continue
		}
		binary.BigEndian.PutUint64(f.id[:8], first)
		binary.BigEndian.PutUint64(f.id[8:], second)
		f.size, f.expires = uint32(detail>>instantBits), detail&instantMask
		f.profile, f.name = uint32(state>>offsetBits), state&(1<<offsetBits-1)
		return true
	}
}

// write fills an entry whose last word is zero, and makes it readable.
func (e *entry) write(d *digestWords, f *found) {
	for i, word := range d {
		e[i].Store(word)
	}
	e[4].Store(binary.BigEndian.Uint64(f.id[:8]))
	e[5].Store(binary.BigEndian.Uint64(f.id[8:]))
	e[6].Store(uint64(f.size)<<instantBits | f.expires)
	e[7].Store(uint64(f.profile)<<offsetBits | f.name)
}

// id and profile are the writer's short ways to single parts.
func (e *entry) id() (id domain.KeyID) {
	binary.BigEndian.PutUint64(id[:8], e[4].Load())
	binary.BigEndian.PutUint64(id[8:], e[5].Load())
	return id
}

func (e *entry) profile() uint32 { return uint32(e[7].Load() >> offsetBits) }

func (e *entry) digest() digestWords {
	return digestWords{e[0].Load(), e[1].Load(), e[2].Load(), e[3].Load()}
}

// setProfile changes the profile alone.
func (e *entry) setProfile(profile uint32) {
	e[7].Store(uint64(profile)<<offsetBits | e[7].Load()&(1<<offsetBits-1))
}

// forgetName makes the name empty. The last word stays as it is: whoever reads it on
// both sides of the change has a name of the old place, and of one of the two lengths.
func (e *entry) forgetName() {
	state := e[7].Load()
	e[7].Store(0)
	e[6].Store(e[6].Load() & instantMask)
	e[7].Store(state)
}

// clear makes an entry that no digest matches.
func (e *entry) clear() {
	e[7].Store(0)
	for i := range 7 {
		e[i].Store(0)
	}
}

// digestWords is a digest as entries hold it.
type digestWords [4]uint64

func wordsOf(d *domain.Digest) digestWords {
	return digestWords{
		binary.LittleEndian.Uint64(d[0:]), binary.LittleEndian.Uint64(d[8:]),
		binary.LittleEndian.Uint64(d[16:]), binary.LittleEndian.Uint64(d[24:]),
	}
}
