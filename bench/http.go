package main

import (
	"context"
	"fmt"

	"github.com/valyala/fasthttp"
)

// benchHTTP measures creates through everything: HTTP, authentication, log,
// index, list and stream.
func benchHTTP(ctx context.Context, b *bench) error {
	s, err := startServer(ctx, nil)
	if err != nil {
		return err
	}
	defer s.stop()
	key, err := s.bootstrap(ctx)
	if err != nil {
		return err
	}
	db := &database{dir: s.dir, adminURL: s.DatabaseAdmin}
	if err := db.prepareBaselines(ctx); err != nil {
		return err
	}
	body := []byte(`{"name":"Production Server","scopes":["read","write"]}`)
	creates := load{
		address: s.address(), path: "/api/v1/organization/" + string(organization) + "/api-keys", key: key,
		want: fasthttp.StatusCreated, body: func(int, int) []byte { return body },
	}
	_, err = b.compare(b.rounds, perSecond, []contender{
		{fmt.Sprintf("create over HTTP, %d connections", connections), func() (sample, error) { return creates.run(ctx, b.duration) }},
		{"pgbench, one insert, 64 clients", func() (sample, error) {
			// The list, the tree and the stream may still be at work for the last turn.
			if err := s.settle(ctx); err != nil {
				return sample{}, err
			}
			return db.pgbench(ctx, insertScript, 64, b.duration)
		}},
	}, comparison{0, 1, ">= 0.8, aim 1.5"})
	return err
}
