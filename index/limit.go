package index

import "math/bits"

// The limit of a key is kept in two words.
//
// # What is promised
//
// On this node, a key with a limit of L requests a minute is never accepted more
// than L times in any window of 60 seconds, wherever the window begins: not in a
// minute of the clock, not on average, in any. A burst of L is accepted at once after
// 66 quiet seconds.
//
// Time is what the verifications bring, by the monotonic clock. One that was held
// up between reading the clock and being decided counts as of the newest clock that was
// seen; so the promise is exact for requests that are decided in the order of
// their clocks, and off by how long one was held up for others.
//
// # How
//
// Time is cut into buckets of 6 seconds. The uses of the bucket that runs are
// counted exactly; those of the ten before it in 63rds of the limit. A window of
// 60 seconds that ends in this bucket touches these eleven and no other, so a use is
// accepted while their sum is below the limit.
//
// What a bucket has counted beyond whole 63rds is moved into the next one. So the
// sum is exact, and a use is only ever remembered too long, never too short.
//
// # What it costs
//
// A use is remembered for up to 66 seconds instead of 60, and up to one 63rd of the
// limit for longer. A client that spreads its requests evenly and stays below 89 %
// of its limit (10/11 - 1/63) is never refused. One that sends exactly its limit,
// evenly, is refused for one bucket of eleven: it gets 10/11 of the limit. A limit below
// 64 is counted in whole uses. When a key's limit changes, what it has used is carried over as a share
// of the limit.
//
// # Words
//
//	recent  27 bits  uses in the newest bucket
//	        28 bits  the bucket's number
//	         4 bits  how many buckets a move under way goes ahead; 0: none is
//	         4 bits  turn
//	past    60 bits  ten counts of 6 bits in 63rds of the limit, the newest lowest
//	         4 bits  turn
//
// past belongs to recent when their turns are equal. A move to a newer bucket
// takes three steps, and whoever comes across one that is not finished, finishes
// it: nobody waits.
//
//  1. recent takes the new bucket's number, but keeps the count of the old one,
//     says how far the move goes, and advances its turn. From here on nothing is
//     counted into the old bucket.
//  2. past takes the old bucket's count and the new turn. That succeeds once.
//  3. recent's count becomes what was left over, and the move is over.
//
// A use is counted by exchanging recent alone, after past was read. past only changes
// after recent has, so the exchange fails when past was too old.
const (
	buckets     = 10
	bucketWidth = 60_000_000_000 / buckets // nanoseconds
	unitBits    = 6
	mostUnits   = 1<<unitBits - 1

	recentBits  = 27
	recentMask  = 1<<recentBits - 1
	bucketBits  = 28
	bucketShift = recentBits
	bucketMask  = 1<<bucketBits - 1
	aheadShift  = bucketShift + bucketBits
	turnShift   = aheadShift + 4
	turnMask    = 15

	pastBits = buckets * unitBits
	pastMask = 1<<pastBits - 1
)

// refused and gone are what take answers beside a use that was counted.
type taking uint8

const (
	taken   taking = iota
	refused        // the limit is reached
	gone           // the tally is not the owner's any more
)

func unit(limit uint32) uint64 { return max(1, (uint64(limit)+mostUnits-1)/mostUnits) }

// units adds up the ten counts.
func units(past uint64) uint64 {
	const even = 0x3f03f03f03f03f
	pairs := past&even + past>>unitBits&even // five sums of 12 bits
	return pairs * 0x1001001001001 >> 48 & 0xfff
}

// standing is where a key stands against its limit.
type standing struct {
	left   uint32 // uses that there may be now
	newest uint64 // the newest bucket with a use that is remembered, 0: there is none
	next   uint64 // when there is none left: the bucket in which there is one again
}

// stand tells where these words stand.
func stand(limit uint32, count, past, bucket, each uint64) standing {
	s := standing{newest: newestUse(count, past, bucket)}
	if used := units(past&pastMask)*each + count; used < uint64(limit) {
		s.left = limit - uint32(used)
	} else {
		s.next = bucket + room(limit, count, past, each)
	}
	return s
}

// room says in how many buckets there is room for a use, when nothing is used until then. What has
// filled the newest bucket goes on counting as finish moves it.
func room(limit uint32, count, past, each uint64) uint64 {
	whole := min(count/each, mostUnits)
	left := count - whole*each
	past &= pastMask
	for ahead := uint64(1); ahead <= buckets; ahead++ {
		if kept := (past<<(unitBits*ahead) | whole<<(unitBits*(ahead-1))) & pastMask; units(kept)*each+left < uint64(limit) {
			return ahead
		}
	}
	return buckets + 1
}

// take counts one use in a bucket, unless the limit is reached, and says where the key
// stands then. most is the limit, or the part of it that this node may use: counts are kept in units of the
// limit all the same.
func (t *tally) take(owner, limit, most uint32, now uint64) (standing, taking) {
	each := unit(limit)
	for {
		recent := t.recent.Load()
		past := t.past.Load()
		if !t.belongsTo(owner) {
			return standing{}, gone
		}
		if recent>>aheadShift&15 != 0 {
			t.finish(recent, past, each)
			continue
		}
		if past>>pastBits != recent>>turnShift {
			continue // read apart
		}
		count, bucket := recent&recentMask, recent>>bucketShift&bucketMask
		if now > bucket {
			ahead := now - bucket
			if past&pastMask == 0 && (count == 0 || ahead > buckets) {
				// Nothing to remember: the move and the use are one step.
				if most == 0 {
					return standing{next: now + 1}, refused
				}
				if t.recent.CompareAndSwap(recent, recent>>turnShift<<turnShift|now<<bucketShift|1) {
					return stand(most, 1, 0, now, each), taken
				}
				continue
			}
			turn := (recent>>turnShift + 1) & turnMask
			if next := turn<<turnShift | min(ahead, 15)<<aheadShift | now<<bucketShift | count; t.recent.CompareAndSwap(recent, next) {
				t.finish(next, past, each)
			}
			continue
		}
		if units(past&pastMask)*each+count >= uint64(most) {
			return stand(most, count, past, bucket, each), refused
		}
		if t.recent.CompareAndSwap(recent, recent+1) {
			return stand(most, count+1, past, bucket, each), taken
		}
	}
}

// finish does the second and the third step of a move.
func (t *tally) finish(recent, past, each uint64) {
	count, ahead, turn := recent&recentMask, recent>>aheadShift&15, recent>>turnShift
	var kept, left uint64
	if ahead <= buckets {
		whole := min(count/each, mostUnits)
		kept = (past<<(unitBits*ahead) | whole<<(unitBits*(ahead-1))) & pastMask
		left = count - whole*each
	}
	// past is at the turn before, or step 2 was done, or this move is over and the
	// last exchange fails, too.
	if past>>pastBits == (turn-1)&turnMask {
		t.past.CompareAndSwap(past, turn<<pastBits|kept)
	}
	t.recent.CompareAndSwap(recent, turn<<turnShift|recent>>bucketShift&bucketMask<<bucketShift|left)
}

// peek says where a key stands without counting a use.
func (t *tally) peek(owner, limit uint32, now uint64) standing {
	for {
		recent := t.recent.Load()
		past := t.past.Load()
		if !t.belongsTo(owner) {
			return standing{left: limit}
		}
		if recent>>aheadShift&15 != 0 {
			t.finish(recent, past, unit(limit))
			continue
		}
		if past>>pastBits != recent>>turnShift {
			continue
		}
		count, bucket := recent&recentMask, recent>>bucketShift&bucketMask
		if now > bucket+buckets {
			return standing{left: limit, newest: newestUse(count, past, bucket)}
		}
		s := stand(limit, count, past, bucket, unit(limit))
		if now > bucket {
			// As a move would leave it, but that what is beyond whole units counts in this bucket.
			if used := units(past<<(unitBits*(now-bucket))&pastMask)*unit(limit) + count; used < uint64(limit) {
				s.left, s.next = limit-uint32(used), 0
			} else {
				s.left = 0
			}
		}
		return s
	}
}

// newestUse is the newest bucket with a use that is remembered, 0 when there is none.
func newestUse(count, past, bucket uint64) uint64 {
	switch {
	case count > 0:
		return bucket
	case past&pastMask == 0:
		return 0
	}
	return bucket - 1 - uint64(bits.TrailingZeros64(past))/unitBits
}
