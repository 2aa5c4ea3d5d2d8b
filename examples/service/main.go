// Command service is a small API whose callers show keys of Keyledger.
//
//	go run ./examples/service -keyledger http://127.0.0.1:8080
//	curl -H "X-API-Key: $KEY" http://127.0.0.1:8081/orders
//
// GET /orders asks for the scope orders:read, POST /orders for orders:write.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"keyledger/client"
	"keyledger/client/httpauth"
)

func main() {
	keyledger := flag.String("keyledger", "http://127.0.0.1:8080", "where Keyledger is")
	listen := flag.String("listen", "127.0.0.1:8081", "where to listen")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// The key that a caller shows is its own credential, so this needs none.
	checker, err := client.New(*keyledger, "")
	if err == nil {
		err = serve(ctx, *listen, service(checker))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "service:", err)
		os.Exit(1)
	}
}

// service takes any checker: a client, which asks a server, or an embedded
// verifier, which answers in memory.
func service(checker client.Checker) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /orders", httpauth.Require("orders:read")(http.HandlerFunc(list)))
	mux.Handle("POST /orders", httpauth.Require("orders:write")(http.HandlerFunc(place)))
	return httpauth.Middleware(checker, httpauth.Options{})(mux)
}

func list(w http.ResponseWriter, r *http.Request) {
	// Whose key it is, is known here: no handler of this service runs without.
	verdict, _ := httpauth.FromContext(r.Context())
	_, _ = fmt.Fprintf(w, "the orders of %s\n", verdict.OrganizationID)
}

func place(w http.ResponseWriter, r *http.Request) {
	verdict, _ := httpauth.FromContext(r.Context())
	w.WriteHeader(http.StatusCreated)
	_, _ = fmt.Fprintf(w, "an order of %s, placed with %s\n", verdict.OrganizationID, verdict.KeyID)
}

func serve(ctx context.Context, address string, handler http.Handler) error {
	server := &http.Server{Addr: address, Handler: handler, ReadHeaderTimeout: 5 * time.Second}
	ended := context.AfterFunc(ctx, func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		_ = server.Shutdown(closing)
	})
	defer ended()
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
