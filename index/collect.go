package index

import (
	"bytes"
	"cmp"
	"slices"
	"time"

	"keyledger/domain"
)

// Counted is how a key was used with one outcome since it was collected last.
type Counted struct {
	Organization domain.OrganizationID
	Key          domain.KeyID
	Outcome      domain.Outcome
	Count        uint64
	First, Last  int64 // Unix milliseconds
	Decided      domain.Position
}

// Use is the count as events and reports have it.
func (c *Counted) Use() domain.Use {
	return domain.Use{
		Key: c.Key, Outcome: c.Outcome, Count: c.Count,
		First: time.UnixMilli(c.First).UTC(), Last: time.UnixMilli(c.Last).UTC(), DecidedAt: c.Decided,
	}
}

// ByOrganization is an order for slices.SortFunc: the uses of an organization are next to each
// other, and within it those of neighbouring keys, which is how a projection likes to find them.
func ByOrganization(l, r Counted) int {
	if c := cmp.Compare(l.Organization, r.Organization); c != 0 {
		return c
	}
	if c := bytes.Compare(l.Key[:], r.Key[:]); c != 0 {
		return c
	}
	return cmp.Compare(l.Outcome, r.Outcome)
}

// Place is where a use was counted.
type Place struct {
	contents *contents
	tally    uint32 // 0: among the refusals
}

// Collector takes the counts out of an index. An index has one, and one goroutine
// at a time works with it.
//
// A count leaves the index by an atomic exchange with zero: what the collector has handed on is
// counted nowhere else any more.
type Collector struct {
	index   *Index
	drained []*contents // former contents that were collected once
}

// NewCollector makes the collector of an index.
func NewCollector(x *Index) *Collector { return &Collector{index: x} }

// Each takes out all counts, about so many at a time, in a buffer that is used
// again, and hands them to take. It ends at the first error of take, which has what it was handed all the
// same. Tallies that were idle for long at the moment now are given back.
func (c *Collector) Each(now func() time.Time, most int, buffer []Counted, take func([]Counted) error) error {
	current, former := c.index.collectable()
	for _, from := range append(former, current) {
		if from == nil {
			continue
		}
		buffer = from.collectRefusals(buffer[:0])
		for next := uint32(1); next != 0; {
			at := now()
			buffer, next = from.collect(next, most, at.UnixMilli(), bucketOf(at.Sub(c.index.base)), buffer)
			if err := take(buffer); err != nil {
				return err
			}
			buffer = buffer[:0]
		}
	}
	// A verification that began before the contents were replaced may have counted
	// after they were collected, so they are collected twice.
	c.index.drop(c.drained)
	c.drained = former
	return nil
}

// At takes out what was counted at certain places, and appends it.
func (c *Collector) At(places []Place, uses []Counted) []Counted {
	refused := map[*contents]bool{}
	for _, p := range places {
		switch {
		case p.tally != 0:
			uses = p.contents.take(p.tally, uses)
		case !refused[p.contents]:
			refused[p.contents] = true
			uses = p.contents.collectRefusals(uses)
		}
	}
	return uses
}

// collectable gives the contents whose uses are to be recorded.
func (x *Index) collectable() (current *contents, former []*contents) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.contents.Load(), slices.Clone(x.former)
}

// drop forgets former contents.
func (x *Index) drop(drained []*contents) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.former = slices.DeleteFunc(x.former, func(c *contents) bool { return slices.Contains(drained, c) })
}
