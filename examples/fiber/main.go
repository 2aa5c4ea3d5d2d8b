// Command fiber is the API of examples/service with Fiber.
//
//	go run ./examples/fiber -keyledger http://127.0.0.1:8080
//	curl -H "X-API-Key: $KEY" http://127.0.0.1:8082/orders
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/gofiber/fiber/v2"

	"keyledger/client"
	"keyledger/client/fiberauth"
)

func main() {
	keyledger := flag.String("keyledger", "http://127.0.0.1:8080", "where Keyledger is")
	listen := flag.String("listen", "127.0.0.1:8082", "where to listen")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	checker, err := client.New(*keyledger, "")
	if err == nil {
		app := service(checker)
		context.AfterFunc(ctx, func() { _ = app.Shutdown() })
		err = app.Listen(*listen)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "fiber:", err)
		os.Exit(1)
	}
}

// service takes any checker: a client, which asks a server, or an embedded
// verifier, which answers in memory.
func service(checker client.Checker) *fiber.App {
	app := fiber.New(fiber.Config{DisableStartupMessage: true})
	app.Use(fiberauth.Middleware(checker, fiberauth.Options{}))
	app.Get("/orders", fiberauth.Require("orders:read"), func(c *fiber.Ctx) error {
		verdict, _ := fiberauth.FromContext(c)
		return c.SendString(fmt.Sprintf("the orders of %s\n", verdict.OrganizationID))
	})
	app.Post("/orders", fiberauth.Require("orders:write"), func(c *fiber.Ctx) error {
		verdict, _ := fiberauth.FromContext(c)
		return c.Status(fiber.StatusCreated).SendString(fmt.Sprintf("an order of %s, placed with %s\n", verdict.OrganizationID, verdict.KeyID))
	})
	return app
}
