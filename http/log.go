package http

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"math"
	"strconv"
	"strings"

	"github.com/gofiber/fiber/v2"

	"keyledger/domain"
)

// TransparencyLog is the Merkle tree over each lane and what was signed of it.
// What nothing covers is CodeNotFound.
type TransparencyLog interface {
	// Checkpoint is the newest one, as a signed note.
	Checkpoint(ctx context.Context, lane domain.Lane) ([]byte, error)
	Tile(ctx context.Context, lane domain.Lane, level int, number int64, width int) ([]byte, error)
	// Entries are the canonical envelopes that a tile of level 0 stands for.
	Entries(ctx context.Context, lane domain.Lane, number int64, width int) ([][]byte, error)
	Inclusion(ctx context.Context, lane domain.Lane, position, size domain.Position) (leaf [32]byte, proof [][32]byte, err error)
	Consistency(ctx context.Context, lane domain.Lane, from, to domain.Position) ([][32]byte, error)
}

const (
	fullTile    = 256
	mostLevel   = 7 // 2^63 leaves
	immutable   = "public, max-age=31536000, immutable"
	octetStream = fiber.MIMEOctetStream
	plainText   = fiber.MIMETextPlainCharsetUTF8
)

// logRoutes are those of C2SP tlog-tiles below /api/v1/log/<lane>, and proofs for
// those who do not want to put them together themselves. Hashes are public; entries are for
// keys of the service with the scope system:audit.
func (s *Server) logRoutes() []*route {
	if s.options.Log == nil {
		return nil
	}
	const prefix = "/api/v1/log/:lane"
	get := func(pattern string, handle func(*request) error) *route {
		return &route{method: fiber.MethodGet, pattern: prefix + pattern, dialect: native, handle: handle}
	}
	return []*route{
		get("/checkpoint", s.logCheckpoint),
		get("/proof/inclusion", s.logInclusion),
		get("/proof/consistency", s.logConsistency),
		get("/entries/*", s.logBundle),
		get("/tile/entries/*", s.logEntries),
		get("/tile/:level/*", s.logTile),
	}
}

func (r *request) lane() (domain.Lane, error) {
	switch lane := domain.Lane(r.param("lane")); lane {
	case domain.Lifecycle, domain.Usage:
		return lane, nil
	}
	return "", domain.Errorf(domain.CodeNotFound, "no such lane")
}

func (s *Server) logCheckpoint(r *request) error {
	lane, err := r.lane()
	if err != nil {
		return err
	}
	signed, err := s.options.Log.Checkpoint(r.ctx, lane)
	if err != nil {
		return err
	}
	r.set(fiber.HeaderCacheControl, "no-cache")
	r.answer(fiber.StatusOK, plainText, signed)
	return nil
}

func (s *Server) logTile(r *request) error {
	lane, err := r.lane()
	if err != nil {
		return err
	}
	level, err := strconv.ParseUint(r.param("level"), 10, 8)
	number, width, ok := parseTile(r.param("*"))
	if err != nil || !ok || level > mostLevel || strconv.FormatUint(level, 10) != r.param("level") {
		return domain.Errorf(domain.CodeNotFound, "no such tile")
	}
	hashes, err := s.options.Log.Tile(r.ctx, lane, int(level), number, width)
	if err != nil {
		return err
	}
	r.set(fiber.HeaderCacheControl, immutable)
	r.answer(fiber.StatusOK, octetStream, hashes)
	return nil
}

// logEntries serves bundles as C2SP tlog-tiles encodes them: each entry behind its length, a
// big-endian uint16. An event of thousands of uses does not fit that; a bundle
// with such an entry is only to be had from logBundle.
func (s *Server) logEntries(r *request) error {
	return s.bundle(r, func(body, entry []byte) ([]byte, error) {
		if len(entry) > math.MaxUint16 {
			return nil, domain.Errorf(domain.CodeNotFound, "an entry of this bundle is larger than this encoding allows: read it below /entries instead of /tile/entries")
		}
		return append(binary.BigEndian.AppendUint16(body, uint16(len(entry))), entry...), nil
	})
}

// logBundle serves the same bundles with lengths of 32 bits.
func (s *Server) logBundle(r *request) error {
	return s.bundle(r, func(body, entry []byte) ([]byte, error) {
		return append(binary.BigEndian.AppendUint32(body, uint32(len(entry))), entry...), nil
	})
}

func (s *Server) bundle(r *request, encode func(body, entry []byte) ([]byte, error)) error {
	lane, err := r.lane()
	if err != nil {
		return err
	}
	if _, err := s.admitSystem(r, domain.ScopeSystemAudit); err != nil {
		return err
	}
	number, width, ok := parseTile(r.param("*"))
	if !ok {
		return domain.Errorf(domain.CodeNotFound, "no such bundle of entries")
	}
	entries, err := s.options.Log.Entries(r.ctx, lane, number, width)
	if err != nil {
		return err
	}
	var body []byte
	for _, entry := range entries {
		if body, err = encode(body, entry); err != nil {
			return err
		}
	}
	r.set(fiber.HeaderCacheControl, "private, max-age=31536000, immutable")
	r.answer(fiber.StatusOK, octetStream, body)
	return nil
}

func (s *Server) logInclusion(r *request) error {
	lane, err := r.lane()
	if err != nil {
		return err
	}
	position, err := r.position("position")
	if err != nil {
		return err
	}
	size, err := r.position("size")
	if err != nil {
		return err
	}
	leaf, proof, err := s.options.Log.Inclusion(r.ctx, lane, position, size)
	if err != nil {
		return err
	}
	body := append([]byte(`{"lane":"`), lane...)
	body = append(body, `","position":`...)
	body = strconv.AppendUint(body, uint64(position), 10)
	body = append(body, `,"size":`...)
	body = strconv.AppendUint(body, uint64(size), 10)
	body = append(body, `,"leafHash":"`...)
	body = base64.StdEncoding.AppendEncode(body, leaf[:])
	body = append(body, `","proof":`...)
	return r.proof(body, proof)
}

func (s *Server) logConsistency(r *request) error {
	lane, err := r.lane()
	if err != nil {
		return err
	}
	from, err := r.position("from")
	if err != nil {
		return err
	}
	to, err := r.position("to")
	if err != nil {
		return err
	}
	proof, err := s.options.Log.Consistency(r.ctx, lane, from, to)
	if err != nil {
		return err
	}
	body := append([]byte(`{"lane":"`), lane...)
	body = append(body, `","from":`...)
	body = strconv.AppendUint(body, uint64(from), 10)
	body = append(body, `,"to":`...)
	body = strconv.AppendUint(body, uint64(to), 10)
	body = append(body, `,"proof":`...)
	return r.proof(body, proof)
}

func (r *request) proof(body []byte, proof [][32]byte) error {
	body = append(body, '[')
	for i := range proof {
		if i > 0 {
			body = append(body, ',')
		}
		body = append(base64.StdEncoding.AppendEncode(append(body, '"'), proof[i][:]), '"')
	}
	r.set(fiber.HeaderCacheControl, immutable)
	r.answer(fiber.StatusOK, fiber.MIMEApplicationJSON, append(body, "]}"...))
	return nil
}

// position reads a query parameter that must be there.
func (r *request) position(name string) (domain.Position, error) {
	text, _, err := r.query(name)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(text, 10, 62)
	if err != nil || n == 0 {
		return 0, domain.Invalid(name, "must be a position: a number from 1 on")
	}
	return domain.Position(n), nil
}

// parseTile reads the end of a tile's path, <N>[.p/<W>]: the number in groups of
// three digits, of which all but the last begin with an x.
func parseTile(path string) (number int64, width int, ok bool) {
	width = fullTile
	path, partial, found := strings.Cut(path, ".p/")
	if found {
		w, err := strconv.ParseUint(partial, 10, 9)
		if err != nil || w < 1 || w >= fullTile || strconv.FormatUint(w, 10) != partial {
			return 0, 0, false
		}
		width = int(w)
	}
	groups := strings.Split(path, "/")
	for i, group := range groups {
		digits, x := strings.CutPrefix(group, "x")
		n, err := strconv.ParseUint(digits, 10, 10)
		if err != nil || len(digits) != 3 || x != (i < len(groups)-1) || number > math.MaxInt64/2000 {
			return 0, 0, false
		}
		number = number*1000 + int64(n)
	}
	return number, width, len(groups) == 1 || groups[0] != "x000"
}
