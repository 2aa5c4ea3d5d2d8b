package eventstore

import (
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/crypto/chacha20poly1305"

	"keyledger/domain"
)

// A letter carries events that were just committed to the other processes of the ledger, so
// that their followers have them without asking the database: a revocation waits for
// that. It is a nonce and the events' envelopes, each behind its length, under a key that follows from the
// master key: who carries it learns nothing from it and cannot change it. What does not come, or
// is not to be trusted, is read from the log.
//
// The cipher is XChaCha20-Poly1305: all processes of a ledger share the key and write a letter for each batch, and
// only nonces of 24 bytes can be drawn at random that often.

// mostLetter bounds a letter. Whoever appends more at once is read from: then one query does for many.
const (
	mostLetter  = 32 << 10
	letterNonce = chacha20poly1305.NonceSizeX
)

func newLetters(masterKey []byte) (cipher.AEAD, error) {
	key, err := hkdf.Key(sha256.New, masterKey, nil, "keyledger letters of committed events 1", MasterKeySize)
	if err != nil {
		return nil, fmt.Errorf("derive the key of letters: %w", err)
	}
	letters, err := chacha20poly1305.NewX(key)
	if err != nil {
		return nil, fmt.Errorf("make the cipher of letters: %w", err)
	}
	return letters, nil
}

// letter writes events that were committed; nil when they are too many, or of the usage lane, for whose
// events nobody waits.
func (s *Store) letter(events []Event) []byte {
	size := letterNonce + s.letters.Overhead()
	for i := range events {
		if size += eventSize(&events[i].Recorded); size > mostLetter || events[i].Lane != domain.Lifecycle {
			return nil
		}
	}
	letter := make([]byte, letterNonce, size)
	_, _ = rand.Read(letter) // never fails
	for i := range events {
		at := len(letter)
		letter = events[i].AppendEnvelope(append(letter, 0, 0, 0, 0))
		binary.BigEndian.PutUint32(letter[at:], uint32(len(letter)-at-4))
	}
	return s.letters.Seal(letter[:letterNonce], letter[:letterNonce], letter[letterNonce:], nil)
}

var errLetter = errors.New("the letter is none of this ledger's")

// openLetter gives the events of a letter, which end at a position of this history of the log and have no gap.
func (s *Store) openLetter(lane domain.Lane, end domain.Position, letter []byte) ([]Recorded, error) {
	if len(letter) < letterNonce || len(letter) > mostLetter {
		return nil, errLetter
	}
	plain, err := s.letters.Open(nil, letter[:letterNonce], letter[letterNonce:], nil)
	if err != nil {
		return nil, errLetter
	}
	var events []Recorded
	for d := (envelopeReader{rest: plain}); len(d.rest) > 0; {
		envelope := d.text()
		if d.short {
			return nil, errLetter
		}
		r, err := ParseEnvelope(envelope)
		if err != nil {
			return nil, err
		}
		if r.Ledger != s.ledger || r.Epoch != s.epoch || r.Lane != lane || len(events) > 0 && r.Position != events[len(events)-1].Position+1 {
			return nil, errLetter
		}
		events = append(events, r)
	}
	if len(events) == 0 || events[len(events)-1].Position != end {
		return nil, errLetter
	}
	return events, nil
}
