package postgres_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"keyledger/internal/datadir"
	"keyledger/internal/postgres"
	"keyledger/internal/testkit"
)

// helperVariable makes the test binary a service that runs a database, and
// nothing else, so that tests can kill it.
const helperVariable = "KEYLEDGER_TEST_DATABASE_DIR"

// careless leaves it to the page cache, which survives every signal that a test
// can send, to keep what was written.
var careless = map[string]string{"fsync": "off"}

func TestMain(m *testing.M) {
	if dir := os.Getenv(helperVariable); dir != "" {
		serve(dir)
		return
	}
	testkit.Main(m)
}

func serve(dir string) {
	server, err := postgres.Start(context.Background(), postgres.Options{Dir: dir, Settings: careless})
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	fmt.Println("ready", server.Pid(), server.AdminURL())
	_, _ = bufio.NewReader(os.Stdin).ReadString('\n') // until the parent closes it
	if err := server.Stop(context.Background()); err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
}

func TestTheServiceLoginMayOnlyBecomeTheServiceRole(t *testing.T) {
	t.Parallel()
	server := start(t, freshDir(t))
	for _, url := range []string{server.URL(), server.SocketURL()} {
		conn := connect(t, url)
		if _, err := conn.Exec(t.Context(), "CREATE TABLE t (id int)"); code(err) != "42501" {
			t.Errorf("the service's login created a table: %v", err)
		}
		if _, err := conn.Exec(t.Context(), "SET ROLE keyledger_admin"); code(err) != "42501" {
			t.Errorf("the service's login became the administrator: %v", err)
		}
		if _, err := conn.Exec(t.Context(), "SET ROLE keyledger_service"); err != nil {
			t.Errorf("the service's login may not become keyledger_service: %v", err)
		}
	}
	wrong := strings.Replace(server.URL(), "@", "x@", 1)
	if conn, err := pgx.Connect(t.Context(), wrong); err == nil {
		_ = conn.Close(t.Context())
		t.Error("a wrong password was accepted")
	}
	admin := connect(t, server.AdminURL())
	var owner, locale, checksums string
	err := admin.QueryRow(t.Context(), `
		SELECT pg_get_userbyid(datdba), datcollate, current_setting('data_checksums')
		  FROM pg_database WHERE datname = current_database()`).Scan(&owner, &locale, &checksums)
	if err != nil {
		t.Fatal(err)
	}
	if owner != "keyledger_admin" || locale != "C" || checksums != "on" {
		t.Errorf("the database belongs to %s, sorts by %s and has checksums %s", owner, locale, checksums)
	}
}

func TestNobodyElseCanReadTheDatabaseDirectory(t *testing.T) {
	t.Parallel()
	dir := freshDir(t)
	start(t, dir)
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // the database removes files as it works
		}
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err == nil && info.Mode().Perm()&0o007 != 0 && info.Mode()&fs.ModeSymlink == 0 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		if entry.IsDir() && path == filepath.Join(dir, "data") {
			return fs.SkipDir // 0700, so what is in it does not matter
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestASecondServerOnTheSameDirectoryIsRefused(t *testing.T) {
	t.Parallel()
	dir := testkit.PostgresDir(t)
	server := start(t, dir)
	pid := server.Pid()
	_, err := postgres.Start(t.Context(), postgres.Options{Dir: dir})
	if !errors.Is(err, datadir.ErrLocked) || !strings.Contains(err.Error(), strconv.Itoa(os.Getpid())) {
		t.Errorf("got %v, want an error that names process %d", err, os.Getpid())
	}
	if server.Pid() != pid {
		t.Error("the second start disturbed the running server")
	}
	connect(t, server.URL())
}

func TestARestartKeepsDataPortAndPasswords(t *testing.T) {
	t.Parallel()
	dir := testkit.PostgresDir(t)
	server := start(t, dir)
	url := server.AdminURL()
	commit(t, url, 1)
	stop(t, server)
	server = start(t, dir)
	if server.AdminURL() != url {
		t.Errorf("the URL changed from %s to %s", url, server.AdminURL())
	}
	if rows := count(t, url); rows != 1 {
		t.Errorf("%d rows are left, want 1", rows)
	}
}

func TestAKilledDatabaseComesBackWithWhatWasCommitted(t *testing.T) {
	t.Parallel()
	server := start(t, testkit.PostgresDir(t))
	url := server.AdminURL()
	for round := 1; round <= 3; round++ {
		commit(t, url, round)
		pid := server.Pid()
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		killed := time.Now()
		if _, err := server.AwaitReady(t.Context(), pid); err != nil {
			t.Fatal(err)
		}
		t.Logf("back after %v", time.Since(killed).Round(time.Millisecond))
		if rows := count(t, url); rows != round {
			t.Errorf("%d rows are left, want %d", rows, round)
		}
	}
}

func TestAKilledDatabaseComesBackAlthoughABackendHangs(t *testing.T) {
	t.Parallel()
	server := start(t, testkit.PostgresDir(t))
	conn := connect(t, server.AdminURL())
	var backend int
	if err := conn.QueryRow(t.Context(), "SELECT pg_backend_pid()").Scan(&backend); err != nil {
		t.Fatal(err)
	}
	// A stopped process neither notices its postmaster's death nor lets go of the
	// shared memory.
	kill(t, backend, syscall.SIGSTOP)
	pid := server.Pid()
	kill(t, pid, syscall.SIGKILL)
	if _, err := server.AwaitReady(t.Context(), pid); err != nil {
		t.Fatal(err)
	}
	connect(t, server.URL())
}

func TestStopEndsEvenAPausedDatabase(t *testing.T) {
	t.Parallel()
	server := start(t, testkit.PostgresDir(t))
	for _, pid := range server.Processes() {
		kill(t, pid, syscall.SIGSTOP)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := server.Stop(ctx); err != nil {
		t.Error(err)
	}
	if pids := server.Processes(); len(pids) > 0 {
		t.Errorf("processes %v are left", pids)
	}
	select {
	case <-server.Done():
	default:
		t.Error("Done is not closed after Stop")
	}
}

func TestALateSecondStopLeavesTheNextServerAlone(t *testing.T) {
	t.Parallel()
	dir := testkit.PostgresDir(t)
	first := start(t, dir)
	stop(t, first)
	second := start(t, dir)
	stop(t, first)
	connect(t, second.URL())
}

func TestSupervisionEndsWhenTheDataIsRemoved(t *testing.T) {
	t.Parallel()
	dir := testkit.PostgresDir(t)
	server := start(t, dir)
	pid := server.Pid()
	// The database may make a file in a folder that is just being removed.
	await(t, "the data is gone", func() bool { return os.RemoveAll(filepath.Join(dir, "data")) == nil })
	// The postmaster may have noticed by itself, and ended.
	_ = syscall.Kill(pid, syscall.SIGKILL)
	<-server.Done()
	if err := server.Err(); err == nil || !strings.Contains(err.Error(), "removed") {
		t.Errorf("got %v, want an error that says the data was removed", err)
	}
	if err := server.Stop(t.Context()); err == nil {
		t.Error("Stop hides that the data was removed")
	}
}

func TestATakenPortIsReplaced(t *testing.T) {
	t.Parallel()
	dir := testkit.PostgresDir(t)
	server := start(t, dir)
	port := server.Port()
	commit(t, server.AdminURL(), 1)
	stop(t, server)
	squatter, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = squatter.Close() }()
	server = start(t, dir)
	if server.Port() == port {
		t.Errorf("the taken port %d was chosen again", port)
	}
	if rows := count(t, server.AdminURL()); rows != 1 {
		t.Errorf("%d rows are left, want 1", rows)
	}
}

func TestALongPathStillHasASocket(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(testkit.Dir(t), strings.Repeat("long/", 20))
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	server := start(t, dir)
	conn := connect(t, server.SocketURL())
	var socket string
	if err := conn.QueryRow(t.Context(), "SHOW unix_socket_directories").Scan(&socket); err == nil {
		t.Error("the service's login may read where the sockets are")
	}
	if err := connect(t, server.AdminURL()).QueryRow(t.Context(), "SHOW unix_socket_directories").Scan(&socket); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(socket, os.TempDir()) {
		t.Errorf("the socket is in %s", socket)
	}
	info, err := os.Stat(socket)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o700 {
		t.Errorf("the socket's folder has mode %v", info.Mode())
	}
	stop(t, server)
	if _, err := os.Stat(socket); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket's folder is left: %v", err)
	}
}

func TestSettingsReplaceTheBuiltInOnes(t *testing.T) {
	t.Parallel()
	server, err := postgres.Start(t.Context(), postgres.Options{
		Dir: testkit.PostgresDir(t), Logger: testkit.Logger(t), Settings: map[string]string{"work_mem": "7MB", "fsync": "off", "port": "1"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, server) })
	var memory, fsync, commits string
	err = connect(t, server.AdminURL()).QueryRow(t.Context(),
		`SELECT current_setting('work_mem'), current_setting('fsync'), current_setting('synchronous_commit')`).Scan(&memory, &fsync, &commits)
	if err != nil {
		t.Fatal(err)
	}
	if memory != "7MB" || fsync != "off" || commits != "on" {
		t.Errorf("got work_mem %s, fsync %s and synchronous_commit %s", memory, fsync, commits)
	}
}

func TestABadSettingIsAnErrorThatShowsWhatPostgresSaid(t *testing.T) {
	t.Parallel()
	dir := freshDir(t)
	_, err := postgres.Start(t.Context(), postgres.Options{Dir: dir, Settings: map[string]string{"shared_buffers": "lots"}})
	if err == nil || !strings.Contains(err.Error(), "shared_buffers") {
		t.Errorf("got %v, want an error about shared_buffers", err)
	}
	start(t, dir) // and the failed start left nothing in the way
}

func TestACancelledStartLeavesNothingRunning(t *testing.T) {
	t.Parallel()
	dir := testkit.PostgresDir(t)
	server := start(t, dir)
	stop(t, server)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := postgres.Start(ctx, postgres.Options{Dir: dir}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want that it was cancelled", err)
	}
	if pids := server.Processes(); len(pids) > 0 {
		t.Errorf("processes %v are left", pids)
	}
}

// freshDir returns where a first start can make a database directory. Where that
// is not what is tested, testkit.PostgresDir is quicker.
func freshDir(t *testing.T) string {
	t.Helper()
	return filepath.Join(testkit.Dir(t), "postgres")
}

func start(t *testing.T, dir string) *postgres.Server {
	t.Helper()
	began := time.Now()
	server, err := postgres.Start(t.Context(), postgres.Options{Dir: dir, Logger: testkit.Logger(t), Settings: careless})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("started in %v", time.Since(began).Round(time.Millisecond))
	t.Cleanup(func() {
		// A database that a test has left paused never stops by itself.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute)
		defer cancel()
		_ = server.Stop(ctx)
	})
	return server
}

func stop(t *testing.T, server *postgres.Server) {
	t.Helper()
	if err := server.Stop(context.WithoutCancel(t.Context())); err != nil {
		t.Fatal(err)
	}
}

func connect(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
	return conn
}

// commit makes sure that a table of that many rows is committed.
func commit(t *testing.T, url string, rows int) {
	t.Helper()
	conn := connect(t, url)
	_, err := conn.Exec(t.Context(), "CREATE TABLE IF NOT EXISTS kept (id int PRIMARY KEY)")
	if err == nil {
		_, err = conn.Exec(t.Context(), "INSERT INTO kept SELECT generate_series(1, $1) ON CONFLICT DO NOTHING", rows)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func count(t *testing.T, url string) (rows int) {
	t.Helper()
	if err := connect(t, url).QueryRow(t.Context(), "SELECT count(*) FROM kept").Scan(&rows); err != nil {
		t.Fatal(err)
	}
	return rows
}

func code(err error) string {
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok {
		return pgErr.Code
	}
	return ""
}

func kill(t *testing.T, pid int, sig syscall.Signal) {
	t.Helper()
	// A process of Postgres may end by itself at any moment.
	if err := syscall.Kill(pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		t.Fatal(err)
	}
}
