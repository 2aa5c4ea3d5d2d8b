package audit

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"time"
	"unicode/utf8"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/mod/sumdb/tlog"

	"keyledger/domain"
	"keyledger/projections/transparency"
)

// exportFormat names the format of exported files, which never changes under it.
const exportFormat = "keyledger-export/1"

// An exported file is lines of JSON, compressed with zstd: a header; the events of
// each lane in order, each with the hash of its leaf, or that hash alone where the event was not asked
// for; and an end that holds a checkpoint of each lane. So it can be verified
// alone, whatever part of the log it is.
type exportHeader struct {
	Format   string          `json:"format"`
	Ledger   string          `json:"ledger"`
	Epoch    uint32          `json:"epoch"`
	Filtered bool            `json:"filtered"` // some events are left out
	Lanes    []exportRange   `json:"lanes"`
	DataKeys []exportDataKey `json:"dataKeys,omitempty"` // still wrapped by the master key
	// Erased are the organizations whose sealed sections nobody can open any more.
	Erased []domain.OrganizationID `json:"erased,omitempty"`
	Epochs []exportEpoch           `json:"epochs"`
}

// exportRange is the part of a lane that the file holds.
type exportRange struct {
	Lane domain.Lane     `json:"lane"`
	From domain.Position `json:"from"`
	To   domain.Position `json:"to"`
	Edge []tlog.Hash     `json:"edge"` // the full subtrees before From, largest first
}

type exportDataKey struct {
	Organization domain.OrganizationID `json:"organization"`
	Number       int32                 `json:"number"`
	Wrapped      []byte                `json:"wrapped"`
	CreatedAt    time.Time             `json:"createdAt"`
}

type exportEpoch struct {
	Epoch   int32       `json:"epoch"`
	Lane    domain.Lane `json:"lane"`
	After   int64       `json:"after"`
	BegunAt time.Time   `json:"begunAt"`
	Reason  string      `json:"reason"`
}

// exportLine is one event. The lane stands first.
type exportLine struct {
	Lane          domain.Lane           `json:"lane"`
	Position      uint64                `json:"position"`
	Epoch         uint32                `json:"epoch,omitempty"`
	ID            string                `json:"id,omitempty"`
	Stream        string                `json:"stream,omitempty"`
	Version       uint64                `json:"version,omitempty"`
	Organization  domain.OrganizationID `json:"organization,omitempty"`
	Type          string                `json:"type,omitempty"`
	Schema        uint16                `json:"schema,omitempty"`
	RecordedAt    string                `json:"recordedAt,omitempty"`
	Data          json.RawMessage       `json:"data,omitempty"`
	DataBytes     []byte                `json:"dataBytes,omitempty"` // where it is not canonical JSON
	Metadata      json.RawMessage       `json:"metadata,omitempty"`
	MetadataBytes []byte                `json:"metadataBytes,omitempty"`
	Sealed        *[]byte               `json:"sealed,omitempty"`
	Leaf          tlog.Hash             `json:"leaf"`
}

type exportEnd struct {
	End   bool              `json:"end"`
	Lanes []exportSignature `json:"lanes"`
}

// exportSignature is a checkpoint at or behind the end of a lane's part, and the
// proof that it continues that end.
type exportSignature struct {
	Lane       domain.Lane `json:"lane"`
	Checkpoint string      `json:"checkpoint"`
	Proof      []tlog.Hash `json:"proof"`
}

const (
	fileTime    = "2006-01-02T15:04:05.000000Z"
	mostLine    = 64 << 20
	pieceOfFile = 128 // lines
)

// encode writes a line. JSON that would not come back byte for byte is written as
// bytes.
func (l *exportLine) encode(buffer *bytes.Buffer) error {
	if l.DataBytes == nil {
		l.Data, l.DataBytes = rawOrBytes(l.Data)
	}
	if l.MetadataBytes == nil {
		l.Metadata, l.MetadataBytes = rawOrBytes(l.Metadata)
	}
	return encodeLine(buffer, l)
}

func encodeLine(buffer *bytes.Buffer, v any) error {
	encoder := json.NewEncoder(buffer)
	encoder.SetEscapeHTML(false)
	return encoder.Encode(v)
}

func rawOrBytes(text []byte) (json.RawMessage, []byte) {
	var compact bytes.Buffer
	if text == nil || utf8.Valid(text) && json.Compact(&compact, text) == nil && bytes.Equal(compact.Bytes(), text) {
		return text, nil
	}
	return nil, text
}

// row reads a line back.
func (l *exportLine) row() row {
	r := row{
		position: l.Position, epoch: l.Epoch, stream: []byte(l.Stream), version: l.Version, organization: []byte(l.Organization), kind: []byte(l.Type),
		schema: l.Schema, data: l.Data, metadata: l.Metadata, stated: l.Leaf, hasStated: true, left: l.Type == "" && l.Stream == "" && l.ID == "",
	}
	if r.left {
		return r
	}
	if l.Data == nil {
		r.data = l.DataBytes
	}
	if l.Metadata == nil {
		r.metadata = l.MetadataBytes
	}
	if l.Sealed != nil {
		if r.sealed = *l.Sealed; r.sealed == nil {
			r.sealed = []byte{}
		}
	}
	at, err := time.Parse(fileTime, l.RecordedAt)
	// There is one way to write a time and an id, too.
	if err != nil || at.Format(fileTime) != l.RecordedAt || !parseUUID([]byte(l.ID), &r.id) || domain.ID(r.id).UUID() != l.ID {
		return row{position: l.Position, stated: l.Leaf, hasStated: true, damage: "the line cannot be read"}
	}
	r.at = at.UnixMicro()
	return r
}

// linePiece is a run of lines of one lane.
type linePiece struct{ lines [][]byte }

func (p *linePiece) leaves() leavesOf { return nil }

func (p *linePiece) rows(into []row) ([]row, error) {
	var again bytes.Buffer
	for _, text := range p.lines {
		var l exportLine
		if err := strict(text, &l); err != nil {
			into = append(into, row{damage: "a line cannot be read"})
			continue
		}
		r := l.row()
		// There is one way to write a line: what is written otherwise was changed.
		again.Reset()
		if err := l.encode(&again); err != nil || !bytes.Equal(bytes.TrimSuffix(again.Bytes(), []byte("\n")), text) {
			r = row{position: l.Position, stated: l.Leaf, hasStated: true, damage: "the line is not written as an export writes it"}
		}
		into = append(into, r)
	}
	return into, nil
}

func strict(text []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	return d.Decode(v)
}

// exported reads a file line by line.
type exported struct {
	header  exportHeader
	decoder *zstd.Decoder
	lines   *bufio.Reader
	peeked  []byte
}

func openExport(r io.Reader) (*exported, error) {
	decoder, err := zstd.NewReader(r)
	if err != nil {
		return nil, fmt.Errorf("read the file: %w", err)
	}
	e := &exported{decoder: decoder, lines: bufio.NewReaderSize(decoder, 1<<20)}
	first, err := e.next()
	if err == nil {
		err = strict(first, &e.header)
	}
	if err != nil || e.header.Format != exportFormat {
		decoder.Close()
		return nil, fmt.Errorf("this is no file that keyledger audit export has written (%w)", errors.Join(err, errors.New(e.header.Format)))
	}
	return e, nil
}

func (e *exported) close() { e.decoder.Close() }

// next gives a line, io.EOF at the end. The line is the caller's.
func (e *exported) next() ([]byte, error) {
	if line := e.peeked; line != nil {
		e.peeked = nil
		return line, nil
	}
	var line []byte
	for {
		part, err := e.lines.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case err == nil:
			return line[:len(line)-1], nil
		case errors.Is(err, bufio.ErrBufferFull) && len(line) < mostLine:
			continue
		case errors.Is(err, io.EOF) && len(line) > 0:
			return nil, io.ErrUnexpectedEOF
		}
		return nil, err
	}
}

// lane hands on the lines of a lane, and stops before the first one of something else.
func (e *exported) lane(lane domain.Lane, emit func(piece) error) error {
	prefix := []byte(`{"lane":"` + string(lane) + `",`)
	p := &linePiece{}
	for {
		line, err := e.next()
		if err != nil || !bytes.HasPrefix(line, prefix) {
			e.peeked = line
			if len(p.lines) > 0 {
				if err := emit(p); err != nil {
					return err
				}
			}
			return err
		}
		if p.lines = append(p.lines, line); len(p.lines) == pieceOfFile {
			if err := emit(p); err != nil {
				return err
			}
			p = &linePiece{}
		}
	}
}

// VerifyFile verifies an exported file alone. Its error says that it could not look.
func VerifyFile(ctx context.Context, r io.Reader, o Options) (*Report, error) {
	started := time.Now()
	e, err := openExport(r)
	if err != nil {
		return nil, err
	}
	defer e.close()
	ledger, err := domain.ParseID(e.header.Ledger)
	if err != nil {
		return nil, fmt.Errorf("the file names no ledger: %w", err)
	}
	report := newReport()
	report.Ledger, report.Epoch, report.Unsigned = ledger.UUID(), e.header.Epoch, len(o.Keys) == 0
	chains := map[domain.Lane]*chain{}
	for _, part := range e.header.Lanes {
		c := newChain(part.Lane, report)
		c.epoch, c.loose = e.header.Epoch, e.header.Filtered || part.From > 1
		c.next, c.size, c.edge = uint64(part.From), uint64(part.From-1), part.Edge
		if part.From < 1 || len(part.Edge) != bits.OnesCount64(c.size) || chains[part.Lane] != nil {
			return nil, fmt.Errorf("the file's header is damaged")
		}
		chains[part.Lane] = c
	}
	err = o.trust(ledger, func(lane domain.Lane, t expectation) {
		c := chains[lane]
		if c == nil || t.size <= c.size || t.size > uint64(rangeOf(e.header, lane).To) {
			report.Skip(fmt.Sprintf("%s: its size %d of %s is not in the file", t.source, t.size, lane))
			return
		}
		c.expect(t)
	})
	if err != nil {
		return nil, err
	}
	for _, part := range e.header.Lanes {
		c := chains[part.Lane]
		if lifecycle := chains[domain.Lifecycle]; lifecycle != nil && part.Lane == domain.Usage {
			c.watch = newWatch(lifecycle.revocations, o.Skew)
		}
		lane := LaneReport{Lane: part.Lane, Through: part.To, Checkpoints: len(c.checkpoints)}
		var damage error
		err := pipe(ctx, part.Lane, ledger, c.watch, func(_ context.Context, emit func(piece) error) error {
			damage = e.lane(part.Lane, emit)
			return ctx.Err()
		}, func(events []checked, _ leavesOf) {
			for i := range events {
				c.add(&events[i], nil)
				lane.Events++
			}
			if o.Progress != nil {
				o.Progress(part.Lane, domain.Position(c.next-1), part.To)
			}
		})
		if err != nil {
			return nil, err
		}
		if damage != nil {
			c.fault(c.next, "the file ends here, or cannot be read any further: %v", damage)
			report.Lanes = append(report.Lanes, lane)
			report.finish(started)
			return report, nil
		}
		c.end(uint64(part.To), nil)
		report.Lanes = append(report.Lanes, lane)
	}
	e.verifyEnd(chains, report, o)
	report.finish(started)
	return report, nil
}

func rangeOf(h exportHeader, lane domain.Lane) exportRange {
	for _, part := range h.Lanes {
		if part.Lane == lane {
			return part
		}
	}
	return exportRange{}
}

// verifyEnd holds what the events came to against the checkpoints that the file
// carries.
func (e *exported) verifyEnd(chains map[domain.Lane]*chain, report *Report, o Options) {
	var end exportEnd
	line, err := e.next()
	if err == nil {
		err = strict(line, &end)
	}
	if err != nil || !end.End {
		report.add(Fault{Lane: e.header.Lanes[len(e.header.Lanes)-1].Lane, Fault: "the file has no end: it is not complete"})
		return
	}
	if extra, err := e.next(); !errors.Is(err, io.EOF) {
		report.add(Fault{Lane: domain.Lifecycle, Fault: fmt.Sprintf("there is more behind the file's end (%d bytes, %v)", len(extra), err)})
	}
	signed := map[domain.Lane]bool{}
	for _, s := range end.Lanes {
		c := chains[s.Lane]
		if c == nil {
			continue
		}
		signed[s.Lane] = true
		checkpoint, err := o.open([]byte(s.Checkpoint))
		switch {
		case err != nil:
			c.fault(0, "the file's checkpoint: %v", err)
			continue
		case checkpoint.Ledger.UUID() != report.Ledger || checkpoint.Lane != s.Lane:
			c.fault(0, "the file's checkpoint is that of %s", checkpoint.Origin)
			continue
		}
		if missing := transparency.Missing([]byte(s.Checkpoint), o.Witnesses); missing != "" {
			c.fault(uint64(checkpoint.Size), "the witness %s has not cosigned the file's checkpoint", missing)
		}
		to := uint64(rangeOf(e.header, s.Lane).To)
		for i := range report.Lanes {
			if report.Lanes[i].Lane == s.Lane {
				report.Lanes[i].Covered, report.Lanes[i].Checkpoints = domain.Position(to), report.Lanes[i].Checkpoints+1
			}
		}
		if c.broken || c.size != to {
			continue // said above
		}
		if err := continues(checkpoint, to, c.root(), s.Proof); err != nil {
			c.fault(to, "the tree of the file is not the one of its checkpoint: %v", err)
		}
	}
	for lane, c := range chains {
		if !signed[lane] && rangeOf(e.header, lane).To > 0 {
			c.fault(0, "the file has no checkpoint of the lane")
		}
	}
}

// continues says whether a checkpoint continues a tree.
func continues(c transparency.Checkpoint, size uint64, root tlog.Hash, proof tlog.TreeProof) error {
	switch {
	case uint64(c.Size) == size:
		if root != c.Root {
			return errors.New("it has another root")
		}
		return nil
	case size == 0:
		return nil
	case uint64(c.Size) < size:
		return fmt.Errorf("its size is %d", c.Size)
	}
	return tlog.CheckTree(proof, int64(c.Size), c.Root, int64(size), root)
}
