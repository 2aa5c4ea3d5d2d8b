package main

import (
	"context"
	"errors"
	"fmt"

	keyhttp "keyledger/http"
	"keyledger/projections"
)

// checks are what /healthz asks about.
func (n *node) checks() []keyhttp.Check {
	checks := []keyhttp.Check{
		{Name: "database", Run: func(ctx context.Context) (string, error) {
			if err := n.pool.Ping(ctx); err != nil {
				return "", errors.New("it cannot be reached") // the text may name hosts and users
			}
			if n.database.Embedded {
				return "embedded", nil
			}
			return "connected", nil
		}},
		{Name: "nats", Run: func(context.Context) (string, error) {
			if !n.conn.IsConnected() {
				return "", errors.New("it cannot be reached: events wait in the log")
			}
			if n.nats.Embedded {
				return "embedded", nil
			}
			return "connected", nil
		}},
		{Name: "index", Run: func(context.Context) (string, error) {
			if !n.index.Ready() {
				return "", errors.New("it is not loaded")
			}
			return fmt.Sprintf("%d keys at position %d", n.index.Len(), n.index.Position()), nil
		}},
		{Name: "lease", Run: func(context.Context) (string, error) {
			if !n.index.Leased() {
				return "", errors.New("it has ended: verification is unavailable here until the database answers")
			}
			return fmt.Sprintf("renewed, %s; revocations wait for %d verifiers", n.config.Lease, n.fence.Verifiers()), nil
		}},
		n.checkFollower("keylist", n.keylist),
		n.checkFollower("usage", n.usage),
		n.checkFollower("organizations", n.places),
	}
	for _, relay := range n.relays {
		checks = append(checks, keyhttp.Check{Name: "relay " + string(relay.Status().Lane), Run: func(context.Context) (string, error) {
			s := relay.Status()
			if s.Alarm != "" {
				return "", errors.New(s.Alarm)
			}
			if s.Error != "" {
				return "", errors.New("it waits for its stream")
			}
			return fmt.Sprintf("%s, at position %d of %d", s.State, s.Last, s.Head), nil
		}})
	}
	return checks
}

func (n *node) checkFollower(name string, f *projections.Follower) keyhttp.Check {
	return keyhttp.Check{Name: "projection " + name, Run: func(context.Context) (string, error) {
		return fmt.Sprintf("at position %d", f.Position()), nil
	}}
}
