package client

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// UsageOptions choose what is counted.
type UsageOptions struct {
	From, To time.Time // zero: the last 24 hours, or 30 days
	Daily    bool      // by day of UTC instead of by hour
}

// Usage counts the uses of a key. Both ends lie between two intervals.
type Usage struct {
	From      time.Time       `json:"from"`
	To        time.Time       `json:"to"`
	Total     UsageCount      `json:"total"`
	Intervals []UsageInterval `json:"intervals"` // every one, also those without a use
}

// UsageInterval is one hour or day.
type UsageInterval struct {
	Start time.Time  `json:"start"`
	Uses  UsageCount `json:"uses"`
}

// UsageCount says how often a key was accepted and refused; Outcomes, how often
// with which verdict, where there was any.
type UsageCount struct {
	Accepted uint64          `json:"accepted"`
	Refused  uint64          `json:"refused"`
	Outcomes map[Code]uint64 `json:"outcomes"`
}

// KeyUsage counts the uses of a key per hour or day. It needs the scope read. Uses
// show once the node that saw them has written them down.
func (c *Client) KeyUsage(ctx context.Context, organization OrganizationID, id KeyID, o UsageOptions) (Usage, error) {
	path, err := keysPath(organization)
	if err != nil {
		return Usage{}, err
	}
	query := url.Values{}
	if !o.From.IsZero() {
		query.Set("from", o.From.UTC().Format(time.RFC3339Nano))
	}
	if !o.To.IsZero() {
		query.Set("to", o.To.UTC().Format(time.RFC3339Nano))
	}
	if o.Daily {
		query.Set("interval", "day")
	}
	var u Usage
	_, err = c.ask(ctx, call{method: http.MethodGet, path: append(path, id.String(), "usage"), query: query, read: true}, &u)
	return u, err
}
