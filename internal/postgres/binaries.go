package postgres

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

const (
	binariesVariable = "KEYLEDGER_POSTGRES_BIN"
	oldestMajor      = 14
)

// binaries is a directory that holds both initdb and postgres.
type binaries struct {
	dir     string
	version string // such as 15.18
	major   int
}

func (b binaries) initdb() string   { return filepath.Join(b.dir, "initdb") }
func (b binaries) postgres() string { return filepath.Join(b.dir, "postgres") }

// findBinaries returns the installation that fits the data, or the newest for a
// directory without data. Data of a major version that is not installed is an
// error: one version cannot read another's files, and nothing here may touch them.
func (s *Server) findBinaries(ctx context.Context, opts Options) (binaries, error) {
	wanted, err := s.dataMajor()
	if err != nil {
		return binaries{}, err
	}
	candidates := []string{opts.Binaries}
	if opts.Binaries == "" {
		candidates = []string{os.Getenv(binariesVariable)}
	}
	chosen := candidates[0] != ""
	if !chosen {
		candidates = installed()
	}
	var found []string
	var refused error
	for _, dir := range candidates {
		b, err := s.inspect(ctx, dir)
		switch {
		case err != nil:
			refused = errors.Join(refused, err)
		case wanted == 0 && b.major < oldestMajor, wanted != 0 && b.major != wanted:
			found = append(found, fmt.Sprintf("%s in %s", b.version, b.dir))
		default:
			return b, nil
		}
	}
	switch {
	case len(found) > 0 && wanted != 0:
		return binaries{}, fmt.Errorf("%s holds data of PostgreSQL %d, and this machine has %s: "+
			"install PostgreSQL %d or name its directory in %s, or move the data with pg_upgrade or pg_dump; nothing was changed",
			s.dataDir(), wanted, strings.Join(found, ", "), wanted, binariesVariable)
	case chosen && len(found) > 0:
		return binaries{}, fmt.Errorf("PostgreSQL %d or newer is needed, and %s names %s", oldestMajor, binariesVariable, found[0])
	case refused != nil:
		return binaries{}, refused
	}
	dir, err := s.download(ctx, opts.Mirror, wanted)
	if err != nil {
		return binaries{}, fmt.Errorf("this machine has no PostgreSQL %d or newer, and downloading it failed: "+
			"install it, name its directory in %s, or set DATABASE_URL: %w", oldestMajor, binariesVariable, err)
	}
	return s.inspect(ctx, dir)
}

// dataMajor returns the major version of the existing data, 0 where there is none.
func (s *Server) dataMajor() (int, error) {
	if _, err := os.Stat(s.dataDir()); errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	text, err := os.ReadFile(filepath.Join(s.dataDir(), versionFile))
	if err != nil {
		return 0, fmt.Errorf("%s exists but is not a Postgres data directory; nothing was changed: %w", s.dataDir(), err)
	}
	major, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return 0, fmt.Errorf("%s holds data of an unknown version %q; nothing was changed", s.dataDir(), strings.TrimSpace(string(text)))
	}
	return major, nil
}

// installed lists directories with both programs, newest major version first
// after what PATH names. A lone postgres in PATH is often a link into one of them.
func installed() []string {
	var dirs []string
	add := func(dir string) {
		for _, program := range []string{"initdb", "postgres"} {
			if info, err := os.Stat(filepath.Join(dir, program)); err != nil || info.IsDir() || info.Mode().Perm()&0o111 == 0 {
				return
			}
		}
		if !slices.Contains(dirs, dir) {
			dirs = append(dirs, dir)
		}
	}
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		if target, err := filepath.EvalSymlinks(filepath.Join(dir, "postgres")); err == nil {
			add(filepath.Dir(target))
		}
	}
	for _, pattern := range []string{
		"/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/usr/libexec/postgresql*", "/usr/local/pgsql/bin",
		"/opt/homebrew/opt/postgresql*/bin", "/usr/local/opt/postgresql*/bin",
	} {
		matches, _ := filepath.Glob(pattern) // the patterns are well-formed
		slices.SortFunc(matches, func(a, b string) int { return pathMajor(b) - pathMajor(a) })
		for _, dir := range matches {
			add(dir)
		}
	}
	return dirs
}

var digits = regexp.MustCompile(`\d+`)

func pathMajor(path string) int {
	major, _ := strconv.Atoi(digits.FindString(path)) // 0 where there is no number
	return major
}

var versionText = regexp.MustCompile(`\(PostgreSQL\) ((\d+)[^\s]*)`)

// inspect asks a postgres for its version: as the user and in the folder in
// which it will run, so that whatever keeps that user out shows here.
func (s *Server) inspect(ctx context.Context, dir string) (binaries, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return binaries{}, fmt.Errorf("resolve the directory of PostgreSQL programs: %w", err)
	}
	b := binaries{dir: dir}
	if _, err := os.Stat(b.initdb()); err != nil {
		return b, fmt.Errorf("%s is not a directory of PostgreSQL programs: %w", dir, err)
	}
	cmd := exec.CommandContext(ctx, b.postgres(), "--version")
	cmd.Dir = s.dir
	cmd.Env = environment()
	cmd.SysProcAttr = s.account.attributes()
	output, err := cmd.Output()
	if err != nil {
		if s.account != nil && errors.Is(err, os.ErrPermission) {
			return b, fmt.Errorf("the user %s may not run %s: %w", s.account.name, b.postgres(), err)
		}
		return b, fmt.Errorf("ask %s for its version: %w", b.postgres(), err)
	}
	match := versionText.FindStringSubmatch(string(output))
	if match == nil {
		return b, fmt.Errorf("%s does not say its version: %q", b.postgres(), output)
	}
	b.version = match[1]
	b.major, err = strconv.Atoi(match[2])
	return b, err
}
