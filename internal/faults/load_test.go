package faults_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"keyledger/domain"
)

const (
	organization = "org_faults"
	workers      = 8
	// pace is what a worker waits after a failure, so that an outage is not a busy loop.
	pace = 5 * time.Millisecond
)

// load creates and revokes keys over HTTP from several workers at once, and
// remembers what was acknowledged.
type load struct {
	t      testing.TB
	client *http.Client
	key    string
	target []*atomic.Pointer[string] // base URLs; workers take turns over them

	mu      sync.Mutex
	created map[domain.KeyID]bool
	revoked map[domain.KeyID]bool

	acknowledged chan int // the index of the target that acknowledged
	cancel       context.CancelFunc
	done         sync.WaitGroup
}

func startLoad(t testing.TB, key string, urls ...string) *load {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	l := &load{
		t: t, key: key, created: map[domain.KeyID]bool{}, revoked: map[domain.KeyID]bool{},
		client:       &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: workers}},
		acknowledged: make(chan int, 1<<16), cancel: cancel,
	}
	for _, url := range urls {
		p := &atomic.Pointer[string]{}
		p.Store(&url)
		l.target = append(l.target, p)
	}
	for w := range workers {
		l.done.Go(func() { l.work(ctx, w%len(urls)) })
	}
	t.Cleanup(l.stop)
	return l
}

// moved tells the workers of a target where it is now.
func (l *load) moved(target int, url string) { l.target[target].Store(&url) }

// stop ends the load; commands under way are finished first.
func (l *load) stop() {
	l.cancel()
	l.done.Wait()
	l.client.CloseIdleConnections()
}

// await returns after n more acknowledgements of a target.
func (l *load) await(target, n int) {
	l.t.Helper()
	deadline := time.After(time.Minute)
	for n > 0 {
		select {
		case from := <-l.acknowledged:
			if from == target {
				n--
			}
		case <-deadline:
			l.t.Fatalf("nothing is acknowledged any more: %d are missing", n)
		}
	}
}

// drain forgets acknowledgements that nobody waited for.
func (l *load) drain() {
	for {
		select {
		case <-l.acknowledged:
		default:
			return
		}
	}
}

func (l *load) work(ctx context.Context, target int) {
	for n := 0; ctx.Err() == nil; n++ {
		// Commands under way when the load stops are finished: their outcome counts.
		id, err := l.create(context.WithoutCancel(ctx), *l.target[target].Load(), n)
		if err == nil {
			l.acknowledge(target, l.created, id)
			if n%3 == 0 {
				if err = l.revoke(context.WithoutCancel(ctx), *l.target[target].Load(), id); err == nil {
					l.acknowledge(target, l.revoked, id)
				}
			}
		}
		var wrong wrongAnswer
		if errors.As(err, &wrong) {
			l.t.Error(wrong)
			return
		}
		if err != nil {
			select {
			case <-ctx.Done():
			case <-time.After(pace):
			}
		}
	}
}

func (l *load) acknowledge(target int, in map[domain.KeyID]bool, id domain.KeyID) {
	l.mu.Lock()
	in[id] = true
	l.mu.Unlock()
	select {
	case l.acknowledged <- target:
	default:
	}
}

// wrongAnswer is one that no fault excuses: a good key refused, or a 500.
type wrongAnswer struct{ text string }

func (w wrongAnswer) Error() string { return w.text }

func (l *load) create(ctx context.Context, base string, n int) (domain.KeyID, error) {
	body := fmt.Sprintf(`{"name":"key %d","scopes":["read"]}`, n)
	var answer struct {
		Key struct {
			ID string `json:"id"`
		} `json:"apiKey"`
	}
	if err := l.call(ctx, http.MethodPost, base+"/api/v1/organization/"+organization+"/api-keys", body, http.StatusCreated, &answer); err != nil {
		return domain.KeyID{}, err
	}
	return domain.ParseKeyID(answer.Key.ID)
}

func (l *load) revoke(ctx context.Context, base string, id domain.KeyID) error {
	return l.call(ctx, http.MethodDelete, base+"/api/v1/organization/"+organization+"/api-keys/"+id.UUID(), "", http.StatusOK, nil)
}

func (l *load) call(ctx context.Context, method, url, body string, want int, answer any) error {
	request, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader([]byte(body)))
	if err != nil {
		return err
	}
	request.Header.Set("X-API-Key", l.key)
	request.Header.Set("Content-Type", "application/json")
	response, err := l.client.Do(request)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	switch response.StatusCode {
	case want:
		if answer == nil {
			return nil
		}
		return json.Unmarshal(text, answer)
	case http.StatusServiceUnavailable:
		return errors.New("unavailable")
	}
	return wrongAnswer{fmt.Sprintf("%s %s is answered with %d: %s", method, url, response.StatusCode, text)}
}
