package audit

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/mod/sumdb/tlog"
)

// columns are those of an event, in the order in which they are read.
const (
	columnsSQL  = `position, epoch, id, stream, version, organization, type, schema, recorded_at, data, metadata, sealed`
	columnCount = 12
)

// copySplitter cuts what COPY ... TO STDOUT (FORMAT binary) writes into pieces of
// whole rows. It looks at nothing but lengths, since it stands in line with the connection.
type copySplitter struct {
	emit   func(piece) error
	hashes leavesOf
	held   []byte
	begun  bool
	ended  bool
	scan   int // up to where held is known to be whole rows
}

// pieceBytes is about how much one piece holds.
const pieceBytes = 256 << 10

var (
	copySignature = []byte("PGCOPY\n\xff\r\n\x00")
	errCopy       = errors.New("the binary COPY stream is malformed")
)

// Write takes the next bytes.
func (s *copySplitter) Write(b []byte) (int, error) {
	s.held = append(s.held, b...)
	if !s.begun {
		header := len(copySignature) + 8
		if len(s.held) < header {
			return len(b), nil
		}
		if string(s.held[:len(copySignature)]) != string(copySignature) || binary.BigEndian.Uint32(s.held[header-4:]) != 0 {
			return 0, fmt.Errorf("%w: its header", errCopy)
		}
		s.held, s.begun = s.held[header:], true
	}
	for !s.ended {
		end, ok, err := s.row(s.scan)
		if err != nil {
			return 0, err
		}
		if !ok {
			break
		}
		s.scan = end
	}
	// The last piece may be empty: whoever takes it learns of the leaves that it stands for.
	if s.scan >= pieceBytes || s.ended {
		if err := s.flush(); err != nil {
			return 0, err
		}
	}
	return len(b), nil
}

// row finds the end of the row that begins at a place.
func (s *copySplitter) row(at int) (end int, ok bool, err error) {
	b := s.held
	if len(b)-at < 2 {
		return 0, false, nil
	}
	switch count := int16(binary.BigEndian.Uint16(b[at:])); count {
	case -1:
		s.ended = true
		return 0, false, nil
	case columnCount:
	default:
		return 0, false, fmt.Errorf("%w: a row of %d fields", errCopy, count)
	}
	at += 2
	for range columnCount {
		if len(b)-at < 4 {
			return 0, false, nil
		}
		length := int32(binary.BigEndian.Uint32(b[at:]))
		at += 4
		if length > 0 {
			if len(b)-at < int(length) {
				return 0, false, nil
			}
			at += int(length)
		}
	}
	return at, true, nil
}

// flush hands the whole rows on, and keeps the rest.
func (s *copySplitter) flush() error {
	rows := s.held[:s.scan:s.scan]
	s.held = append(make([]byte, 0, pieceBytes+pieceBytes/4), s.held[s.scan:]...)
	s.scan = 0
	return s.emit(&copyPiece{rows, s.hashes})
}

func (s *copySplitter) end() error {
	if !s.ended {
		return fmt.Errorf("%w: it broke off", errCopy)
	}
	return nil
}

// copyPiece is a run of whole rows.
type copyPiece struct {
	bytes  []byte
	hashes leavesOf
}

func (p *copyPiece) leaves() leavesOf { return p.hashes }

// postgresEpoch is 2000-01-01 in Unix microseconds.
const postgresEpoch = 946_684_800_000_000

func (p *copyPiece) rows(into []row) ([]row, error) {
	for b := p.bytes; len(b) > 0; {
		b = b[2:]
		var fields [columnCount][]byte
		for i := range fields {
			length := int32(binary.BigEndian.Uint32(b))
			b = b[4:]
			if length >= 0 {
				fields[i], b = b[:length:length], b[length:]
			}
		}
		for i, size := range [columnCount]int{0: 8, 1: 4, 2: 16, 4: 8, 7: 2, 8: 8} {
			if size > 0 && len(fields[i]) != size {
				return nil, fmt.Errorf("%w: column %d has %d bytes", errCopy, i+1, len(fields[i]))
			}
		}
		into = append(into, row{
			position: binary.BigEndian.Uint64(fields[0]), epoch: binary.BigEndian.Uint32(fields[1]), id: [16]byte(fields[2]),
			stream: fields[3], version: binary.BigEndian.Uint64(fields[4]), organization: fields[5], kind: fields[6],
			schema: binary.BigEndian.Uint16(fields[7]), at: int64(binary.BigEndian.Uint64(fields[8])) + postgresEpoch,
			data: fields[9], metadata: fields[10], sealed: fields[11],
		})
	}
	return into, nil
}

// storedLeaves are the hashes of a run of leaves, as the tiles have them.
type storedLeaves struct {
	first  uint64 // the position of the first
	hashes []byte
	known  []bool // by tile: whether it is there
	size   uint64 // of the tree
}

func (s *storedLeaves) leaf(position uint64) (tlog.Hash, bool) {
	i := position - s.first
	if position < s.first || position > s.size || i/tileWidth >= uint64(len(s.known)) || !s.known[i/tileWidth] {
		return tlog.Hash{}, false
	}
	return tlog.Hash(s.hashes[i*tlog.HashSize:]), true
}

const tileWidth = 256
