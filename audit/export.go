package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/mod/sumdb/tlog"

	"keyledger/domain"
	"keyledger/eventstore"
	"keyledger/projections/transparency"
)

// ExportOptions say what is exported.
type ExportOptions struct {
	Path  string
	Lanes []LaneRange // in the order in which they are written
	// Organization and Types choose events; empty: all. Of the others, the hashes of
	// their leaves are written.
	Organization domain.OrganizationID
	Types        []string
	DataKeys     bool // the wrapped data keys as well, for an import
	Progress     func(lane domain.Lane, done, total domain.Position)
}

// LaneRange is a part of a lane. From 0 is the first position that the database holds, To 0 the
// size of the newest checkpoint.
type LaneRange struct {
	Lane     domain.Lane
	From, To domain.Position
}

// frameEvents is how many events stand in one frame of zstd: as many as are lost
// when an export is broken off.
const frameEvents = 4096

// resumption is what stands beside a file that is not finished.
type resumption struct {
	Header   json.RawMessage `json:"header"`
	Bytes    int64           `json:"bytes"` // of whole frames
	Lane     domain.Lane     `json:"lane"`
	Position domain.Position `json:"position"` // the last that is written
}

// Export writes a part of the log to a file. It writes beside it first, and goes
// on there when an earlier export of the same was broken off. How many events
// were written is of this run alone.
func Export(ctx context.Context, pool *pgxpool.Pool, o ExportOptions) (written uint64, err error) {
	log := NewLog(pool)
	header, err := exportHead(ctx, pool, log, o)
	if err != nil {
		return 0, err
	}
	var first bytes.Buffer
	if err := encodeLine(&first, header); err != nil {
		return 0, fmt.Errorf("encode the header: %w", err)
	}
	x := &exporter{ExportOptions: o, partial: o.Path + ".partial", progress: o.Path + ".progress"}
	if err := x.open(first.Bytes()); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, x.file.Close()) }()
	if x.at.Position == 0 {
		if err := x.frame(first.Bytes(), domain.Lifecycle, 0); err != nil {
			return 0, err
		}
	}
	resumed := x.at.Position == 0
	for _, part := range header.Lanes {
		after := part.From - 1
		if !resumed {
			if part.Lane != x.at.Lane {
				continue // it was written before
			}
			resumed, after = true, x.at.Position
		}
		n, err := x.lane(ctx, log, part, after)
		written += n
		if err != nil {
			return written, err
		}
	}
	end, err := exportEnds(ctx, transparency.NewReader(pool, log), header)
	if err != nil {
		return written, err
	}
	var last bytes.Buffer
	if err := encodeLine(&last, end); err != nil {
		return written, fmt.Errorf("encode the end: %w", err)
	}
	if err := x.write(last.Bytes()); err != nil {
		return written, err
	}
	if err := os.Rename(x.partial, o.Path); err != nil {
		return written, fmt.Errorf("finish the export: %w", err)
	}
	return written, os.Remove(x.progress)
}

type exporter struct {
	ExportOptions
	partial, progress string
	file              *os.File
	at                resumption
}

// open begins a file, or goes on with one that an export of the very same has begun.
func (x *exporter) open(header []byte) error {
	text, err := os.ReadFile(x.progress)
	if err == nil && json.Unmarshal(text, &x.at) == nil && bytes.Equal(bytes.TrimSpace(x.at.Header), bytes.TrimSpace(header)) {
		if x.file, err = os.OpenFile(x.partial, os.O_RDWR, 0o600); err == nil {
			if err := x.file.Truncate(x.at.Bytes); err != nil {
				return fmt.Errorf("go on with the export: %w", err)
			}
			_, err = x.file.Seek(x.at.Bytes, 0)
			return err
		}
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("look for an export that was broken off: %w", err)
	}
	x.at = resumption{Header: bytes.TrimSpace(header)}
	if x.file, err = os.OpenFile(x.partial, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600); err != nil {
		return fmt.Errorf("write the export: %w", err)
	}
	return nil
}

// frame writes whole lines, and then notes that it did.
func (x *exporter) frame(lines []byte, lane domain.Lane, position domain.Position) error {
	if err := x.write(lines); err != nil {
		return err
	}
	x.at.Lane, x.at.Position = lane, position
	text, err := json.Marshal(x.at)
	if err != nil {
		return fmt.Errorf("note the progress: %w", err)
	}
	if err := os.WriteFile(x.progress+".new", text, 0o600); err != nil {
		return fmt.Errorf("note the progress: %w", err)
	}
	return os.Rename(x.progress+".new", x.progress)
}

func (x *exporter) write(lines []byte) error {
	encoder, err := zstd.NewWriter(nil, zstd.WithEncoderCRC(true), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return fmt.Errorf("compress: %w", err)
	}
	compressed := encoder.EncodeAll(lines, nil)
	if _, err := x.file.Write(compressed); err != nil {
		return fmt.Errorf("write the export: %w", err)
	}
	if err := x.file.Sync(); err != nil {
		return fmt.Errorf("write the export: %w", err)
	}
	x.at.Bytes += int64(len(compressed))
	return nil
}

func (x *exporter) lane(ctx context.Context, log *Log, part exportRange, after domain.Position) (written uint64, err error) {
	var lines bytes.Buffer
	pending := 0
	if after >= part.To {
		return 0, nil
	}
	for e, err := range log.Read(ctx, part.Lane, after) {
		if err != nil {
			return written, err
		}
		if e.Position != after+1 {
			return written, fmt.Errorf("%s %d is missing: run keyledger audit verify", part.Lane, after+1)
		}
		after = e.Position
		line := exportLine{Lane: e.Lane, Position: uint64(e.Position), Leaf: tlog.RecordHash(e.Envelope())}
		if x.wants(e) {
			line.Epoch, line.ID, line.Stream, line.Version, line.Organization = e.Epoch, e.ID.UUID(), string(e.Stream), e.Version, e.Organization
			line.Type, line.Schema, line.RecordedAt, line.Data, line.Metadata = e.Type, e.Schema, e.RecordedAt.Format(fileTime), e.Data, e.Metadata
			if e.Sealed != nil {
				line.Sealed = &e.Sealed
			}
			written++
		}
		if err := line.encode(&lines); err != nil {
			return written, fmt.Errorf("encode %s %d: %w", e.Lane, e.Position, err)
		}
		if pending++; pending == frameEvents || e.Position == part.To || lines.Len() > 32<<20 {
			if err := x.frame(lines.Bytes(), part.Lane, e.Position); err != nil {
				return written, err
			}
			lines.Reset()
			pending = 0
			if x.Progress != nil {
				x.Progress(part.Lane, e.Position, part.To)
			}
		}
		if e.Position == part.To {
			return written, nil
		}
	}
	return written, fmt.Errorf("%s ends at position %d, before %d: run keyledger audit verify", part.Lane, after, part.To)
}

func (x *exporter) wants(e eventstore.Recorded) bool {
	return (x.Organization == "" || e.Organization == x.Organization) && (len(x.Types) == 0 || slices.Contains(x.Types, e.Type))
}

// exportHead says what the file will hold. Everything in it is covered by a checkpoint.
func exportHead(ctx context.Context, pool *pgxpool.Pool, log *Log, o ExportOptions) (h exportHeader, err error) {
	s, err := look(ctx, pool)
	if err != nil {
		return h, err
	}
	defer s.close(ctx)
	h = exportHeader{Format: exportFormat, Ledger: s.ledger.UUID(), Epoch: s.heads[domain.Lifecycle].Epoch, Filtered: o.Organization != "" || len(o.Types) > 0}
	reader := transparency.NewReader(pool, log)
	for _, part := range o.Lanes {
		size := s.trees[part.Lane].Size
		if part.To == 0 {
			part.To = size
		}
		gone := domain.Position(0)
		if part.Lane == domain.Usage {
			if gone, err = Detached(ctx, s.tx); err != nil {
				return h, err
			}
		}
		if part.From == 0 {
			part.From = gone + 1
		}
		if part.From <= gone {
			return h, domain.Errorf(domain.CodeNotFound, "%s up to position %d was detached to archives", part.Lane, gone)
		}
		if part.To > size {
			return h, domain.Errorf(domain.CodeStale, "no checkpoint covers %s %d yet: the newest has the size %d", part.Lane, part.To, size)
		}
		if part.From > part.To+1 {
			return h, domain.Invalid("from", "is behind the end of the lane %s at %d", part.Lane, part.To)
		}
		edge, err := reader.Edge(ctx, part.Lane, part.From-1)
		if err != nil {
			return h, err
		}
		h.Lanes = append(h.Lanes, exportRange{Lane: part.Lane, From: part.From, To: part.To, Edge: edge})
	}
	if h.Epochs, err = s.epochs(ctx); err != nil {
		return h, err
	}
	erased, err := s.erased(ctx)
	for _, e := range erased {
		h.Erased = append(h.Erased, e.organization)
	}
	if err == nil && o.DataKeys {
		h.DataKeys, err = s.dataKeys(ctx)
	}
	return h, err
}

// erasure is what the database says of an organization that was erased.
type erasure struct {
	organization domain.OrganizationID
	position     uint64
	keys         int64 // data keys that there should not be
}

func (s *snapshot) erased(ctx context.Context) ([]erasure, error) {
	rows, err := s.tx.Query(ctx, `SELECT e.organization, e.position, (SELECT count(*) FROM data_keys k WHERE k.organization = e.organization)
		FROM erased_organizations e ORDER BY e.position`)
	if err != nil {
		return nil, eventstore.Wrap(err, "read what was erased")
	}
	defer rows.Close()
	var all []erasure
	for rows.Next() {
		var e erasure
		if err := rows.Scan((*string)(&e.organization), &e.position, &e.keys); err != nil {
			return nil, eventstore.Wrap(err, "read what was erased")
		}
		all = append(all, e)
	}
	return all, eventstore.Wrap(rows.Err(), "read what was erased")
}

func (s *snapshot) epochs(ctx context.Context) ([]exportEpoch, error) {
	rows, err := s.tx.Query(ctx, `SELECT epoch, lane, after, begun_at, reason FROM log_epochs ORDER BY epoch, lane`)
	if err != nil {
		return nil, eventstore.Wrap(err, "read the epochs")
	}
	defer rows.Close()
	var epochs []exportEpoch
	for rows.Next() {
		var e exportEpoch
		if err := rows.Scan(&e.Epoch, (*string)(&e.Lane), &e.After, &e.BegunAt, &e.Reason); err != nil {
			return nil, eventstore.Wrap(err, "read the epochs")
		}
		e.BegunAt = e.BegunAt.UTC()
		epochs = append(epochs, e)
	}
	return epochs, eventstore.Wrap(rows.Err(), "read the epochs")
}

func (s *snapshot) dataKeys(ctx context.Context) ([]exportDataKey, error) {
	rows, err := s.tx.Query(ctx, `SELECT organization, number, wrapped, created_at FROM data_keys ORDER BY organization, number`)
	if err != nil {
		return nil, eventstore.Wrap(err, "read the data keys")
	}
	defer rows.Close()
	var keys []exportDataKey
	for rows.Next() {
		var k exportDataKey
		if err := rows.Scan((*string)(&k.Organization), &k.Number, &k.Wrapped, &k.CreatedAt); err != nil {
			return nil, eventstore.Wrap(err, "read the data keys")
		}
		k.CreatedAt = k.CreatedAt.UTC()
		keys = append(keys, k)
	}
	return keys, eventstore.Wrap(rows.Err(), "read the data keys")
}

// exportEnds gives the checkpoints that the file carries.
func exportEnds(ctx context.Context, reader *transparency.Reader, h exportHeader) (exportEnd, error) {
	end := exportEnd{End: true, Lanes: []exportSignature{}}
	for _, part := range h.Lanes {
		if part.To == 0 {
			continue
		}
		signed, err := reader.CheckpointFrom(ctx, part.Lane, part.To)
		if err != nil {
			return end, err
		}
		c, err := transparency.Read(signed)
		if err != nil {
			return end, err
		}
		s := exportSignature{Lane: part.Lane, Checkpoint: string(signed), Proof: []tlog.Hash{}}
		if c.Size > part.To {
			proof, err := reader.Consistency(ctx, part.Lane, part.To, c.Size)
			if err != nil {
				return end, err
			}
			for _, h := range proof {
				s.Proof = append(s.Proof, h)
			}
		}
		end.Lanes = append(end.Lanes, s)
	}
	return end, nil
}
