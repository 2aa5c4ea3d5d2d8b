package shares

import "context"

// Tick does what a node does every now and then.
func (s *Shares) Tick(ctx context.Context) {
	s.learn(ctx)
	s.here()
	s.weigh()
}

// Together says that limits are kept with so many nodes.
func (s *Shares) Together(nodes int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.known && s.open && len(s.peers) == nodes-1
}

// Kinds of messages, for those who lose and forge them.
const (
	HereKind = hereKind
	AskKind  = askKind
	ToldKind = toldKind
	HeadSize = headSize
)

// FromANode says whether a message is taken for one.
func FromANode(message []byte) bool {
	_, _, err := readHead(message)
	return err == nil
}
