package client

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/nats-io/nats.go/jetstream"
)

// PositionStore keeps how far a subscription has come.
type PositionStore interface {
	// Load gives the zero Cursor for a name that nothing is kept under.
	Load(ctx context.Context, name string) (Cursor, error)
	// Save returns when the cursor would outlive a crash.
	Save(ctx context.Context, name string, cursor Cursor) error
}

// ErrTwoSubscribers says that another process goes by the same name.
var ErrTwoSubscribers = errors.New("keyledger: another process subscribes under this name")

// FileStore keeps each position in a file of a folder, which is replaced as a whole
// and synced.
func FileStore(dir string) PositionStore { return fileStore(dir) }

type fileStore string

func (s fileStore) path(name string) string { return filepath.Join(string(s), name+".position") }

func (s fileStore) Load(_ context.Context, name string) (Cursor, error) {
	text, err := os.ReadFile(s.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return Cursor{}, nil
	}
	if err != nil {
		return Cursor{}, fmt.Errorf("read the position of %s: %w", name, err)
	}
	c, err := ParseCursor(strings.TrimSpace(string(text)))
	if err != nil || c == (Cursor{}) {
		return Cursor{}, fmt.Errorf("%s holds no position", s.path(name))
	}
	return c, nil
}

func (s fileStore) Save(_ context.Context, name string, cursor Cursor) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("keep the position of %s: %w", name, err)
		}
	}()
	file, err := os.CreateTemp(string(s), name+".position.*")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(file.Name()) }()
	_, err = file.WriteString(cursor.String() + "\n")
	if err := errors.Join(err, file.Sync(), file.Close()); err != nil {
		return err
	}
	if err := os.Rename(file.Name(), s.path(name)); err != nil {
		return err
	}
	dir, err := os.Open(string(s))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// KVStore keeps each position under its name in a bucket of NATS. Two processes
// under one name notice each other: the later one to save gets ErrTwoSubscribers.
func KVStore(bucket jetstream.KeyValue) PositionStore {
	return &kvStore{bucket: bucket, revisions: map[string]uint64{}}
}

type kvStore struct {
	bucket jetstream.KeyValue

	mu        sync.Mutex
	revisions map[string]uint64 // of what was loaded or saved last
}

func (s *kvStore) Load(ctx context.Context, name string) (Cursor, error) {
	entry, err := s.bucket.Get(ctx, name)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return Cursor{}, nil
	}
	if err != nil {
		return Cursor{}, fmt.Errorf("read the position of %s: %w", name, err)
	}
	c, err := ParseCursor(string(entry.Value()))
	if err != nil || c == (Cursor{}) {
		return Cursor{}, fmt.Errorf("the bucket holds no position under %s", name)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.revisions[name] = entry.Revision()
	return c, nil
}

func (s *kvStore) Save(ctx context.Context, name string, cursor Cursor) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var revision uint64
	var err error
	if last := s.revisions[name]; last > 0 {
		revision, err = s.bucket.Update(ctx, name, []byte(cursor.String()), last)
	} else {
		revision, err = s.bucket.Create(ctx, name, []byte(cursor.String()))
	}
	if errors.Is(err, jetstream.ErrKeyExists) || errors.Is(err, jetstream.ErrKeyRevisionMismatch) {
		// Perhaps it was this very save, and its answer was lost.
		entry, again := s.bucket.Get(ctx, name)
		switch {
		case again != nil:
			err = again
		case string(entry.Value()) == cursor.String():
			revision, err = entry.Revision(), nil
		default:
			return ErrTwoSubscribers
		}
	}
	if err != nil {
		return fmt.Errorf("keep the position of %s: %w", name, err)
	}
	s.revisions[name] = revision
	return nil
}
