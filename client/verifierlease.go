package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"keyledger/domain"
	"keyledger/index"
)

func (v *Verifier) path(rest ...string) []string {
	return append([]string{"api", "v1", "verifiers", v.member.ticket}, rest...)
}

// join becomes known, under the same name as before where there was one: then what
// it reports goes on where it was.
func (v *Verifier) join(ctx context.Context, was member) (member, error) {
	kind := "embedded"
	if v.o.Observer {
		kind = "observer"
	}
	ask := func(before string) (answer struct {
		Verifier string `json:"verifier"`
		LeaseMs  int64  `json:"leaseMs"`
		Ledger   string `json:"ledger"`
		Epoch    uint32 `json:"epoch"`
	}, err error,
	) {
		body, err := json.Marshal(struct {
			Kind     string `json:"kind"`
			Name     string `json:"name"`
			Verifier string `json:"verifier,omitempty"`
		}{kind, v.o.Name, before})
		if err != nil {
			return answer, err
		}
		_, err = v.client.ask(ctx, call{method: http.MethodPost, path: []string{"api", "v1", "verifiers"}, body: body, once: true}, &answer)
		return answer, err
	}
	before := was.ticket
	answer, err := ask(before)
	if before != "" && (errors.Is(err, ErrNotFound) || errors.Is(err, ErrInvalid)) {
		answer, err = ask("") // of another ledger, or one whose master key is another
	}
	if err != nil {
		return was, err
	}
	ledger, err := domain.ParseID(answer.Ledger)
	lease := time.Duration(answer.LeaseMs) * time.Millisecond
	if err != nil || answer.Verifier == "" || lease < leastLease || lease > mostLease {
		return was, &Error{Status: http.StatusCreated, Code: "internal", Message: "the answer makes no sense"}
	}
	history := index.History{Ledger: ledger, Epoch: answer.Epoch}
	if before != "" && history != was.history && answer.Verifier == before {
		// What was reported under the old name may be history, or not.
		if answer, err = ask(""); err != nil {
			return was, err
		}
	}
	return member{ticket: answer.Verifier, lease: lease, history: history}, nil
}

// keepLease renews. A renewal that fails is tried again soon: there is time for
// some within a lease.
func (v *Verifier) keepLease(ctx context.Context, x *index.Index) error {
	every := v.member.lease / renewals
	timer := time.NewTimer(0)
	defer timer.Stop()
	failing, first := false, true
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		began := time.Now()
		err := v.renew(ctx, x)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, errAnew):
			return err
		case errors.Is(err, ErrNotFound):
			// Reaped while it was out of reach.
			if err := v.rejoin(ctx); err != nil {
				return err
			}
			timer.Reset(every / 8)
			continue
		case err != nil:
			if !failing {
				v.logger.Warn("the lease cannot be renewed: the verifier answers nothing when it ends, until it is renewed", "lease", v.member.lease, "error", err)
			}
			failing = true
			if errors.Is(err, ErrUnavailable) {
				timer.Reset(every / 2)
			} else {
				timer.Reset(max(every, refusedPause)) // such as a key that was revoked: asking more often does not help
			}
			continue
		}
		if failing {
			v.logger.Info("the lease is renewed again")
			failing = false
		}
		if first && x.Leased() {
			first = false
			v.announce()
		}
		if first {
			timer.Reset(max(every/8, time.Millisecond)) // the keys are on their way: be there when they come
		} else {
			timer.Reset(max(every-time.Since(began), every/8))
		}
	}
}

func (v *Verifier) announce() {
	v.mu.Lock()
	defer v.mu.Unlock()
	select {
	case <-v.ready:
	default:
		close(v.ready)
		v.logger.Info("the verifier answers", "keys", v.Len(), "position", uint64(v.Position()))
	}
}

// renew renews once.
//
// The clock is read before the question is asked: whatever was revoked before that is in
// the answer, so whatever is not was revoked later, and whoever revoked it waits a whole lease.
func (v *Verifier) renew(ctx context.Context, x *index.Index) error {
	ctx, cancel := context.WithTimeout(ctx, v.member.lease)
	defer cancel()
	var answer struct {
		Head    string `json:"head"`
		LeaseMs int64  `json:"leaseMs"`
	}
	asked := time.Now()
	if _, err := v.client.ask(ctx, call{method: http.MethodPost, path: v.path("lease"), once: true}, &answer); err != nil {
		return err
	}
	head, err := domain.ParseToken(answer.Head)
	if err != nil {
		return &Error{Status: http.StatusOK, Code: "internal", Message: "the answer makes no sense"}
	}
	if head.Epoch != v.member.history.Epoch {
		return fmt.Errorf("%w: the ledger is in epoch %d now", errAnew, head.Epoch)
	}
	// Observers hold the lease of the node that they ask.
	if v.o.Observer && time.Duration(answer.LeaseMs)*time.Millisecond < v.member.lease {
		return fmt.Errorf("%w: the lease is %d ms now", errAnew, answer.LeaseMs)
	}
	x.Grant(plant(asked, head.Position, x))
	return nil
}

// rejoin joins again under the same name. When that would not be the same, the session ends.
func (v *Verifier) rejoin(ctx context.Context) error {
	now, err := v.join(ctx, v.member)
	switch {
	case errors.Is(err, ErrUnavailable):
		return nil // the next renewal tells
	case err == nil && now != v.member:
		return fmt.Errorf("%w: the verifier has to join anew", errAnew)
	}
	return err
}

// asks is the highest position that a confirmation is wanted for.
type asks struct {
	mu       sync.Mutex
	position Position
	more     chan struct{} // holds a token when it has grown
}

func newAsks() *asks { return &asks{more: make(chan struct{}, 1)} }

func (a *asks) add(position Position) {
	a.mu.Lock()
	a.position = max(a.position, position)
	a.mu.Unlock()
	select {
	case a.more <- struct{}{}:
	default:
	}
}

func (a *asks) highest() Position {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.position
}

// confirm tells what is applied, when somebody asks: whoever revokes waits for it, or
// for the lease to end. Nothing is confirmed that is not applied.
func (v *Verifier) confirm(ctx context.Context, x *index.Index, asked *asks) error {
	var confirmed Position
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-asked.more:
		}
		for want := asked.highest(); want > confirmed; want = asked.highest() {
			if err := x.WaitFor(ctx, want); err != nil {
				return nil //nolint:nilerr // ctx has ended
			}
			position := x.Position()
			token := domain.Token{Epoch: v.member.history.Epoch, Lane: domain.Lifecycle, Position: position}
			err := v.tell(ctx, token)
			switch {
			case ctx.Err() != nil:
				return nil
			case err == nil:
				confirmed = position
			case errors.Is(err, ErrUnavailable):
				if !sleep(ctx, firstPause) {
					return nil
				}
			default:
				v.logger.Warn("a confirmation was refused", "error", err)
				confirmed = position // the next one may not be
			}
		}
	}
}

func (v *Verifier) tell(ctx context.Context, token domain.Token) error {
	ctx, cancel := context.WithTimeout(ctx, v.member.lease)
	defer cancel()
	body := fmt.Appendf(nil, `{"position":%q}`, token)
	_, err := v.client.ask(ctx, call{method: http.MethodPost, path: v.path("confirmation"), body: body, once: true}, nil)
	return err
}
