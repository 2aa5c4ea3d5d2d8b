package audit

import (
	"fmt"
	"slices"

	"golang.org/x/mod/sumdb/tlog"

	"keyledger/domain"
	"keyledger/projections/transparency"
)

// leavesOf gives the leaf's hash that the stored tree has of a position.
type leavesOf func(position uint64) (tlog.Hash, bool)

// chain checks one lane in order.
type chain struct {
	lane        domain.Lane
	report      *Report
	epoch       uint32                         // of the head
	loose       bool                           // part of the events is left out: versions need only grow
	cosigned    []domain.Position              // by witness: the newest stored size
	checkpoints []expectation                  // by size
	tiles       map[transparency.TileID][]byte // of level 1 and above; nil: none are to be compared

	signed uint64      // the size of the stored tree
	next   uint64      // the position that must follow
	size   uint64      // how many leaves the tree has so far
	edge   []tlog.Hash // the roots of the full subtrees that make up the tree so far, largest first
	broken bool        // a leaf is not known: the tree cannot be followed any further
	at     int64
	last   uint32 // epoch

	keys    map[domain.KeyID]keyState
	streams map[string]uint64
	// revocations are what the lifecycle lane says; watch is what the usage lane is held against.
	revocations map[domain.KeyID]*revocation
	watch       *watch
	erased      map[uint64]uint64 // organizations, by hash: at which position
}

type keyState struct {
	version uint32
	revoked uint64 // at which position; 0: not
}

// expectation is a root that the tree must have at a size.
type expectation struct {
	size   uint64
	root   tlog.Hash
	source string
}

func newChain(lane domain.Lane, report *Report) *chain {
	return &chain{lane: lane, report: report, next: 1, keys: map[domain.KeyID]keyState{}, streams: map[string]uint64{}, erased: map[uint64]uint64{}, revocations: map[domain.KeyID]*revocation{}}
}

// expect adds a root to compare with.
func (c *chain) expect(e expectation) {
	if e.size == 0 {
		if e.root != emptyRoot() {
			c.fault(0, "the empty tree is not the one of %s", e.source)
		}
		return
	}
	i, _ := slices.BinarySearchFunc(c.checkpoints, e, func(a, b expectation) int {
		switch {
		case a.size < b.size:
			return -1
		case a.size > b.size:
			return 1
		}
		return 0
	})
	c.checkpoints = slices.Insert(c.checkpoints, i, e)
}

func (c *chain) fault(position uint64, format string, args ...any) {
	c.report.add(Fault{Lane: c.lane, Position: domain.Position(position), Fault: fmt.Sprintf(format, args...)})
}

// mostMissing bounds how many missing positions are named one by one.
const mostMissing = 1000

// add checks the next event.
//
// The tree is followed by what it says itself wherever it says something, not by the event: then
// one changed event is one fault at its position, and the comparison with what
// was signed says whether event or tree was changed. Where the tree says nothing,
// behind the newest checkpoint and in a file, the event's own hash is taken.
func (c *chain) add(e *checked, leaves leavesOf) {
	switch {
	case e.position < c.next:
		c.fault(e.position, "follows position %d: it is out of order, or there twice", c.next-1)
		return
	case e.position > c.next:
		c.missing(e.position-1, leaves)
	}
	c.next = e.position + 1

	stated, ok := e.stated, e.hasStated
	if leaves != nil {
		stated, ok = leaves(e.position)
	}
	if !ok {
		stated = e.leaf
	}
	switch {
	case e.fault != "":
		c.fault(e.position, "%s", e.fault)
	case stated != e.leaf:
		c.fault(e.position, "the event is not the one that the tree holds")
	}
	c.grow(stated)
	if e.left || e.fault != "" && e.version == 0 {
		return
	}

	if e.epoch < c.last || c.epoch != 0 && e.epoch > c.epoch {
		c.fault(e.position, "it is of epoch %d, between %d and %d", e.epoch, c.last, c.epoch)
	}
	if e.at < c.at {
		c.fault(e.position, "it was recorded before the event that it follows")
	}
	c.last, c.at = max(c.last, e.epoch), max(c.at, e.at)
	c.follow(e)
}

// follow holds an event against its stream, and against the rules of the domain.
func (c *chain) follow(e *checked) {
	if e.late != "" {
		c.fault(e.position, "%s", e.late)
	}
	if e.key.IsZero() {
		if e.stream != "" {
			c.version(e, c.streams[e.stream], e.stream)
			c.streams[e.stream] = e.version
		}
	} else {
		key, known := c.keys[e.key]
		c.version(e, uint64(key.version), "key "+e.key.String())
		switch {
		case e.change == creates && (known || e.version != 1):
			c.fault(e.position, "the key %s is created twice", e.key)
		case e.change == revokes && !known && !c.loose:
			c.fault(e.position, "the key %s is revoked before it is created", e.key)
		case e.change == revokes && key.revoked != 0:
			c.fault(e.position, "the key %s was revoked at position %d already", e.key, key.revoked)
		case e.change == fences && key.revoked == 0 && !c.loose:
			c.fault(e.position, "the key %s is fenced before it is revoked", e.key)
		}
		key.version = uint32(e.version)
		if e.change == revokes && key.revoked == 0 {
			key.revoked = e.position
			c.revocations[e.key] = &revocation{position: e.position}
		}
		if e.change == fences {
			c.fence(e)
		}
		c.keys[e.key] = key
	}
	c.erasure(e)
	if e.actor.IsZero() {
		return
	}
	if actor := c.keys[e.actor]; actor.revoked != 0 && actor.revoked < e.position {
		c.fault(e.position, "the key %s acts, which was revoked at position %d", e.actor, actor.revoked)
	}
}

// erasure holds an event against the erasure of its organization: after it, keys are
// revoked and fences confirmed, and nothing is sealed.
func (c *chain) erasure(e *checked) {
	if len(c.erased) > 0 && c.lane == domain.Lifecycle {
		if at := c.erased[e.organization]; at != 0 && (e.sealed || e.change != revokes && e.change != fences && e.change != changesNothing) {
			c.fault(e.position, "the organization of the event was erased at position %d", at)
		}
	}
	if e.change == erases && c.erased[e.organization] == 0 {
		c.erased[e.organization] = e.position
	}
}

func (c *chain) version(e *checked, before uint64, name string) {
	if e.version != before+1 && (!c.loose || e.version <= before) {
		c.fault(e.position, "version %d of %s follows version %d", e.version, name, before)
	}
}

// missing goes on to a position without the events up to it.
func (c *chain) missing(through uint64, leaves leavesOf) {
	for named := 0; c.next <= through; c.next++ {
		if named++; named <= mostMissing {
			c.fault(c.next, "the event is missing")
		}
		leaf, ok := tlog.Hash{}, false
		if leaves != nil {
			leaf, ok = leaves(c.next)
		}
		if !ok {
			c.broken = true
			if named > mostMissing {
				c.fault(c.next, "%d more events are missing", through-c.next+1)
				c.next = through + 1
				return
			}
			continue
		}
		c.grow(leaf)
	}
}

// grow adds a leaf to the tree, and compares it with what was stored and signed of it.
func (c *chain) grow(leaf tlog.Hash) {
	if c.broken {
		return
	}
	h, n := leaf, c.size
	c.size++
	for level := 0; ; level++ {
		// h is the root of the subtree n of 2^level leaves.
		if level > 0 && level%transparency.Height == 0 && c.tiles != nil {
			c.compareTile(level/transparency.Height, n, h)
		}
		if n&1 == 0 {
			break
		}
		h = tlog.NodeHash(c.edge[len(c.edge)-1], h)
		c.edge = c.edge[:len(c.edge)-1]
		n >>= 1
	}
	c.edge = append(c.edge, h)
	for len(c.checkpoints) > 0 && c.checkpoints[0].size <= c.size {
		if e := c.checkpoints[0]; e.size == c.size && e.root != c.root() {
			c.fault(e.size, "the tree of this size is not the one of %s", e.source)
		}
		c.checkpoints = c.checkpoints[1:]
	}
}

// root is the tree's as it is now.
func (c *chain) root() tlog.Hash {
	if len(c.edge) == 0 {
		root, _ := tlog.TreeHash(0, nil)
		return root
	}
	h := c.edge[len(c.edge)-1]
	for _, left := range slices.Backward(c.edge[:len(c.edge)-1]) {
		h = tlog.NodeHash(left, h)
	}
	return h
}

// compareTile holds a stored hash above the leaves against the tree. Hashes behind
// the newest checkpoint are not there.
func (c *chain) compareTile(level int, n uint64, h tlog.Hash) {
	if c.size > c.signed {
		return
	}
	id := transparency.TileID{Level: level, Number: int64(n >> transparency.Height)}
	at := int(n%(1<<transparency.Height)) * tlog.HashSize
	if data := c.tiles[id]; len(data) < at+tlog.HashSize || tlog.Hash(data[at:]) != h {
		c.fault(c.size, "tile %d/%d does not hold the hash of the tiles below it", level, id.Number)
	}
}

// end checks what can only be seen when all events were.
func (c *chain) end(head uint64, leaves leavesOf) {
	if c.next <= head {
		c.missing(head, leaves)
	}
	for _, e := range c.checkpoints {
		if c.broken {
			c.fault(e.size, "the tree cannot be compared with %s: hashes of its leaves are missing", e.source)
		} else {
			c.fault(c.size+1, "the log ends before the size %d of %s", e.size, e.source)
		}
	}
	c.checkpoints = nil
}
