package publisher

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"keyledger/domain"
	"keyledger/eventstore"
)

// FeedLog is what a feed reads. *eventstore.Store is one, with an
// *organizations.Reader beside it.
type FeedLog interface {
	Head(ctx context.Context, lane domain.Lane) (eventstore.Head, error)
	Page(ctx context.Context, lane domain.Lane, after domain.Position) ([]eventstore.Recorded, error)
	// OrganizationPage also says up to which position the events are all that there are.
	OrganizationPage(ctx context.Context, organization domain.OrganizationID, after, through domain.Position, most int) ([]eventstore.Recorded, domain.Position, error)
	Await(ctx context.Context, lane domain.Lane, position domain.Position) (domain.Position, error)
	Follow(ctx context.Context, lane domain.Lane, after domain.Position) iter.Seq2[[]eventstore.Recorded, error]
	FirstSince(ctx context.Context, lane domain.Lane, t time.Time) (domain.Position, error)
}

// Feed hands the log on to those who come for it: read from a position, in pages,
// and told when there is more.
type Feed struct {
	log    FeedLog
	logger *slog.Logger

	mu       sync.Mutex
	watchers map[watched]map[*watcher]struct{}
}

// watched is what somebody waits for: a lane, or one organization's part of the lifecycle.
type watched struct {
	lane         domain.Lane
	organization domain.OrganizationID // empty: all
}

type watcher struct{ news chan struct{} }

// FeedQuery asks for events behind a position.
type FeedQuery struct {
	Lane         domain.Lane
	Organization domain.OrganizationID // empty: all; otherwise the lane is the lifecycle
	After        domain.Position
	Most         int      // events
	Types        []string // public names (keyledger.key.revoked); empty: all
}

// FeedEvent is one event as AppendStructured shows it.
type FeedEvent struct {
	Position   domain.Position
	ID         domain.ID
	Type       string
	RecordedAt time.Time
	JSON       []byte
}

// FeedPage is what was found.
type FeedPage struct {
	Events []FeedEvent
	// Next is how far the log was looked through: the After of the next query. It
	// passes over what the query leaves out.
	Next domain.Position
	Head domain.Position // the lane's end when the page was read
}

const (
	// mostFeedBytes and mostFeedReads bound a page: an event of the usage lane may
	// name some thousand keys, and a filter may leave out everything.
	mostFeedBytes = 4 << 20
	mostFeedReads = 4
	// mostOfOrganization is what one query reads of an organization.
	mostOfOrganization = 1000

	feedPause = 250 * time.Millisecond
)

// NewFeed makes a feed. Watchers hear nothing before Run.
func NewFeed(log FeedLog, logger *slog.Logger) *Feed {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	return &Feed{log: log, logger: logger, watchers: map[watched]map[*watcher]struct{}{}}
}

// Types are the public names of all events of a lane.
func Types(lane domain.Lane) (types []string) {
	for _, logged := range loggedTypes() {
		if name, err := nameOf(logged); err == nil && name.lane == lane {
			types = append(types, name.typ)
		}
	}
	return types
}

// CheckTypes refuses a filter with a name that no event of the lane has.
func CheckTypes(lane domain.Lane, types []string) error {
	known := Types(lane)
	for _, t := range types {
		if !slices.Contains(known, t) {
			return domain.Invalid("types", "must be some of %s, separated by commas", strings.Join(known, ", "))
		}
	}
	return nil
}

// Head is where a lane ends.
func (f *Feed) Head(ctx context.Context, lane domain.Lane) (domain.Position, error) {
	head, err := f.log.Head(ctx, lane)
	if err != nil {
		return 0, fmt.Errorf("read the feed: %w", err)
	}
	return head.Position, nil
}

// Page reads the next events, with bounded work: a page may be empty though the
// log goes on, and then Next has advanced. A position behind the lane's end, or before what
// the log still has, is CodeStale.
func (f *Feed) Page(ctx context.Context, q FeedQuery) (FeedPage, error) {
	if err := CheckTypes(q.Lane, q.Types); err != nil {
		return FeedPage{}, err
	}
	// The end is read first: what is found behind it belongs to the next page.
	head, err := f.log.Head(ctx, q.Lane)
	if err != nil {
		return FeedPage{}, fmt.Errorf("read the feed: %w", err)
	}
	page := FeedPage{Next: q.After, Head: head.Position}
	if q.After > head.Position {
		return page, &domain.Error{
			Code: domain.CodeStale, Field: "after",
			Message: fmt.Sprintf("is behind the end of the lane, which is %d: the position belongs to another history; begin anew", head.Position),
		}
	}
	bytes := 0
	for range mostFeedReads {
		found, through, err := f.read(ctx, q, page.Next, head.Position)
		if err != nil {
			return page, err
		}
		for _, r := range found {
			if r.Position > head.Position {
				return page, nil
			}
			name, err := nameOf(r.Type)
			if err != nil {
				return page, fmt.Errorf("show %s %d: %w", r.Lane, r.Position, err)
			}
			if len(q.Types) == 0 || slices.Contains(q.Types, name.typ) {
				if len(page.Events) == q.Most || bytes > mostFeedBytes {
					return page, nil
				}
				text, err := AppendStructured(nil, r)
				if err != nil {
					return page, err
				}
				bytes += len(text)
				page.Events = append(page.Events, FeedEvent{Position: r.Position, ID: r.ID, Type: name.typ, RecordedAt: r.RecordedAt, JSON: text})
			}
			page.Next = r.Position
		}
		if page.Next = through; page.Next >= head.Position || len(page.Events) >= q.Most {
			break
		}
	}
	return page, nil
}

// read gives some events behind a position, and up to which position they are all that there are.
func (f *Feed) read(ctx context.Context, q FeedQuery, after, head domain.Position) (events []eventstore.Recorded, through domain.Position, err error) {
	if after >= head {
		return nil, after, nil
	}
	if q.Organization != "" {
		most := mostOfOrganization
		if len(q.Types) == 0 {
			most = min(most, q.Most+1) // no more than the page takes
		}
		if events, through, err = f.log.OrganizationPage(ctx, q.Organization, after, head, most); err != nil {
			err = fmt.Errorf("read the feed: %w", err)
		}
		return events, through, err
	}
	events, err = f.log.Page(ctx, q.Lane, after)
	if errors.Is(err, eventstore.ErrGap) {
		err = f.takenAway(ctx, q.Lane, after, err)
	}
	if err != nil {
		return nil, after, fmt.Errorf("read the feed: %w", err)
	}
	if len(events) == 0 {
		return nil, head, nil
	}
	return events, events[len(events)-1].Position, nil
}

// takenAway tells a reader whose next events were detached where the log begins.
func (f *Feed) takenAway(ctx context.Context, lane domain.Lane, after domain.Position, gap error) error {
	first, err := f.log.FirstSince(ctx, lane, time.Unix(0, 0))
	if err != nil || first <= after+1 {
		return gap
	}
	return &domain.Error{
		Code: domain.CodeStale, Field: "after",
		Message: fmt.Sprintf("is followed by events that the ledger no longer holds: begin with after=%d, and know that those between are missing", first-1), Err: gap,
	}
}

// Watch tells of news behind any position read before: the channel has a value when
// there may be something new of a query's. Take the value, then read; stop in the end.
func (f *Feed) Watch(lane domain.Lane, organization domain.OrganizationID) (news <-chan struct{}, stop func()) {
	w, key := &watcher{make(chan struct{}, 1)}, watched{lane, organization}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.watchers[key] == nil {
		f.watchers[key] = map[*watcher]struct{}{}
	}
	f.watchers[key][w] = struct{}{}
	return w.news, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.watchers[key], w)
		if len(f.watchers[key]) == 0 {
			delete(f.watchers, key)
		}
	}
}

// Run tells the watchers of news until ctx ends. An error is waited out: then
// everybody is told, since nobody knows what was missed.
func (f *Feed) Run(ctx context.Context) error {
	var lanes sync.WaitGroup
	for _, lane := range domain.Lanes() {
		lanes.Go(func() {
			for ctx.Err() == nil {
				if err := f.follow(ctx, lane); err != nil && ctx.Err() == nil {
					f.logger.Debug("the feed waits and tries again", "lane", lane, "error", err)
				}
				select {
				case <-ctx.Done():
				case <-time.After(feedPause):
				}
			}
		})
	}
	lanes.Wait()
	return nil
}

func (f *Feed) follow(ctx context.Context, lane domain.Lane) error {
	head, err := f.log.Head(ctx, lane)
	if err != nil {
		return err
	}
	f.tellAll(lane)
	for at := head.Position; lane != domain.Lifecycle; {
		// Nobody watches an organization's part of it, so nothing is read.
		if at, err = f.log.Await(ctx, lane, at); err != nil {
			return err
		}
		f.tellAll(lane)
	}
	for batch, err := range f.log.Follow(ctx, lane, head.Position) {
		if err != nil {
			return err
		}
		f.tell(batch)
	}
	return nil
}

// tell wakes those whom new events of the lifecycle concern.
func (f *Feed) tell(batch []eventstore.Recorded) {
	f.mu.Lock()
	defer f.mu.Unlock()
	wake(f.watchers[watched{lane: domain.Lifecycle}])
	for i := range batch {
		wake(f.watchers[watched{domain.Lifecycle, batch[i].Organization}])
	}
}

func (f *Feed) tellAll(lane domain.Lane) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for key, watchers := range f.watchers {
		if key.lane == lane {
			wake(watchers)
		}
	}
}

func wake(watchers map[*watcher]struct{}) {
	for w := range watchers {
		select {
		case w.news <- struct{}{}:
		default: // it has one that it has not taken
		}
	}
}
