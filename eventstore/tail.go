package eventstore

import (
	"context"
	"sync"

	"keyledger/domain"
)

// mostTailBytes and mostTailEvents bound what is kept of a lane in memory.
const (
	mostTailEvents = 8192
	mostTailBytes  = 16 << 20
)

// tail keeps the newest events, one run without a gap: those that this process
// appended, those that others sent along when they had, and those that one of its followers has
// read. So its followers need no query, nor to decode what was just encoded here. It wakes those who
// wait for more, from wherever the news came.
type tail struct {
	mu     sync.Mutex
	events []Event // those that were not appended here are not decoded
	bytes  int
	head   domain.Position // the highest position that is said to be committed
	sure   domain.Position // the highest that was seen to be
	moved  chan struct{}   // closed when head grows

	reading map[domain.Position]chan struct{} // followers that read behind a position; closed when one has
}

func newTail(head domain.Position) *tail {
	return &tail{head: head, sure: head, moved: make(chan struct{}), reading: map[domain.Position]chan struct{}{}}
}

// appended takes a batch of committed events.
func (t *tail) appended(events []Event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := len(t.events); n > 0 && t.events[n-1].Position+1 != events[0].Position {
		// Another node appended in between: what is kept would have a gap.
		t.events, t.bytes = nil, 0
	}
	t.events = append(t.events, events...)
	for i := range events {
		t.bytes += eventSize(&events[i].Recorded)
	}
	t.bound()
	t.sure = max(t.sure, events[len(events)-1].Position)
	t.raise(events[len(events)-1].Position)
}

// bound drops the oldest of what is too much. The caller holds mu.
func (t *tail) bound() {
	for len(t.events) > mostTailEvents || t.bytes > mostTailBytes && len(t.events) > 1 {
		t.bytes -= eventSize(&t.events[0].Recorded)
		t.events = t.events[1:]
	}
}

// learned takes committed events, without a gap, that this process did not append. What it keeps
// already stays as it is: that is decoded.
func (t *tail) learned(events []Recorded) {
	t.mu.Lock()
	defer t.mu.Unlock()
	first, last := events[0].Position, events[len(events)-1].Position
	if n := len(t.events); n > 0 {
		if last+1 < t.events[0].Position {
			return // older than what is kept, with a gap between
		}
		if first > t.events[n-1].Position+1 {
			t.events, t.bytes = nil, 0
		}
	}
	var older, newer []Event
	for i := range events {
		r := &events[i]
		switch n := len(t.events); {
		case n > 0 && r.Position < t.events[0].Position:
			older = append(older, Event{Recorded: *r})
		case n == 0 || r.Position > t.events[n-1].Position:
			newer = append(newer, Event{Recorded: *r})
		default:
			continue
		}
		t.bytes += eventSize(r)
	}
	if len(older) > 0 {
		t.events = append(older, t.events...)
	}
	t.events = append(t.events, newer...)
	t.bound()
	t.sure = max(t.sure, last)
	t.raise(last)
}

// read says whether the caller is to read behind a position, and call ended then; or
// gives what is closed when another one has.
func (t *tail) read(after domain.Position) (others <-chan struct{}, ended func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if others := t.reading[after]; others != nil {
		return others, nil
	}
	done := make(chan struct{})
	t.reading[after] = done
	return nil, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(t.reading, after)
		close(done)
	}
}

// known says that a lane was seen to have reached a position.
func (t *tail) known(head domain.Position) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sure = max(t.sure, head)
	t.raise(head)
}

// told says that somebody said that a lane has reached a position.
func (t *tail) told(head domain.Position) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.raise(head)
}

// said gives what wait goes by.
func (t *tail) said() domain.Position {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.head
}

// doubt takes back what was said when nothing is there behind a position. It is
// false when something was seen there before: then the log is another one.
func (t *tail) doubt(said, after domain.Position) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.sure > after {
		return false
	}
	if t.head == said {
		t.head = t.sure
	}
	return true
}

func (t *tail) raise(head domain.Position) {
	if head > t.head {
		t.head = head
		close(t.moved)
		t.moved = make(chan struct{})
	}
}

// after gives up to limit kept events behind a position; none when the first of them is
// not kept.
func (t *tail) after(position domain.Position, limit int) []Recorded {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.events) == 0 || position+1 < t.events[0].Position {
		return nil
	}
	from := int(position + 1 - t.events[0].Position)
	if from >= len(t.events) {
		return nil
	}
	events := make([]Recorded, min(limit, len(t.events)-from))
	for i := range events {
		events[i] = t.events[from+i].Recorded
	}
	return events
}

// decoded gives what an event says that was appended and handed out here: its bytes are
// the very same ones. Any other is decoded from its own.
func (t *tail) decoded(r Recorded) (Event, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.events) == 0 || r.Position < t.events[0].Position || r.Position > t.events[len(t.events)-1].Position {
		return Event{}, false
	}
	e := t.events[r.Position-t.events[0].Position]
	return e, e.Event != nil && len(r.Data) > 0 && &e.Data[0] == &r.Data[0]
}

// wait returns when something is committed behind a position.
func (t *tail) wait(ctx context.Context, position domain.Position) error {
	for {
		t.mu.Lock()
		head, moved := t.head, t.moved
		t.mu.Unlock()
		if head > position {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// has says whether the event at a position, or one behind it, is kept.
func (t *tail) has(position domain.Position) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.events) > 0 && position <= t.events[len(t.events)-1].Position
}

func (t *tail) reached() domain.Position {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.head
}

func eventSize(r *Recorded) int {
	return 256 + len(r.Data) + len(r.Metadata) + len(r.Sealed)
}

// behind says whether a position is news.
func (t *tail) behind(position domain.Position) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return position > t.head
}
