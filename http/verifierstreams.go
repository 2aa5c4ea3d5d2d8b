package http

import (
	"context"
	"errors"
	"io"
	"strconv"
	"time"

	"github.com/gofiber/fiber/v2"

	"keyledger/domain"
	"keyledger/index/wire"
)

const (
	// mostVerifierStreams bounds the verifiers that follow one server. Each costs a
	// connection and two goroutines.
	mostVerifierStreams = 8192
	// mostSnapshots bounds those that are on their way. Each costs some megabytes, and all
	// of a processor that it can get; who comes later gets it sooner by waiting.
	mostSnapshots = 16
	// verifierAlive is between two signs of life. Who misses several reads elsewhere.
	verifierAlive = time.Second
)

// verifierSnapshot answers GET /api/v1/verifiers/snapshot.
func (s *Server) verifierSnapshot(r *request) error {
	if _, err := s.admitVerifying(r); err != nil {
		return err
	}
	after, _, err := r.query("after")
	if err != nil {
		return err
	}
	next, stop, err := s.options.KeyFeed.Snapshot(after)
	if err != nil {
		return err
	}
	r.set(fiber.HeaderContentEncoding, "zstd")
	return s.answerStreamAmong(s.snapshots, r, wire.MediaType, domain.SystemOrganization, next, stop)
}

// verifierChanges answers GET /api/v1/verifiers/changes.
func (s *Server) verifierChanges(r *request) error {
	who, err := s.admitVerifying(r)
	if err != nil {
		return err
	}
	text, _, err := r.query("after")
	if err != nil {
		return err
	}
	after, err := strconv.ParseUint(text, 10, 63)
	if err != nil {
		return domain.Invalid("after", "must be the position behind which changes are wanted")
	}
	f := &changes{server: s, who: who, after: domain.Position(after), parts: make(chan part)}
	return s.answerStreamAmong(s.verifierStreams, r, wire.MediaType, domain.SystemOrganization, f.next, func() {})
}

// changes is one open stream to a verifier.
type changes struct {
	server *Server
	who    credential
	after  domain.Position
	parts  chan part
	begun  bool
	asked  domain.Position
}

type part struct {
	frames []byte
	err    error
}

// next gives what has changed, what is asked, or a sign of life. The log is read by a goroutine of
// its own, and only as fast as the verifier takes it.
func (f *changes) next(ctx context.Context) ([]byte, error) {
	if !f.begun {
		f.begun = true
		go f.read(ctx)
		select { // the header comes first
		case p := <-f.parts:
			return f.give(ctx, p)
		case <-ctx.Done():
			return nil, io.EOF
		}
	}
	alive := time.NewTimer(verifierAlive)
	defer alive.Stop()
	for {
		asked, more := f.server.options.Verifiers.Asked()
		// What is asked follows the changes that it asks about, where those are here.
		select {
		case p := <-f.parts:
			return f.give(ctx, p)
		default:
		}
		if asked > f.asked {
			f.asked = asked
			return wire.AppendAsked(nil, asked), nil
		}
		select {
		case <-ctx.Done():
			return nil, io.EOF
		case p := <-f.parts:
			return f.give(ctx, p)
		case <-more:
		case <-alive.C:
			if !f.welcome() {
				return nil, io.EOF
			}
			return wire.AppendAlive(nil), nil
		}
	}
}

func (f *changes) give(ctx context.Context, p part) ([]byte, error) {
	if p.err == nil {
		return p.frames, nil
	}
	if ctx.Err() != nil {
		return nil, io.EOF
	}
	if domain.CodeOf(p.err) != domain.CodeUnavailable {
		f.server.logger.Error("a verifier's changes were broken off", "error", p.err)
	}
	return nil, p.err
}

// read ends with the stream's context.
func (f *changes) read(ctx context.Context) {
	for frames, err := range f.server.options.KeyFeed.Changes(ctx, f.after) {
		select {
		case f.parts <- part{append([]byte(nil), frames...), err}:
		case <-ctx.Done():
			return
		}
		if err != nil {
			return
		}
	}
	select {
	case f.parts <- part{nil, errLogEnded}:
	case <-ctx.Done():
	}
}

var errLogEnded = domain.Unavailable(errors.New("the log ended"))

// welcome says whether the key would still be admitted. Not to know does not end a
// stream: its verifier has a lease of its own.
func (f *changes) welcome() bool {
	verdict, err := f.server.verifier.Verify(domain.Verification{
		Digest: f.who.digest, Required: domain.Scopes{domain.ScopeSystemVerify}, Now: f.server.clock(), Silent: true,
	})
	return err != nil || verdict.Outcome == domain.OutcomeValid
}
