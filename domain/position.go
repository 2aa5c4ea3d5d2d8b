package domain

import (
	"strconv"
	"strings"
)

// Position is an event's place in its lane: 1, 2, 3, ... without a gap. 0 is
// before the first.
type Position uint64

// Lane is one of the log's two sequences. Usage can be a thousand times the
// volume and must never delay a revocation, so each has positions of its own.
type Lane string

const (
	Lifecycle Lane = "lifecycle"
	Usage     Lane = "usage"
)

// Lanes are all lanes.
func Lanes() []Lane { return []Lane{Lifecycle, Usage} }

// Token names a position of a certain history. After a restore the epoch is
// raised, since the same positions may then be handed out for other events. Clients treat
// it as opaque.
type Token struct {
	Epoch    uint32
	Lane     Lane
	Position Position
}

func (t Token) String() string {
	return strconv.FormatUint(uint64(t.Epoch), 10) + ":" + string(t.Lane) + ":" + strconv.FormatUint(uint64(t.Position), 10)
}

// ParseToken reads what String wrote.
func ParseToken(text string) (Token, error) {
	malformed := Invalid("position", "must be a position token as a write returned it")
	epoch, rest, ok := strings.Cut(text, ":")
	lane, position, ok2 := strings.Cut(rest, ":")
	if !ok || !ok2 || Lane(lane) != Lifecycle && Lane(lane) != Usage {
		return Token{}, malformed
	}
	e, err := strconv.ParseUint(epoch, 10, 32)
	if err != nil {
		return Token{}, malformed
	}
	p, err := strconv.ParseUint(position, 10, 63)
	if err != nil {
		return Token{}, malformed
	}
	return Token{Epoch: uint32(e), Lane: Lane(lane), Position: Position(p)}, nil
}
