package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	embeddedpostgres "github.com/fergusstrange/embedded-postgres"
)

// downloadable are the versions for which programs can be had, by major version.
var downloadable = map[int]embeddedpostgres.PostgresVersion{
	14: embeddedpostgres.V14,
	15: embeddedpostgres.V15,
	16: embeddedpostgres.V16,
	17: embeddedpostgres.V17,
	18: embeddedpostgres.V18,
}

const defaultDownload = 17

// download fetches PostgreSQL programs into the database directory, once, and
// returns where they are.
//
// The library is made to run a whole server, and exports nothing smaller. It
// deletes and initialises its data directory after it has unpacked the programs,
// so it is given one that cannot exist, below a regular file: it fails exactly
// there, and never has data or a process of its own. What counts is not its
// answer but whether the programs are there.
func (s *Server) download(ctx context.Context, mirror string, major int) (string, error) {
	if major == 0 {
		major = defaultDownload
	}
	version, ok := downloadable[major]
	if !ok {
		return "", fmt.Errorf("there is no download of PostgreSQL %d", major)
	}
	target := filepath.Join(s.dir, "programs-"+string(version))
	programs := binaries{dir: filepath.Join(target, "bin")}
	if _, err := os.Stat(programs.postgres()); err == nil {
		return programs.dir, nil
	}
	s.log.Info("this machine has no suitable postgres; downloading it", "version", string(version))

	scratch, err := os.MkdirTemp(s.dir, "new-")
	if err != nil {
		return "", fmt.Errorf("create a folder for the download: %w", err)
	}
	defer func() { _ = os.RemoveAll(scratch) }()
	obstacle := filepath.Join(scratch, "no-data-here")
	if err := os.WriteFile(obstacle, nil, 0o600); err != nil {
		return "", fmt.Errorf("prepare the download: %w", err)
	}
	config := embeddedpostgres.DefaultConfig().
		Version(version).
		Logger(io.Discard).
		Port(uint32(s.Port())). // only checked to be free
		CachePath(filepath.Join(scratch, "cache")).
		RuntimePath(filepath.Join(scratch, "runtime")).
		BinariesPath(filepath.Join(scratch, "programs")).
		DataPath(filepath.Join(obstacle, "data"))
	if mirror != "" {
		config = config.BinaryRepositoryURL(mirror)
	}
	// The library knows no context. An abandoned download ends in its scratch folder.
	fetched := make(chan error, 1)
	go func() {
		library := embeddedpostgres.NewDatabase(config)
		err := library.Start()
		if err == nil {
			err = errors.Join(errors.New("a server was started that should not have been"), library.Stop())
		}
		fetched <- err
	}()
	select {
	case err = <-fetched:
	case <-ctx.Done():
		return "", fmt.Errorf("download PostgreSQL %s: %w", version, context.Cause(ctx))
	}
	unpacked := binaries{dir: filepath.Join(scratch, "programs", "bin")}
	for _, program := range []string{unpacked.initdb(), unpacked.postgres()} {
		if _, statErr := os.Stat(program); statErr != nil {
			return "", fmt.Errorf("download PostgreSQL %s: %w", version, err)
		}
	}
	if err := s.account.share(filepath.Join(scratch, "programs")); err != nil {
		return "", err
	}
	if err := os.Rename(filepath.Join(scratch, "programs"), target); err != nil {
		return "", fmt.Errorf("move the downloaded programs into place: %w", err)
	}
	return programs.dir, nil
}

// share lets the account read a tree, whatever umask it was unpacked under.
func (a *account) share(tree string) error {
	if a == nil {
		return nil
	}
	return filepath.WalkDir(tree, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return fmt.Errorf("share the downloaded programs: %w", err)
		}
		if err := os.Lchown(path, -1, a.gid); err != nil {
			return fmt.Errorf("share the downloaded programs: %w", err)
		}
		if entry.Type()&fs.ModeSymlink != 0 {
			return nil
		}
		info, err := entry.Info()
		if err != nil {
			return fmt.Errorf("share the downloaded programs: %w", err)
		}
		owner := info.Mode().Perm() & 0o500
		return os.Chmod(path, info.Mode().Perm()|owner>>3)
	})
}
