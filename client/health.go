package client

import (
	"context"
	"net/http"
	"time"
)

// Health is how a node stands.
type Health struct {
	Status   string // ok or degraded
	Ready    bool   // it verifies keys
	Position Position
	Checks   []HealthCheck
}

// HealthCheck is one thing that a node has looked at.
type HealthCheck struct {
	Name   string
	OK     bool
	Detail string
	Took   time.Duration
}

// Health asks the node how it stands. A node that is degraded is an answer, and no error.
func (c *Client) Health(ctx context.Context) (Health, error) {
	var got struct {
		Status   string   `json:"status"`
		Ready    bool     `json:"ready"`
		Position Position `json:"position"`
		Checks   []struct {
			Name   string `json:"name"`
			OK     bool   `json:"ok"`
			Detail string `json:"detail"`
			Ms     int64  `json:"ms"`
		} `json:"checks"`
	}
	if _, err := c.ask(ctx, call{method: http.MethodGet, path: []string{"healthz"}, accept: []int{http.StatusServiceUnavailable}}, &got); err != nil {
		return Health{}, err
	}
	h := Health{Status: got.Status, Ready: got.Ready, Position: got.Position}
	for _, check := range got.Checks {
		h.Checks = append(h.Checks, HealthCheck{check.Name, check.OK, check.Detail, time.Duration(check.Ms) * time.Millisecond})
	}
	return h, nil
}

// Ready says whether the node verifies keys: nil, or ErrUnavailable. It asks once.
func (c *Client) Ready(ctx context.Context) error {
	_, err := c.ask(ctx, call{method: http.MethodGet, path: []string{"readyz"}, once: true}, nil)
	return err
}

// Version is what a node runs.
type Version struct {
	Version string `json:"version"`
	Commit  string `json:"commit"`
	BuiltAt string `json:"builtAt"`
	Go      string `json:"go"`
}

// Version asks the node what it runs.
func (c *Client) Version(ctx context.Context) (Version, error) {
	var v Version
	_, err := c.ask(ctx, call{method: http.MethodGet, path: []string{"version"}}, &v)
	return v, err
}
