package datadir

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// EndpointsName is the file in which a running server says where it listens.
const EndpointsName = "endpoints.json"

// ErrNotRunning says that no server has the directory open.
var ErrNotRunning = errors.New("no server runs on this data directory")

// Endpoints are the addresses of a running server, with credentials in them:
// the file is as secret as they are.
type Endpoints struct {
	HTTP          string `json:"http"`
	Database      string `json:"database"`
	DatabaseAdmin string `json:"database_admin"`
	NATS          string `json:"nats"`
}

// WriteEndpoints says where the server that holds the directory listens.
func (d *Dir) WriteEndpoints(e Endpoints) error {
	text, err := json.MarshalIndent(e, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the endpoints: %w", err)
	}
	return d.WriteFile(EndpointsName, append(text, '\n'))
}

// ReadEndpoints returns where the running server listens. A file that a killed
// server left behind does not count: its ports may be somebody else's by now.
func (d *Dir) ReadEndpoints() (Endpoints, error) {
	var e Endpoints
	_, held, err := d.Holder()
	if err != nil {
		return e, err
	}
	if !held {
		return e, fmt.Errorf("%w: %s", ErrNotRunning, d.path)
	}
	text, err := d.ReadFile(EndpointsName)
	if errors.Is(err, os.ErrNotExist) {
		return e, fmt.Errorf("%w yet: %s", ErrNotRunning, d.path)
	}
	if err != nil {
		return e, err
	}
	if err := json.Unmarshal(text, &e); err != nil {
		return e, fmt.Errorf("decode %s: %w", d.Path(EndpointsName), err)
	}
	return e, nil
}

// RemoveEndpoints takes the file back at shutdown.
func (d *Dir) RemoveEndpoints() error {
	if err := os.Remove(d.Path(EndpointsName)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove the endpoints: %w", err)
	}
	return nil
}

// ReadFile reads a file of the directory.
func (d *Dir) ReadFile(name string) ([]byte, error) {
	data, err := os.ReadFile(d.Path(name))
	if err != nil {
		return nil, fmt.Errorf("read from the data directory: %w", err)
	}
	return data, nil
}

// WriteFile writes a file of mode 0600: a crash leaves the old content or the new.
func (d *Dir) WriteFile(name string, data []byte) error {
	return writeFile(d.Path(name), data, os.Rename)
}

// ReadOrCreateSecret returns n random bytes that are the same at every call,
// kept as hexadecimal text. Two processes that ask at once get the same bytes.
func (d *Dir) ReadOrCreateSecret(name string, n int) ([]byte, error) {
	secret, err := d.readSecret(name, n)
	if !errors.Is(err, os.ErrNotExist) {
		return secret, err
	}
	if err := d.create(); err != nil {
		return nil, err
	}
	fresh := make([]byte, n)
	_, _ = rand.Read(fresh)
	// link, unlike rename, fails when the name is taken: the first writer wins.
	err = writeFile(d.Path(name), []byte(hex.EncodeToString(fresh)+"\n"), os.Link)
	if err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	return d.readSecret(name, n)
}

func (d *Dir) readSecret(name string, n int) ([]byte, error) {
	text, err := d.ReadFile(name)
	if err != nil {
		return nil, err
	}
	secret, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil || len(secret) != n {
		// The text is a secret, perhaps damaged: the error does not show it.
		return nil, fmt.Errorf("%s does not hold %d bytes of hexadecimal text: restore it from a backup", d.Path(name), n)
	}
	return secret, nil
}

// writeFile puts data under path by way of a synced temporary file. place moves
// it there; whatever place leaves of the temporary name is removed.
func writeFile(path string, data []byte, place func(from, to string) error) (err error) {
	dir := filepath.Dir(path)
	temp, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer func() { _ = os.Remove(temp.Name()) }()
	_, err = temp.Write(data)
	if err == nil {
		err = temp.Sync()
	}
	if closeErr := temp.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = place(temp.Name(), path)
	}
	if err == nil {
		err = Sync(dir)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// Sync makes the names in a folder survive a loss of power.
func Sync(path string) error {
	dir, err := os.Open(path)
	if errors.Is(err, os.ErrPermission) {
		return nil // a folder that we may only walk through
	}
	if err != nil {
		return fmt.Errorf("sync a folder: %w", err)
	}
	err = dir.Sync()
	if closeErr := dir.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return fmt.Errorf("sync %s: %w", path, err)
	}
	return nil
}
