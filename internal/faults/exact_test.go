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
			u := startUses(t, server.URL(), fmt.Sprintf(test.body, used.Key), false)
			for range rounds(t) {
				u.await(t, uint64(someCommands()))
				server.Kill()
				server = servertest.Start(t, servertest.Options{Args: test.args, DataDir: server.DataDir()})
				url := server.URL()
				u.base.Store(&url)
			}
			u.await(t, uint64(someCommands()))
			u.stop()
			n := acceptedUses(t, client{t: t, base: server.URL(), key: reader}, used.ID)
			answered, asked := u.answered.Load(), u.asked.Load()
			if n < answered || n > asked {
				t.Errorf("%d uses were asked for, %d answered, and %d are recorded", asked, answered, n)
			}
			t.Logf("%d uses were asked for, %d answered, and %d are recorded", asked, answered, n)
		})
	}
}

// uses verifies a key over HTTP from several workers at once, and counts the answers.
type uses struct {
	base            atomic.Pointer[string]
	asked, answered atomic.Uint64
	exceeded        atomic.Uint64 // answers that the key's quota is used up
	done            sync.WaitGroup
	cancel          context.CancelFunc
}

// startUses starts them. Only a key with a quota may be answered with anything but yes.
func startUses(t *testing.T, base, body string, quota bool) *uses {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	u := &uses{cancel: cancel}
	u.base.Store(&base)
	c := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: workers}}
	rest := func() {
		select {
		case <-ctx.Done():
		case <-time.After(pace):
		}
	}
	for range workers {
		u.done.Go(func() {
			for ctx.Err() == nil {
				u.asked.Add(1)
				response, err := c.Post(*u.base.Load()+"/api/v1/keys/verify", "application/json", strings.NewReader(body))
				if err != nil {
					rest()
					continue
				}
				text, err := io.ReadAll(response.Body)
				_ = response.Body.Close()
				var verdict struct{ Code string }
				_ = json.Unmarshal(text, &verdict)
				switch {
				case err != nil, response.StatusCode == http.StatusServiceUnavailable:
				case response.StatusCode == http.StatusOK && verdict.Code == "VALID":
					u.answered.Add(1)
				case quota && verdict.Code == "QUOTA_EXCEEDED":
					u.exceeded.Add(1)
					rest()
				default:
					t.Errorf("a good key is answered with %d: %s", response.StatusCode, text)
					return
				}
			}
		})
	}
	t.Cleanup(u.stop)
	return u
}

// await returns after n more answers, or at the end of the key's quota.
func (u *uses) await(t *testing.T, n uint64) {
	t.Helper()
	n += u.answered.Load()
	await(t, "an answer", func() bool { return u.answered.Load() >= n || u.exceeded.Load() > 0 })
}

func (u *uses) stop() {
	u.cancel()
	u.done.Wait()
}
