package postgres_test

import (
	"bufio"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"keyledger/internal/postgres"
	"keyledger/internal/testkit"
)

func TestTheDatabaseEndsWithItsKilledServiceAndKeepsWhatWasCommitted(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("the kernel has no signal for a dead parent")
	}
	dir := testkit.PostgresDir(t)
	service := startService(t, exec.Command(os.Args[0]), dir)
	commit(t, service.url, 3)
	kill(t, service.cmd.Process.Pid, syscall.SIGKILL)
	_ = service.cmd.Wait()
	await(t, "the postmaster ends", func() bool { return syscall.Kill(service.postmaster, 0) != nil })
	server := start(t, dir)
	if rows := count(t, server.AdminURL()); rows != 3 {
		t.Errorf("%d rows are left, want 3", rows)
	}
}

func TestAServiceKilledAndStartedAtOnceFindsItsDatabase(t *testing.T) {
	t.Parallel()
	dir := testkit.PostgresDir(t)
	service := startService(t, exec.Command(os.Args[0]), dir)
	commit(t, service.url, 3)
	// Nobody waits for the postmaster here: the start has to.
	kill(t, service.cmd.Process.Pid, syscall.SIGKILL)
	_ = service.cmd.Wait()
	server := start(t, dir)
	if server.AdminURL() != service.url {
		t.Errorf("the URL changed from %s to %s", service.url, server.AdminURL())
	}
	if rows := count(t, server.AdminURL()); rows != 3 {
		t.Errorf("%d rows are left, want 3", rows)
	}
}

func TestAnOrphanIsStoppedAndReplaced(t *testing.T) {
	t.Parallel()
	for name, prepare := range map[string]func(*testing.T, *exec.Cmd, string){
		"running": func(*testing.T, *exec.Cmd, string) {},
		"stopped": func(t *testing.T, orphan *exec.Cmd, _ string) { kill(t, orphan.Process.Pid, syscall.SIGSTOP) },
		"with an open session": func(t *testing.T, _ *exec.Cmd, url string) {
			conn := connect(t, url)
			if _, err := conn.Exec(t.Context(), "BEGIN; INSERT INTO kept VALUES (1000)"); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := testkit.PostgresDir(t)
			server := start(t, dir)
			url := server.AdminURL()
			commit(t, url, 2)
			stop(t, server)
			orphan := startOrphan(t, dir)
			rest := make(chan error, 1)
			go func() { rest <- orphan.Wait() }()
			awaitDatabase(t, dir)
			prepare(t, orphan, url)
			server = start(t, dir)
			<-rest // the orphan has ended
			if rows := count(t, server.AdminURL()); rows != 2 {
				t.Errorf("%d rows are left, want 2", rows)
			}
		})
	}
}

func TestAStalePidFileThatNamesALivingProcessIsNoObstacle(t *testing.T) {
	t.Parallel()
	dir := testkit.PostgresDir(t)
	server := start(t, dir)
	stop(t, server)
	// In a restarted container process ids come again.
	stale := fmt.Sprintf("%d\n%s\n0\n%d\n", os.Getppid(), filepath.Join(dir, "data"), server.Port())
	if err := os.WriteFile(filepath.Join(dir, "data", "postmaster.pid"), []byte(stale), 0o644); err != nil {
		t.Fatal(err)
	}
	start(t, dir)
}

func TestDataOfAnotherMajorVersionIsRefusedAndUntouched(t *testing.T) {
	t.Parallel()
	dir := testkit.PostgresDir(t)
	stop(t, start(t, dir))
	version := filepath.Join(dir, "data", "PG_VERSION")
	current, err := os.ReadFile(version)
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{"older": "13\n", "unknown": "elephant\n"} {
		if err := os.WriteFile(version, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		before := fingerprint(t, filepath.Join(dir, "data"))
		_, err := postgres.Start(t.Context(), postgres.Options{Dir: dir})
		if err == nil || !strings.Contains(err.Error(), "nothing was changed") || !strings.Contains(err.Error(), strings.TrimSpace(content)) {
			t.Errorf("%s: got %v", name, err)
		}
		if fingerprint(t, filepath.Join(dir, "data")) != before {
			t.Errorf("%s: the data was changed", name)
		}
	}
	if err := os.WriteFile(version, current, 0o600); err != nil {
		t.Fatal(err)
	}
	start(t, dir)
}

func TestAnInterruptedFirstStartIsNoObstacle(t *testing.T) {
	t.Parallel()
	dir := freshDir(t)
	half := filepath.Join(dir, "new-123", "data")
	if err := os.MkdirAll(half, 0o700); err != nil {
		t.Fatal(err)
	}
	// As a real one, which is marked before anything is put in it.
	for path, content := range map[string]string{
		filepath.Join(half, "PG_VERSION"): "15\n",
		filepath.Join(dir, "lock"):        "",
	} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	start(t, dir)
	if _, err := os.Stat(half); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the half-made data is left: %v", err)
	}
}

func TestAServiceKilledDuringItsFirstStartStartsTheNextTime(t *testing.T) {
	t.Parallel()
	dir := freshDir(t)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), helperVariable+"="+dir)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	await(t, "initdb begins", func() bool {
		begun, err := filepath.Glob(filepath.Join(dir, "new-*", "data", "*"))
		return err != nil || len(begun) > 0
	})
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	server := start(t, dir)
	connect(t, server.URL())
}

func TestRootIsToldWhichFolderKeepsTheDatabaseOut(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root's database runs as another user")
	}
	closed := filepath.Join(testkit.Dir(t), "closed")
	parent := filepath.Join(closed, "data")
	if err := os.MkdirAll(parent, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(closed, 0o700); err != nil {
		t.Fatal(err)
	}
	_, err := postgres.Start(t.Context(), postgres.Options{Dir: filepath.Join(parent, "postgres")})
	if err == nil || !strings.Contains(err.Error(), closed+":") {
		t.Errorf("got %v, want an error that names %s", err, closed)
	}
	info, err := os.Stat(closed)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o700 {
		t.Errorf("the folder was opened to %v", info.Mode())
	}
}

func TestAnOrdinaryUserCanRunItAndRootCanGoOnWithTheData(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("the other tests run as an ordinary user already")
	}
	nobody, err := user.Lookup("nobody")
	if err != nil {
		t.Skip(err)
	}
	uid, _ := strconv.Atoi(nobody.Uid)
	gid, _ := strconv.Atoi(nobody.Gid)
	home := testkit.Dir(t)
	program := filepath.Join(testkit.Dir(t), "service")
	copyProgram(t, program)
	if err := os.Chown(home, uid, gid); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Dir(program), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program)
	cmd.Dir = home
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	dir := filepath.Join(home, "postgres")
	service := startService(t, cmd, dir)
	commit(t, service.url, 2)
	service.stop(t)
	server := start(t, dir)
	if rows := count(t, server.AdminURL()); rows != 2 {
		t.Errorf("%d rows are left, want 2", rows)
	}
	stop(t, server)
	again := exec.Command(program)
	again.Dir, again.SysProcAttr = cmd.Dir, cmd.SysProcAttr
	service = startService(t, again, dir)
	if rows := count(t, service.url); rows != 2 {
		t.Errorf("%d rows are left after root ran it, want 2", rows)
	}
	service.stop(t)
}

// service is a process of its own that runs a database.
type service struct {
	cmd        *exec.Cmd
	stdin      io.Closer
	postmaster int
	url        string
}

func startService(t *testing.T, cmd *exec.Cmd, dir string) *service {
	t.Helper()
	cmd.Env = append(os.Environ(), helperVariable+"="+dir)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	s := &service{cmd: cmd, stdin: stdin}
	if _, err := fmt.Sscanf(line, "ready %d %s", &s.postmaster, &s.url); err != nil {
		t.Fatalf("the service says %q", line)
	}
	return s
}

func (s *service) stop(t *testing.T) {
	t.Helper()
	_ = s.stdin.Close()
	if err := s.cmd.Wait(); err != nil {
		t.Fatal(err)
	}
}

// startOrphan runs a postmaster that no supervisor knows.
func startOrphan(t *testing.T, dir string) *exec.Cmd {
	t.Helper()
	data := filepath.Join(dir, "data")
	info, err := os.Stat(data)
	if err != nil {
		t.Fatal(err)
	}
	// Stop removed the folder of the socket.
	socket := filepath.Join(dir, "run")
	if err := os.Mkdir(socket, 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(postgresProgram(t), "-D", data, "-c", "config_file="+filepath.Join(dir, "server.conf"))
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if stat := info.Sys().(*syscall.Stat_t); os.Geteuid() == 0 {
		if err := os.Chown(socket, int(stat.Uid), int(stat.Gid)); err != nil {
			t.Fatal(err)
		}
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: stat.Uid, Gid: stat.Gid}
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	return cmd
}

func postgresProgram(t *testing.T) string {
	t.Helper()
	dirs := postgres.Installed()
	if len(dirs) == 0 {
		t.Skip("this machine has no postgres")
	}
	return filepath.Join(dirs[0], "postgres")
}

// awaitDatabase waits until the postmaster of a directory says that it is ready.
func awaitDatabase(t *testing.T, dir string) {
	t.Helper()
	await(t, "the database is ready", func() bool {
		text, err := os.ReadFile(filepath.Join(dir, "data", "postmaster.pid"))
		return err == nil && strings.Contains(string(text), "ready")
	})
}

// await waits for what another process does.
func await(t *testing.T, what string, happened func() bool) {
	t.Helper()
	poll := time.NewTicker(2 * time.Millisecond)
	defer poll.Stop()
	deadline := time.After(time.Minute)
	for !happened() {
		select {
		case <-poll.C:
		case <-deadline:
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

func fingerprint(t *testing.T, dir string) [sha256.Size]byte {
	t.Helper()
	hash := sha256.New()
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		fmt.Fprintln(hash, path, info.Mode(), info.ModTime())
		if entry.IsDir() {
			return nil
		}
		content, err := os.ReadFile(path)
		hash.Write(content)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return [sha256.Size]byte(hash.Sum(nil))
}

func copyProgram(t *testing.T, target string) {
	t.Helper()
	content, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	postgres.WriteProgram(t, target, content)
}
