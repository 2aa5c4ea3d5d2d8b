package verification

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"testing"
	"time"

	"keyledger/domain"
	"keyledger/index"
)

// readCopy reads a stream in pieces of a size and tells its rows.
func readCopy(stream []byte, fields, piece int) (rows []string, err error) {
	r := copyReader{fields: fields, row: func(fields [][]byte) error {
		row := ""
		for _, f := range fields {
			row += fmt.Sprintf("%x(%v) ", f, f == nil)
		}
		rows = append(rows, row)
		return nil
	}}
	for len(stream) > 0 {
		n := min(piece, len(stream))
		if _, err := r.Write(stream[:n]); err != nil {
			return rows, err
		}
		stream = stream[n:]
	}
	return rows, r.end()
}

func TestTheCopyReaderTakesAnyPieces(t *testing.T) {
	t.Parallel()
	stream := copyHeader()
	for n := range 5 {
		key := domain.Key{ID: idOf(n), Organization: "org", Digest: secretOf(n), Name: "näme", Scopes: domain.Scopes{"read", "x:*"}, RateLimit: 5}
		if n%2 == 0 {
			key.ExpiresAt = time.Now()
		}
		stream = appendRow(stream, key, 1, 9)
	}
	stream = append(stream, 0xff, 0xff)
	want, err := readCopy(stream, copyFields, len(stream))
	if err != nil || len(want) != 5 {
		t.Fatalf("%d rows, %v", len(want), err)
	}
	for piece := 1; piece < len(stream); piece++ {
		got, err := readCopy(stream, copyFields, piece)
		if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("in pieces of %d: %d rows, %v", piece, len(got), err)
		}
	}
	for end := range stream {
		if _, err := readCopy(stream[:end], copyFields, 100); !errors.Is(err, errCopy) {
			t.Fatalf("broken off after %d bytes: %v", end, err)
		}
	}
}

func TestTheCopyReaderRefusesWhatIsMalformed(t *testing.T) {
	t.Parallel()
	row := func(body string) []byte {
		b, err := hex.DecodeString(body)
		if err != nil {
			t.Fatal(err)
		}
		return append(copyHeader(), b...)
	}
	flags := copyHeader()
	flags[12] = 1
	extension := copyHeader()
	extension[15] = 0x7f
	for name, stream := range map[string][]byte{
		"another signature":     []byte("PGCOPY\n\xff\r\n\x01\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff"),
		"unknown flags":         append(flags, 0xff, 0xff),
		"a huge extension":      append(extension, 0xff, 0xff),
		"too many fields":       row("000200000000"),
		"a negative length":     row("0001fffffffe"),
		"a huge field":          row("00017fffffff"),
		"bytes after the end":   row("ffff00"),
		"a count below the end": row("fffe"),
	} {
		if _, err := readCopy(stream, 1, 7); !errors.Is(err, errCopy) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, array := range map[string]string{
		"too short": "00", "two dimensions": "0000000200000000000000190000000100000001", "no elements, and bytes": "000000000000000000000019ff",
		"a null": "00000001000000010000001900000001000000 01ffffffff", "an element that is longer": "000000010000000000000019000000010000000100000005ff",
		"bytes after the last": "0000000100000000000000190000000000000001ff",
	} {
		b, _ := hex.DecodeString(array)
		if copyTexts(b, func([]byte) {}) {
			t.Errorf("an array with %s is accepted", name)
		}
	}
}

func FuzzCopyReader(f *testing.F) {
	f.Add(append(copyHeader(), 0xff, 0xff), 3)
	f.Add(append(appendRow(copyHeader(), domain.Key{ID: idOf(1), Organization: "o", Scopes: domain.Scopes{"read"}, Quota: domain.Quota{Limit: 1, Refill: domain.RefillDay}}, 1, 1), 0xff, 0xff), 5)
	l := index.Begin(index.History{}, 1<<62, 0) // one for all: it takes longer to make than a row
	f.Fuzz(func(t *testing.T, stream []byte, piece int) {
		whole, wholeErr := readCopy(stream, copyFields, max(len(stream), 1))
		pieces, piecesErr := readCopy(stream, copyFields, max(piece, 1))
		if (wholeErr == nil) != (piecesErr == nil) || wholeErr == nil && fmt.Sprint(whole) != fmt.Sprint(pieces) {
			t.Errorf("in one piece: %d rows, %v; in pieces of %d: %d rows, %v", len(whole), wholeErr, piece, len(pieces), piecesErr)
		}
		// Whatever it says, the rows make keys or are refused.
		r := copyReader{fields: copyFields, row: newRowLoader(l).row}
		if n, err := r.Write(stream); err == nil && n != len(stream) || len(r.held) > mostRowBytes {
			t.Errorf("%d of %d bytes taken, %d held: %v", n, len(stream), len(r.held), err)
		}
		_ = copyTexts(stream, func(text []byte) { _ = bytes.ToUpper(text) })
	})
}
