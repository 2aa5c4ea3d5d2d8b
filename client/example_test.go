package client_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"keyledger/client"
)

// These run in TestTheExamplesDoWhatTheySay, against a server. KEYLEDGER_URL says where it
// is, KEYLEDGER_KEY is an admin key of org_abc123.

// A key's life: made, verified, revoked.
func Example() {
	ctx := context.Background()
	c, err := client.New(os.Getenv("KEYLEDGER_URL"), os.Getenv("KEYLEDGER_KEY"))
	if err != nil {
		panic(err)
	}
	key, err := c.CreateKey(ctx, "org_abc123", client.NewKey{Name: "Production", Scopes: client.Scopes{"orders:read"}})
	if err != nil {
		panic(err)
	}
	fmt.Println("made:", key.Secret) // it redacts itself; Reveal gives it away
	verdict, err := c.Verify(ctx, client.Question{Key: key.Secret.Reveal(), Scopes: client.Scopes{"orders:read"}})
	if err != nil {
		panic(err) // it says nothing about the key
	}
	fmt.Println("verified:", verdict.Code)
	ended, err := c.RevokeKey(ctx, "org_abc123", key.ID, "no longer needed")
	if err != nil {
		panic(err)
	}
	fmt.Println("revoked everywhere:", ended.Fenced)
	verdict, err = c.Verify(ctx, client.Question{Key: key.Secret.Reveal()})
	fmt.Println("verified:", verdict.Code, err)
}

// The whole list, page by page.
func ExampleClient_Keys() {
	c, err := client.New(os.Getenv("KEYLEDGER_URL"), os.Getenv("KEYLEDGER_KEY"))
	if err != nil {
		panic(err)
	}
	for key, err := range c.Keys(context.Background(), "org_abc123", client.ListOptions{}) {
		if err != nil {
			panic(err)
		}
		fmt.Println(key.Name, key.Prefix != "", key.Scopes, key.Status)
	}
}

// Two processes: one writes, and another one, which may ask another node, sees it.
func ExampleWithMinPosition() {
	ctx := context.Background()
	c, err := client.New(os.Getenv("KEYLEDGER_URL"), os.Getenv("KEYLEDGER_KEY"))
	if err != nil {
		panic(err)
	}
	key, err := c.CreateKey(ctx, "org_abc123", client.NewKey{Name: "Batch", Scopes: client.Scopes{"read"}})
	if err != nil {
		panic(err)
	}
	handedOver := key.Position.String()

	token, err := client.ParseToken(handedOver)
	if err != nil {
		panic(err)
	}
	seen, err := c.GetKey(client.WithMinPosition(ctx, token), "org_abc123", key.ID)
	fmt.Println(seen.Name, err)
}

// What can go wrong, by kind.
func ExampleError() {
	ctx := context.Background()
	c, err := client.New(os.Getenv("KEYLEDGER_URL"), os.Getenv("KEYLEDGER_KEY"))
	if err != nil {
		panic(err)
	}
	_, err = c.CreateKey(ctx, "org_abc123", client.NewKey{Name: "Late", Scopes: client.Scopes{"read"}, ExpiresAt: time.Unix(0, 0)})
	var e *client.Error
	switch {
	case errors.Is(err, client.ErrUnavailable):
		fmt.Println("nothing is known: try again later")
	case errors.Is(err, client.ErrInvalid) && errors.As(err, &e):
		fmt.Println(e.Field, "is wrong:", strings.TrimPrefix(e.Message, e.Field+" "))
	}
}

// The position is kept together with the effect, so every event takes effect once.
func ExampleSubscribe() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	database := struct { // stands for one that writes both in one transaction
		position string
		keys     int
	}{}
	after, err := client.ParseCursor(database.position)
	if err != nil {
		panic(err)
	}
	err = client.Subscribe(ctx, client.SubscribeOptions{URL: os.Getenv("NATS_URL"), After: after}, func(_ context.Context, e client.Event) error {
		database.keys++
		database.position = e.Cursor.String()
		fmt.Println(e.Type, "at position", e.Position)
		cancel() // one is enough for an example
		return nil
	})
	fmt.Println(errors.Is(err, context.Canceled), database.keys, strings.Contains(database.position, "/1/"))
}
