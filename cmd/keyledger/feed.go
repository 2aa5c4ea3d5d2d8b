package main

import (
	"context"

	keyhttp "keyledger/http"
	"keyledger/publisher"
)

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
