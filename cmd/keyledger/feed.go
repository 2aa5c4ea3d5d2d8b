package main

import (
	"context"

	"keyledger/eventstore"
	keyhttp "keyledger/http"
	"keyledger/projections/organizations"
	"keyledger/publisher"
)

// feedLog is the log, with what finds an organization's part of it.
type feedLog struct {
	*eventstore.Store
	*organizations.Reader
}

// feed hands the log on in the server's words.
type feed struct{ *publisher.Feed }

func (f feed) Page(ctx context.Context, q keyhttp.EventQuery) (keyhttp.EventPage, error) {
	found, err := f.Feed.Page(ctx, publisher.FeedQuery(q))
	page := keyhttp.EventPage{Next: found.Next, Head: found.Head, Events: make([]keyhttp.FeedEvent, len(found.Events))}
	for i, e := range found.Events {
		page.Events[i] = keyhttp.FeedEvent{Position: e.Position, JSON: e.JSON}
	}
	return page, err
}
