package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/klauspost/compress/zstd"

	"keyledger/domain"
	"keyledger/index"
	"keyledger/index/wire"
)

const (
	// aliveWithin is how long a stream may be silent. A server says something once a second.
	aliveWithin = 5 * time.Second
	// mostPartBytes bounds what is kept of a part of a snapshot that is not complete.
	mostPartBytes = 8 << 20
	mostBatch     = 1000
	mostReserved  = 1 << 24 // keys for which room is made before they come

	encodingZstd = "zstd"
)

// keepKeys loads the keys, if need be, and follows what changes, until ctx ends. Whatever
// is out of reach is tried again; what is loaded goes on answering as long as its lease.
func (v *Verifier) keepKeys(ctx context.Context, x *index.Index, asked *asks) error {
	for pause := firstPause; ; {
		before := x.Position()
		err := v.loadAndFollow(ctx, x, asked)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, errAnew):
			return err
		case untrusted(err):
			// What is held may have a gap, or be another history's.
			x.Distrust()
			v.logger.Error("THE VERIFIER DOES NOT ANSWER until all keys are loaded anew", "position", uint64(x.Position()), "error", err)
		}
		if x.Position() != before {
			pause = firstPause
		}
		v.logger.Debug("the verifier follows again", "pause", pause, "error", err)
		if !sleep(ctx, pause) {
			return nil
		}
		pause = min(2*pause, time.Second)
	}
}

func untrusted(err error) bool {
	return errors.Is(err, index.ErrGap) || errors.Is(err, index.ErrForeign) || errors.Is(err, index.ErrBroken) || errors.Is(err, wire.ErrMalformed)
}

func (v *Verifier) loadAndFollow(ctx context.Context, x *index.Index, asked *asks) error {
	if !x.Following() {
		if err := v.load(ctx, x); err != nil {
			return fmt.Errorf("load the keys: %w", err)
		}
	}
	return v.follow(ctx, x, asked)
}

// open opens a stream that ends when nothing comes for a while.
func (v *Verifier) open(ctx context.Context, what string, query url.Values) (*watched, error) {
	ctx, cancel := context.WithCancel(ctx)
	build, _ := v.client.prepare(ctx, call{
		method: http.MethodGet, path: []string{"api", "v1", "verifiers", what}, query: query, header: http.Header{"Accept-Encoding": {encodingZstd}},
	})
	request, err := build(ctx)
	if err != nil {
		cancel()
		return nil, err
	}
	w := &watched{cancel: cancel, timer: time.AfterFunc(aliveWithin, cancel)}
	response, err := v.stream.Do(request) //nolint:bodyclose // watched closes it
	if err != nil {
		w.Close()
		return nil, unreachable(err)
	}
	w.body, w.encoding = response.Body, response.Header.Get("Content-Encoding")
	if response.StatusCode != http.StatusOK {
		defer w.Close()
		body, _ := io.ReadAll(io.LimitReader(response.Body, mostErrorBytes))
		return nil, failure(response, body)
	}
	return w, nil
}

// watched is a stream's body.
type watched struct {
	body     io.ReadCloser
	encoding string
	timer    *time.Timer
	cancel   context.CancelFunc
}

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.body.Read(p)
	w.timer.Reset(aliveWithin)
	if err != nil && !errors.Is(err, io.EOF) {
		err = unreachable(err)
	}
	return n, err
}

func (w *watched) Close() {
	w.timer.Stop()
	w.cancel()
	if w.body != nil {
		_ = w.body.Close()
	}
}

// load takes a snapshot. One that breaks off goes on where it was complete, while there is
// progress.
func (v *Verifier) load(ctx context.Context, x *index.Index) error {
	began := time.Now()
	s := &loading{history: v.member.history}
	for pause := firstPause; ; pause = min(2*pause, time.Second) {
		was := s.cursor
		err := v.loadPart(ctx, s)
		switch {
		case err == nil:
			s.loading.Through(s.end)
			x.Replace(s.loading, s.end, time.Since(began))
			return nil
		case errors.Is(err, ErrNotFound) && s.cursor != "":
			s = &loading{history: v.member.history} // another node, or it has loaded its keys anew
		case ctx.Err() != nil, errors.Is(err, errAnew), s.cursor == was && was == "" || untrusted(err):
			return err
		}
		v.logger.Info("the snapshot broke off and goes on", "error", err)
		if s.cursor != was {
			pause = firstPause
		}
		if !sleep(ctx, pause) {
			return ctx.Err()
		}
	}
}

// loading is a snapshot that is on its way.
type loading struct {
	history index.History
	loading *index.Loading
	cursor  string
	end     domain.Position

	// Of one answer.
	organizations []string
	scopes        []index.ScopeSet
	part          [][]byte // payloads of keys since the last cursor
	size          int
}

func (v *Verifier) loadPart(ctx context.Context, s *loading) error {
	query := url.Values{}
	set(query, "after", s.cursor)
	body, err := v.open(ctx, "snapshot", query)
	if err != nil {
		return err
	}
	defer body.Close()
	var r io.Reader = body
	if body.encoding == encodingZstd {
		decoder, err := zstd.NewReader(body, zstd.WithDecoderConcurrency(2), zstd.WithDecoderMaxWindow(8<<20), zstd.WithDecoderMaxMemory(64<<20))
		if err != nil {
			return fmt.Errorf("%w: %w", wire.ErrMalformed, err)
		}
		defer decoder.Close()
		r = decoder
	}
	s.organizations, s.scopes, s.part, s.size = nil, nil, s.part[:0], 0
	frames := wire.NewReader(r)
	for begun := false; ; begun = true {
		kind, payload, err := frames.Next()
		if err != nil {
			if errors.Is(err, wire.ErrMalformed) {
				return err
			}
			return unreachable(err)
		}
		if begun == (kind == wire.KindHeader) {
			return fmt.Errorf("%w: a header does not stand in the beginning", wire.ErrMalformed)
		}
		ended, err := s.take(kind, payload)
		if ended || err != nil {
			return err
		}
	}
}

// take takes one frame, and says whether it was the last.
func (s *loading) take(kind wire.Kind, payload []byte) (ended bool, err error) {
	switch kind {
	case wire.KindHeader:
		h, err := wire.ReadHeader(payload)
		if err != nil {
			return false, err
		}
		if (index.History{Ledger: h.Ledger, Epoch: h.Epoch}) != s.history {
			return false, fmt.Errorf("%w: the snapshot is of epoch %d of ledger %s", errAnew, h.Epoch, h.Ledger.UUID())
		}
		if s.loading == nil {
			s.loading = index.Begin(s.history, h.Position, int(min(h.Keys, mostReserved)))
		}
		if s.loading.Position() != h.Position {
			return false, fmt.Errorf("%w: the snapshot goes on at another position", wire.ErrMalformed)
		}
	case wire.KindOrganization:
		s.organizations = append(s.organizations, string(payload))
	case wire.KindScopes:
		scopes, err := wire.ReadScopes(payload)
		if err != nil {
			return false, err
		}
		s.scopes = append(s.scopes, s.loading.Scopes(scopes))
	case wire.KindKeys, wire.KindQuotaKeys:
		// Kept until a cursor says that they are complete: no key may come twice.
		if s.size += len(payload); s.size > mostPartBytes {
			return false, fmt.Errorf("%w: a part of more than %d bytes", wire.ErrMalformed, mostPartBytes)
		}
		n := len(s.part)
		if n < cap(s.part) {
			s.part = s.part[:n+1]
		} else {
			s.part = append(s.part, nil)
		}
		s.part[n] = append(append(s.part[n][:0], byte(kind)), payload...)
	case wire.KindCursor:
		if err := s.add(); err != nil {
			return false, err
		}
		s.cursor = string(payload)
	case wire.KindEnd:
		if err := s.add(); err != nil {
			return false, err
		}
		s.end, err = wire.ReadPosition(payload)
		return true, err
	default:
		return false, passOver(kind)
	}
	return false, nil
}

func passOver(kind wire.Kind) error {
	if kind.Ignorable() {
		return nil
	}
	return fmt.Errorf("%w: kind %d, which a newer client knows", wire.ErrMalformed, kind)
}

// add adds the keys of a part that is complete.
func (s *loading) add() error {
	var row index.Key
	for _, payload := range s.part {
		err := wire.ReadKeys(wire.Kind(payload[0]), payload[1:], func(k *wire.Key) error {
			if k.Organization >= uint64(len(s.organizations)) || k.Scopes >= uint64(len(s.scopes)) {
				return fmt.Errorf("%w: a key refers to what did not come", wire.ErrMalformed)
			}
			row = index.Key{
				Digest: k.Digest, ID: k.ID, Organization: s.organizations[k.Organization], Name: k.Name, Scopes: s.scopes[k.Scopes],
				Limit: k.Limit, Quota: k.Quota, ExpiresAt: k.ExpiresAt, Revoked: k.Revoked, Disabled: k.Disabled, Version: k.Version,
			}
			return s.loading.Add(&row)
		})
		if err != nil {
			return err
		}
	}
	s.part, s.size = s.part[:0], 0
	return nil
}

// follow applies what changes, until the stream ends.
func (v *Verifier) follow(ctx context.Context, x *index.Index, asked *asks) error {
	body, err := v.open(ctx, "changes", url.Values{"after": {number(x.Position())}})
	if err != nil {
		return err
	}
	defer body.Close()
	history := v.member.history
	frames := wire.NewReader(body)
	var batch []index.Event
	for begun := false; ; begun = true {
		kind, payload, err := frames.Next()
		switch {
		case errors.Is(err, wire.ErrMalformed):
			return err
		case err != nil:
			return unreachable(err)
		case begun == (kind == wire.KindHeader):
			return fmt.Errorf("%w: a header does not stand in the beginning", wire.ErrMalformed)
		}
		switch kind {
		case wire.KindHeader:
			h, err := wire.ReadHeader(payload)
			if err != nil {
				return err
			}
			if h.Ledger != history.Ledger || h.Epoch != history.Epoch {
				return fmt.Errorf("%w: the changes are of epoch %d of ledger %s", errAnew, h.Epoch, h.Ledger.UUID())
			}
		case wire.KindCreated, wire.KindQuotaCreated, wire.KindRevoked, wire.KindTouched, wire.KindErased, wire.KindPosition:
			change, err := wire.ReadChange(kind, payload)
			if err != nil {
				return err
			}
			batch = append(batch, index.Event{History: history, Position: change.Position, Version: change.Version, Event: change.Event})
		case wire.KindAsked:
			position, err := wire.ReadPosition(payload)
			if err != nil {
				return err
			}
			asked.add(position)
		case wire.KindAlive:
		default:
			if err := passOver(kind); err != nil {
				return err
			}
		}
		if len(batch) > 0 && (!frames.Buffered() || len(batch) == mostBatch) {
			if err := x.Apply(batch); err != nil {
				return err
			}
			clear(batch)
			batch = batch[:0]
		}
	}
}
