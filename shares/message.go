package shares

import (
	"encoding/binary"
	"errors"

	"keyledger/domain"
	"keyledger/index"
)

// A message is
//
//	1 byte    what it is
//	16 bytes  who sends it
//	8 bytes   the round of the one who asks, or the beat of the one who is there
//	24 bytes  for each key: its id, and time and count as of index.Spent; or
//	24 bytes  for each node that was heard of: its id, and its newest beat
//
// with numbers in big-endian order.
const (
	hereKind = iota + 1
	askKind
	toldKind

	headSize  = 25
	spentSize = 24
	beatSize  = 24
)

type head struct {
	kind   byte
	from   domain.ID
	number uint64
}

type beat struct {
	node   domain.ID
	number uint64
}

func appendHead(b []byte, h head) []byte {
	b = append(b, h.kind)
	b = append(b, h.from[:]...)
	return binary.BigEndian.AppendUint64(b, h.number)
}

func appendSpent(b []byte, all []index.Spent) []byte {
	for _, s := range all {
		b = append(b, s.Key[:]...)
		b = binary.BigEndian.AppendUint32(b, s.Time)
		b = binary.BigEndian.AppendUint32(b, s.Count)
	}
	return b
}

func appendBeats(b []byte, beats []beat) []byte {
	for _, each := range beats {
		b = append(b, each.node[:]...)
		b = binary.BigEndian.AppendUint64(b, each.number)
	}
	return b
}

var errMessage = errors.New("a message about shares cannot be read")

// readHead refuses what is no message of a node before anybody is taken for one: a copy of an
// event can come here that a subscriber of the streams had delivered.
func readHead(b []byte) (h head, rest []byte, err error) {
	if len(b) < headSize || b[0] < hereKind || b[0] > toldKind {
		return h, nil, errMessage
	}
	h.kind = b[0]
	h.from = domain.ID(b[1:17])
	h.number = binary.BigEndian.Uint64(b[17:])
	return h, b[headSize:], nil
}

func readSpent(b []byte) ([]index.Spent, error) {
	if len(b)%spentSize != 0 {
		return nil, errMessage
	}
	all := make([]index.Spent, 0, len(b)/spentSize)
	for ; len(b) > 0; b = b[spentSize:] {
		all = append(all, index.Spent{Key: domain.KeyID(b[:16]), Time: binary.BigEndian.Uint32(b[16:]), Count: binary.BigEndian.Uint32(b[20:])})
	}
	return all, nil
}

func readBeats(b []byte) ([]beat, error) {
	if len(b)%beatSize != 0 {
		return nil, errMessage
	}
	beats := make([]beat, 0, len(b)/beatSize)
	for ; len(b) > 0; b = b[beatSize:] {
		beats = append(beats, beat{domain.ID(b[:16]), binary.BigEndian.Uint64(b[16:])})
	}
	return beats, nil
}
