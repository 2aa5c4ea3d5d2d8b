package client_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"

	"keyledger/client"
	"keyledger/domain"
	"keyledger/index"
)

// A service keeps all keys in its own memory, and asks nobody about them.
func ExampleVerifier() {
	url, stop := exampleNode() // the address of a Keyledger node, such as https://keys.example
	defer stop()
	verifier, err := client.NewVerifier(client.VerifierOptions{URL: url, Key: "bsk_live_with_the_scope_system:verify", Name: "orders-7"})
	if err != nil {
		fmt.Println(err)
		return
	}
	go func() { _ = verifier.Run(context.Background()) }() // until Close
	defer verifier.Close()                                 // reports the last uses, and leaves
	_ = verifier.WaitReady(context.Background())

	presented := plainKey(7) // from a request's header
	verdict, err := verifier.Verify(context.Background(), client.Question{Key: presented, Scopes: client.Scopes{"read"}})
	switch {
	case errors.Is(err, client.ErrUnavailable):
		fmt.Println("503: it is not known whether the key is good") // neither let it in, nor throw it away
	case !verdict.Valid:
		fmt.Println("401:", verdict.Code)
	default:
		fmt.Println("hello", verdict.OrganizationID)
	}
	// Output: hello org_0
}

func exampleNode() (url string, stop func()) {
	n := &node{history: index.History{Ledger: domain.ID{1}, Epoch: 1}, index: index.New(index.Options{})}
	n.fill(100)
	s := httptest.NewServer(http.Handler(n))
	return s.URL, func() {
		s.CloseClientConnections()
		s.Close()
		http.DefaultClient.CloseIdleConnections()
	}
}
