package client

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"sync"
	"time"

	"keyledger/index"
	"keyledger/index/wire"
)

// reporter tells the ledger what the verifier has counted. Exactly once, because: a
// count leaves the index by an atomic exchange with zero; what has left stands in uses or
// in report until the server has answered; and a report that may have arrived is
// repeated as it was, which the ledger recognises, before anything newer is sent.
type reporter struct {
	verifier *Verifier

	mu      sync.Mutex // one report at a time
	counts  *index.Collector
	uses    []index.Counted // collected; those from sent on are in no report yet
	sent    int
	report  wire.Report // the next one, or the one whose outcome is in doubt when it has uses
	version uint64      // of the verifier's stream, after the last report
}

const (
	mostCollected     = 1 << 16
	mostOrganizations = 100 // of one report
	reportWithin      = 15 * time.Second
)

// adopt has the reporter collect from another index. What was used of the one before is
// told first, where that is the same ledger.
func (r *reporter) adopt(x *index.Index, same bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.counts != nil && same {
		_ = r.counts.Each(time.Now, 1<<30, nil, func(uses []index.Counted) error {
			r.uses = append(r.uses[r.sent:], uses...)
			r.sent = 0
			return nil
		})
	}
	r.counts = index.NewCollector(x)
}

// rename has what is counted from here on told under another name. What was in doubt stays so.
func (r *reporter) rename() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.report.Uses) > 0 || len(r.uses) > r.sent {
		r.verifier.logger.Error("uses could not be reported and are given up", "keys", len(r.report.Uses)+len(r.uses)-r.sent)
	}
	r.report, r.version, r.uses, r.sent = wire.Report{Flush: 1}, 0, nil, 0
}

func (r *reporter) run(ctx context.Context) error {
	ticker := time.NewTicker(r.verifier.o.ReportEvery)
	defer ticker.Stop()
	failing := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		err := r.flush(ctx)
		if err != nil && ctx.Err() == nil && !failing {
			r.verifier.logger.Warn("uses cannot be reported now and are kept", "error", err)
		}
		failing = err != nil
	}
}

// flush reports everything that was counted before the call.
func (r *reporter) flush(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.counts == nil {
		return nil
	}
	if err := r.send(ctx); err != nil {
		return err
	}
	return r.counts.Each(time.Now, mostCollected, r.uses[:0], func(uses []index.Counted) error {
		r.uses = uses
		return r.send(ctx)
	})
}

// send reports what was collected. What it returns an error for stays to be sent.
func (r *reporter) send(ctx context.Context) error {
	slices.SortFunc(r.uses[r.sent:], index.ByOrganization)
	for {
		if len(r.report.Uses) == 0 {
			if r.sent == len(r.uses) {
				r.uses, r.sent = r.uses[:0], 0
				return nil
			}
			r.cut()
		}
		version, err := r.post(ctx)
		switch {
		case errors.Is(err, ErrInvalid):
			// It will never be taken, and what comes after it may be.
			r.verifier.logger.Error("a report of uses was refused and is given up", "keys", len(r.report.Uses), "error", err)
			r.report.Uses = nil
		case err != nil:
			return err
		default:
			r.version = version
			r.report = wire.Report{Flush: r.report.Flush + 1, Uses: nil}
		}
	}
}

// cut moves uses into the next report.
func (r *reporter) cut() {
	r.report.Expected = r.version
	organizations := 0
	for n := 0; r.sent < len(r.uses) && n < wire.MostUses; n++ {
		u := &r.uses[r.sent]
		if n == 0 || u.Organization != r.uses[r.sent-1].Organization {
			if organizations++; organizations > mostOrganizations {
				return
			}
		}
		r.report.Uses = append(r.report.Uses, u.Use())
		r.sent++
	}
}

func (r *reporter) post(ctx context.Context) (version uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, reportWithin)
	defer cancel()
	var answer struct {
		Version uint64 `json:"version"`
	}
	v := r.verifier
	_, err = v.client.ask(ctx, call{
		method: http.MethodPost, path: v.path("uses"), body: wire.AppendReport(nil, r.report), header: http.Header{"Content-Type": {wire.MediaType}}, once: true,
	}, &answer)
	if err == nil && answer.Version <= r.version {
		return 0, &Error{Status: http.StatusOK, Code: "internal", Message: "the answer makes no sense"}
	}
	return answer.Version, err
}
