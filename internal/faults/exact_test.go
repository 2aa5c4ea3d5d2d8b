package faults_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"keyledger/internal/servertest"
)

func TestAnExactUseThatWasAnsweredIsNeverLost(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		args []string
		body string
	}{
		"by the deployment": {[]string{"--usage", "exact"}, `{"key":%q}`},
		"by the request":    {nil, `{"key":%q,"durable":true}`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := servertest.Start(t, servertest.Options{Args: test.args})
			reader := server.Bootstrap(organization)
			used := server.BootstrapKey("--organization", organization, "--rate-limit", "0")
			u := startUses(t, server.URL(), fmt.Sprintf(test.body, used.Key))
			for range rounds(t) {
				u.await(t, uint64(someCommands()))
				server.Kill()
				server = servertest.Start(t, servertest.Options{Args: test.args, DataDir: server.DataDir()})
				url := server.URL()
				u.base.Store(&url)
			}
			u.await(t, uint64(someCommands()))
			u.stop()
			_, _, answer := client{t: t, base: server.URL(), key: reader}.do(http.MethodGet, "/api/v1/organizations/"+organization+"/keys/"+used.ID+"/usage", "")
			var usage struct {
				Total struct {
					Accepted uint64 `json:"accepted"`
				} `json:"total"`
			}
			if err := json.Unmarshal([]byte(answer), &usage); err != nil {
				t.Fatalf("the usage is answered with %s: %v", answer, err)
			}
			answered, asked := u.answered.Load(), u.asked.Load()
			if n := usage.Total.Accepted; n < answered || n > asked {
				t.Errorf("%d uses were asked for, %d answered, and %d are recorded", asked, answered, n)
			}
			t.Logf("%d uses were asked for, %d answered, and %d are recorded", asked, answered, usage.Total.Accepted)
		})
	}
}

// uses verifies a key over HTTP from several workers at once, and counts the answers.
type uses struct {
	base            atomic.Pointer[string]
	asked, answered atomic.Uint64
	done            sync.WaitGroup
	cancel          context.CancelFunc
}

func startUses(t *testing.T, base, body string) *uses {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	u := &uses{cancel: cancel}
	u.base.Store(&base)
	c := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: workers}}
	for range workers {
		u.done.Go(func() {
			for ctx.Err() == nil {
				u.asked.Add(1)
				response, err := c.Post(*u.base.Load()+"/api/v1/keys/verify", "application/json", strings.NewReader(body))
				if err != nil {
					select {
					case <-ctx.Done():
					case <-time.After(pace):
					}
					continue
				}
				text, err := io.ReadAll(response.Body)
				_ = response.Body.Close()
				switch {
				case err != nil, response.StatusCode == http.StatusServiceUnavailable:
				case response.StatusCode != http.StatusOK || !strings.Contains(string(text), `"VALID"`):
					t.Errorf("a good key is answered with %d: %s", response.StatusCode, text)
					return
				default:
					u.answered.Add(1)
				}
			}
		})
	}
	t.Cleanup(u.stop)
	return u
}

// await returns after n more answers.
func (u *uses) await(t *testing.T, n uint64) {
	t.Helper()
	n += u.answered.Load()
	await(t, "an answer", func() bool { return u.answered.Load() >= n })
}

func (u *uses) stop() {
	u.cancel()
	u.done.Wait()
}
