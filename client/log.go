package client

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"keyledger/domain"
)

// Lane is one of the log's two sequences, each with positions of its own.
type Lane = domain.Lane

// The lanes.
const (
	Lifecycle Lane = domain.Lifecycle
	Uses      Lane = domain.Usage
)

// Checkpoint gives the newest signed checkpoint of a lane: a signed note as C2SP
// tlog-checkpoint describes it. Keep one elsewhere from time to time, and have
// keyledger audit verify hold the log against it. It needs no credential.
func (c *Client) Checkpoint(ctx context.Context, lane Lane) ([]byte, error) {
	return c.raw(ctx, "checkpoint", lane, nil)
}

// Inclusion is the way from the leaf of a position to the root of a tree.
type Inclusion struct {
	Position Position `json:"position"`
	Size     Position `json:"size"`
	LeafHash []byte   `json:"leafHash"`
	Proof    [][]byte `json:"proof"`
}

// ProveInclusion proves that a tree of a size holds the event of a position.
func (c *Client) ProveInclusion(ctx context.Context, lane Lane, position, size Position) (Inclusion, error) {
	var p Inclusion
	_, err := c.ask(ctx, call{
		method: http.MethodGet, path: []string{"api", "v1", "log", string(lane), "proof", "inclusion"},
		query: url.Values{"position": {number(position)}, "size": {number(size)}},
	}, &p)
	return p, err
}

// ProveConsistency proves that one tree begins with another.
func (c *Client) ProveConsistency(ctx context.Context, lane Lane, from, to Position) ([][]byte, error) {
	var p struct {
		Proof [][]byte `json:"proof"`
	}
	_, err := c.ask(ctx, call{
		method: http.MethodGet, path: []string{"api", "v1", "log", string(lane), "proof", "consistency"},
		query: url.Values{"from": {number(from)}, "to": {number(to)}},
	}, &p)
	return p.Proof, err
}

// Tile gives the hashes of a tile as C2SP tlog-tiles lays them out. width is 256, or
// less for the last one of its level.
func (c *Client) Tile(ctx context.Context, lane Lane, level int, n uint64, width int) ([]byte, error) {
	return c.raw(ctx, "tile/"+strconv.Itoa(level)+"/"+tilePath(n, width), lane, nil)
}

// Entries gives the canonical envelopes that a tile of level 0 stands for: those of
// the positions from 256*n+1 on. It needs a key of the service with the scope system:audit.
func (c *Client) Entries(ctx context.Context, lane Lane, n uint64, width int) ([][]byte, error) {
	body, err := c.raw(ctx, "entries/"+tilePath(n, width), lane, nil)
	if err != nil {
		return nil, err
	}
	var entries [][]byte
	for len(body) > 0 {
		if len(body) < 4 || uint64(binary.BigEndian.Uint32(body)) > uint64(len(body)-4) {
			return nil, &Error{Status: http.StatusOK, Code: "internal", Message: "the bundle of entries makes no sense"}
		}
		size := 4 + int(binary.BigEndian.Uint32(body))
		entries = append(entries, body[4:size:size])
		body = body[size:]
	}
	return entries, nil
}

const mostBundleBytes = 256 << 20 // 256 events of some thousand uses each

func (c *Client) raw(ctx context.Context, what string, lane Lane, query url.Values) ([]byte, error) {
	a, err := c.ask(ctx, call{
		method: http.MethodGet, path: append([]string{"api", "v1", "log", string(lane)}, strings.Split(what, "/")...), query: query, most: mostBundleBytes,
	}, nil)
	return a.body, err
}

// tilePath writes the number in groups of three digits, of which all but the last
// begin with an x.
func tilePath(n uint64, width int) string {
	path := fmt.Sprintf("%03d", n%1000)
	for n /= 1000; n > 0; n /= 1000 {
		path = fmt.Sprintf("x%03d/%s", n%1000, path)
	}
	if width < 256 {
		path += fmt.Sprintf(".p/%d", width)
	}
	return path
}

func number(p Position) string { return strconv.FormatUint(uint64(p), 10) }
