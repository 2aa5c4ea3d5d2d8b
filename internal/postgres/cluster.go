package postgres

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"keyledger/internal/datadir"
)

const (
	versionFile = "PG_VERSION"
	pidFile     = "postmaster.pid"
	portFile    = "port"

	longestSocketPath = 107 // sockaddr_un has 108 bytes, one of them NUL
)

// defaults suit a private server that must never lose a commit. They stand in a
// file that every start writes anew; ALTER SYSTEM overrides them.
var defaults = map[string]string{
	"fsync":                      "on",
	"synchronous_commit":         "on",
	"full_page_writes":           "on",
	"wal_compression":            "on",
	"shared_buffers":             "128MB",
	"max_connections":            "100",
	"max_wal_size":               "2GB",
	"timezone":                   "UTC",
	"log_timezone":               "UTC",
	"datestyle":                  "ISO, MDY",
	"lc_messages":                "C",
	"log_line_prefix":            "%m [%p] ",
	"password_encryption":        "scram-sha-256",
	"unix_socket_permissions":    "0700",
	"default_text_search_config": "pg_catalog.simple",

	// Statements and the values in a DETAIL line may name people or hold digests.
	"log_min_error_statement": "panic",
	"log_error_verbosity":     "terse",
}

const accessRules = `# Written at every start.
local all         all             scram-sha-256
host  all         all 127.0.0.1/32 scram-sha-256
local replication keyledger_admin scram-sha-256
host  replication keyledger_admin 127.0.0.1/32 scram-sha-256
`

type passwords struct{ admin, service string }

func (s *Server) dataDir() string { return filepath.Join(s.dir, "data") }

func (s *Server) prepareDir() error {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return fmt.Errorf("create the database directory: %w", err)
	}
	// The kernel shows working directories without symbolic links.
	resolved, err := filepath.EvalSymlinks(s.dir)
	if err != nil {
		return fmt.Errorf("resolve the database directory: %w", err)
	}
	s.dir = resolved
	if err := datadir.Sync(filepath.Dir(s.dir)); err != nil {
		return err
	}
	return s.account.letThrough(s.dir)
}

// initialise makes a new cluster where there is none. It is made under a
// temporary name: a data directory is either absent or complete.
func (s *Server) initialise(ctx context.Context) error {
	leftovers, err := filepath.Glob(filepath.Join(s.dir, "new-*"))
	if err != nil {
		return fmt.Errorf("look for an interrupted start: %w", err)
	}
	for _, leftover := range leftovers {
		if err := os.RemoveAll(leftover); err != nil {
			s.log.Warn("what an interrupted start left cannot be removed", "error", err)
		}
	}
	if _, err := os.Stat(s.dataDir()); !errors.Is(err, os.ErrNotExist) {
		return err // findBinaries has compared the versions
	}
	temp, err := os.MkdirTemp(s.dir, "new-")
	if err != nil {
		return fmt.Errorf("create the data directory: %w", err)
	}
	defer func() { _ = os.RemoveAll(temp) }()
	password := filepath.Join(temp, "password")
	if err := os.WriteFile(password, []byte(s.passwords.admin+"\n"), 0o600); err != nil {
		return fmt.Errorf("hand the password to initdb: %w", err)
	}
	if err := errors.Join(s.account.own(temp), s.account.own(password)); err != nil {
		return err
	}
	data := filepath.Join(temp, "data")
	// The C locale sorts by bytes: indexes do not depend on a version of the C
	// library, and pages of a list are ordered as Go orders them.
	cmd := exec.CommandContext(ctx, s.binaries.initdb(), "--pgdata", data, "--username", adminRole,
		"--pwfile", password, "--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C", "--data-checksums")
	cmd.Dir = s.dir
	cmd.Env = environment()
	cmd.SysProcAttr = s.account.attributes()
	dieWithParent(cmd.SysProcAttr)
	if output, err := runToEnd(cmd); err != nil {
		return fmt.Errorf("initialise the database: %w\n%s", err, strings.TrimSpace(string(output)))
	}
	if err := os.Rename(data, s.dataDir()); err != nil {
		return fmt.Errorf("move the new database into place: %w", err)
	}
	// Were the rename lost with the power, the next start would take the data for
	// a leftover.
	return datadir.Sync(s.dir)
}

// runToEnd runs a child that dies with its parent on a thread that lasts as long
// as it does.
func runToEnd(cmd *exec.Cmd) (output []byte, err error) {
	ended := make(chan struct{})
	go func() {
		runtime.LockOSThread()
		defer close(ended)
		output, err = cmd.CombinedOutput()
	}()
	<-ended
	return output, err
}

// readPasswords returns the passwords of the two logins. The administrator's is
// stored in the cluster when it is made, so for an existing cluster it must be there.
func (s *Server) readPasswords() (passwords, error) {
	dir := datadir.At(s.dir)
	if _, err := os.Stat(s.dataDir()); err == nil {
		if _, err := os.Stat(dir.Path(adminRole + ".password")); err != nil {
			return passwords{}, fmt.Errorf("the password of the existing database is missing, restore it from a backup: %w", err)
		}
	}
	admin, err := dir.ReadOrCreateSecret(adminRole+".password", 16)
	if err != nil {
		return passwords{}, err
	}
	service, err := dir.ReadOrCreateSecret(serviceRole+".password", 16)
	if err != nil {
		return passwords{}, err
	}
	return passwords{admin: hex.EncodeToString(admin), service: hex.EncodeToString(service)}, nil
}

// choosePort keeps the port of the last start where it is free, so that a tool
// configured once goes on working.
func (s *Server) choosePort() error {
	dir := datadir.At(s.dir)
	port := 0
	if text, err := dir.ReadFile(portFile); err == nil {
		port, _ = strconv.Atoi(strings.TrimSpace(string(text)))
	}
	if port < 1 || port > 65535 {
		port = 0
	}
	listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil && port != 0 {
		s.log.Warn("the database's last port is taken, another is chosen", "port", port)
		listener, err = net.Listen("tcp", "127.0.0.1:0")
	}
	if err != nil {
		return fmt.Errorf("choose a port for the database: %w", err)
	}
	address, ok := listener.Addr().(*net.TCPAddr)
	if err := listener.Close(); err != nil || !ok {
		return fmt.Errorf("choose a port for the database: %w", err)
	}
	s.mu.Lock()
	s.port = address.Port
	s.mu.Unlock()
	return dir.WriteFile(portFile, []byte(strconv.Itoa(address.Port)+"\n"))
}

// prepareSocketDir makes an empty folder for the Unix socket: beside the data, or
// under the system's temporary folder where that path is too long for a socket.
func (s *Server) prepareSocketDir() error {
	s.socketDir = filepath.Join(s.dir, "run")
	if tooLong(s.socketDir) {
		sum := sha256.Sum256([]byte(s.dir))
		s.socketDir = filepath.Join(os.TempDir(), "keyledger-"+hex.EncodeToString(sum[:6]))
		// Anybody can take a name there. A folder that is not the database user's is
		// left alone, and another name drawn.
		if info, err := os.Lstat(s.socketDir); err == nil && (!info.IsDir() || !s.account.owns(info)) {
			s.socketDir += "-" + rand.Text()[:8]
		}
		if tooLong(s.socketDir) {
			return fmt.Errorf("the path of the database's socket in %s is longer than %d bytes: set TMPDIR to a shorter one", s.socketDir, longestSocketPath)
		}
	}
	// What a killed server left there goes. That the folder is new makes it ours.
	if err := os.RemoveAll(s.socketDir); err != nil {
		return fmt.Errorf("remove the last socket of the database: %w", err)
	}
	if err := os.Mkdir(s.socketDir, 0o700); err != nil {
		return fmt.Errorf("create a folder for the database's socket: %w", err)
	}
	if err := s.account.own(s.socketDir); err != nil {
		return err
	}
	if s.account == nil {
		return nil
	}
	return s.account.walk(s.socketDir)
}

func tooLong(socketDir string) bool {
	return len(filepath.Join(socketDir, ".s.PGSQL.65535")) > longestSocketPath
}

func (s *Server) removeSocketDir() {
	if s.socketDir != "" {
		_ = os.RemoveAll(s.socketDir)
	}
}

// owns tells whether a file belongs to the user under whom the database runs.
func (a *account) owns(info os.FileInfo) bool {
	uid := os.Geteuid()
	if a != nil {
		uid = a.uid
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(stat.Uid) == uid
}

// writeConfiguration writes the settings of this start. initdb's own files stay
// untouched beside them, for whoever starts the cluster by hand.
func (s *Server) writeConfiguration() error {
	settings := maps.Clone(defaults)
	maps.Copy(settings, s.settings)
	settings["port"] = strconv.Itoa(s.Port())
	settings["listen_addresses"] = "127.0.0.1"
	settings["unix_socket_directories"] = s.socketDir
	settings["hba_file"] = filepath.Join(s.dir, "access.conf")
	var text strings.Builder
	text.WriteString("# Written at every start. Change settings with ALTER SYSTEM instead.\n")
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		value := strings.ReplaceAll(strings.ReplaceAll(settings[name], `\`, `\\`), "'", "''")
		fmt.Fprintf(&text, "%s = '%s'\n", name, value)
	}
	dir := datadir.At(s.dir)
	for name, content := range map[string]string{"server.conf": text.String(), "access.conf": accessRules} {
		if err := dir.WriteFile(name, []byte(content)); err != nil {
			return err
		}
		if err := s.account.own(dir.Path(name)); err != nil {
			return err
		}
	}
	return nil
}

func (s *Server) arguments() []string {
	return []string{"-D", s.dataDir(), "-c", "config_file=" + filepath.Join(s.dir, "server.conf")}
}

func (s *Server) recordedPid() int {
	text, err := os.ReadFile(filepath.Join(s.dataDir(), pidFile))
	if err != nil {
		return 0
	}
	first, _, _ := strings.Cut(string(text), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(first))
	if err != nil {
		return 0
	}
	return pid
}

// environment is all that Postgres needs of ours: PGDATA, PGPORT and their like
// would lead it astray.
func environment() []string {
	return []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C", "TZ=UTC", "TMPDIR=" + os.TempDir()}
}
