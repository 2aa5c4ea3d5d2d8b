package eventstore

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"sync"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"keyledger/domain"
)

// MasterKeySize is the length of the master key in bytes.
const MasterKeySize = 32

const (
	sealedFormat = 1
	nonceSize    = 12
	sealedHeader = 1 + 4 + nonceSize // format, number of the data key, nonce
	// mostCachedKeys bounds the data keys kept in memory; beyond it the cache starts anew.
	mostCachedKeys = 16384
)

// keyring seals personal fields under a data key per organization, itself wrapped
// by the master key (AES-256-GCM both times, NIST SP 800-38D). Nonces are random: a data key
// serves for 2^32 events before it should be replaced.
//
// A sealed section is: 0x01, the data key's number (4 bytes, big-endian), the nonce (12 bytes), and
// the ciphertext with its tag. Its associated data is the event's id and stream,
// so that a section cannot be moved to another event.
type keyring struct {
	pool   *pgxpool.Pool
	master cipher.AEAD

	mu     sync.RWMutex
	keys   map[dataKeyID]cipher.AEAD
	erased map[domain.OrganizationID]bool // as far as this process has met it
}

type dataKeyID struct {
	organization domain.OrganizationID
	number       uint32
}

func newKeyring(pool *pgxpool.Pool, masterKey []byte) (*keyring, error) {
	if len(masterKey) != MasterKeySize {
		return nil, fmt.Errorf("the master key must be %d bytes, not %d", MasterKeySize, len(masterKey))
	}
	master, err := newGCM(masterKey)
	if err != nil {
		return nil, err
	}
	return &keyring{pool: pool, master: master, keys: map[dataKeyID]cipher.AEAD{}, erased: map[domain.OrganizationID]bool{}}, nil
}

// firstDataKey is the number of an organization's data key. Numbers leave room
// for replacing one.
const firstDataKey = 1

// seal encrypts plain for one event of an organization.
func (k *keyring) seal(ctx context.Context, organization domain.OrganizationID, id domain.ID, stream Stream, plain []byte) ([]byte, error) {
	key, err := k.key(ctx, dataKeyID{organization, firstDataKey}, true)
	if err != nil {
		return nil, err
	}
	if key == nil {
		return nil, domain.OrganizationIsErased()
	}
	sealed := make([]byte, sealedHeader, sealedHeader+len(plain)+key.Overhead())
	sealed[0] = sealedFormat
	binary.BigEndian.PutUint32(sealed[1:], firstDataKey)
	nonce := sealed[5:sealedHeader]
	if _, err := rand.Read(nonce); err != nil {
		return nil, fmt.Errorf("draw a nonce: %w", err)
	}
	return key.Seal(sealed, nonce, plain, sealedFor(id, stream)), nil
}

// open decrypts a sealed section. erased says that its data key is gone for good.
func (k *keyring) open(ctx context.Context, r Recorded) (plain []byte, erased bool, err error) {
	if len(r.Sealed) < sealedHeader || r.Sealed[0] != sealedFormat {
		return nil, false, fmt.Errorf("open the sealed section of %s %d: it is not in format %d", r.Lane, r.Position, sealedFormat)
	}
	id := dataKeyID{r.Organization, binary.BigEndian.Uint32(r.Sealed[1:])}
	key, err := k.key(ctx, id, false)
	if err != nil || key == nil {
		return nil, key == nil, err
	}
	plain, err = key.Open(nil, r.Sealed[5:sealedHeader], r.Sealed[sealedHeader:], sealedFor(r.ID, r.Stream))
	if err != nil {
		return nil, false, fmt.Errorf("open the sealed section of %s %d: it was not sealed for this event: %w", r.Lane, r.Position, err)
	}
	return plain, false, nil
}

// key gives a data key, making it first when create says so; nil when there is none,
// or none any more.
func (k *keyring) key(ctx context.Context, id dataKeyID, create bool) (cipher.AEAD, error) {
	k.mu.RLock()
	key, ok := k.keys[id]
	erased := k.erased[id.organization]
	k.mu.RUnlock()
	if ok || erased {
		return key, nil
	}
	wrapped, err := k.load(ctx, id)
	if noRows(err) && create {
		// Whoever inserts first wins; everybody then uses the row that is there.
		if err = k.insert(ctx, id); err == nil {
			wrapped, err = k.load(ctx, id)
		}
	}
	if noRows(err) {
		return nil, nil
	}
	if err != nil {
		return nil, Wrap(err, "load the data key of %s", id.organization)
	}
	if len(wrapped) < nonceSize {
		return nil, fmt.Errorf("the data key of %s is too short", id.organization)
	}
	plain, err := k.master.Open(nil, wrapped[:nonceSize], wrapped[nonceSize:], wrappedFor(id))
	if err != nil {
		return nil, fmt.Errorf("unwrap the data key of %s: the master key is not the one that this ledger was made with", id.organization)
	}
	if key, err = newGCM(plain); err != nil {
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.erased[id.organization] {
		return nil, nil // meanwhile
	}
	if len(k.keys) >= mostCachedKeys {
		clear(k.keys)
	}
	k.keys[id] = key
	return key, nil
}

func (k *keyring) load(ctx context.Context, id dataKeyID) (wrapped []byte, err error) {
	err = k.pool.QueryRow(ctx, `SELECT wrapped FROM data_keys WHERE organization = $1 AND number = $2`, id.organization, id.number).Scan(&wrapped)
	return wrapped, err
}

func (k *keyring) insert(ctx context.Context, id dataKeyID) error {
	fresh := make([]byte, MasterKeySize)
	nonce := make([]byte, nonceSize)
	if _, err := rand.Read(fresh); err != nil {
		return fmt.Errorf("draw a data key: %w", err)
	}
	if _, err := rand.Read(nonce); err != nil {
		return fmt.Errorf("draw a nonce: %w", err)
	}
	wrapped := k.master.Seal(nonce, nonce, fresh, wrappedFor(id))
	// In the simple protocol the statement commits by itself: a paused client cannot keep
	// an erasure waiting.
	_, err := k.pool.Exec(ctx, `INSERT INTO data_keys (organization, number, wrapped) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING`,
		pgx.QueryExecModeSimpleProtocol, string(id.organization), int64(id.number), wrapped)
	if isErased(err) {
		return domain.OrganizationIsErased()
	}
	return err
}

func newGCM(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("make a cipher: %w", err)
	}
	return cipher.NewGCM(block)
}

func sealedFor(id domain.ID, stream Stream) []byte {
	return append(append([]byte("keyledger sealed 1\x00"), id[:]...), stream...)
}

func wrappedFor(id dataKeyID) []byte {
	return fmt.Appendf(nil, "keyledger data key 1\x00%s\x00%d", id.organization, id.number)
}
