package postgres

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"

	"keyledger/internal/datadir"
)

// account is the unprivileged user under whom a service that runs as root runs
// its database. All methods work on nil, which is "as ourselves".
type account struct {
	name     string
	uid, gid int
}

// findAccount returns nil where this process is unprivileged itself. Data that
// exists keeps its owner.
func findAccount(dataDir string) (*account, error) {
	uid := os.Geteuid()
	if uid != 0 {
		if _, err := user.LookupId(strconv.Itoa(uid)); err != nil {
			return nil, fmt.Errorf("user id %d has no entry in the user database, and initdb refuses to work without one: "+
				"add one to /etc/passwd, run as another user, or set DATABASE_URL to use a database of your own", uid)
		}
		return nil, nil
	}
	if info, err := os.Stat(dataDir); err == nil {
		if stat, ok := info.Sys().(*syscall.Stat_t); ok && stat.Uid != 0 {
			name := strconv.Itoa(int(stat.Uid))
			if u, err := user.LookupId(name); err == nil {
				name = u.Username
			}
			return &account{name: name, uid: int(stat.Uid), gid: int(stat.Gid)}, nil
		}
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, uidErr := strconv.Atoi(u.Uid)
		gid, gidErr := strconv.Atoi(u.Gid)
		if uidErr == nil && gidErr == nil && uid != 0 {
			return &account{name: name, uid: uid, gid: gid}, nil
		}
	}
	return nil, errors.New("postgres refuses to run as root, and this machine has neither a user postgres nor nobody: " +
		"run as an ordinary user, or set DATABASE_URL to use a database of your own")
}

func (a *account) attributes() *syscall.SysProcAttr {
	if a == nil {
		return &syscall.SysProcAttr{}
	}
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(a.uid), Gid: uint32(a.gid)}}
}

// own gives a file or folder to the account.
func (a *account) own(path string) error {
	if a == nil {
		return nil
	}
	if err := os.Lchown(path, a.uid, a.gid); err != nil {
		return fmt.Errorf("give %s to the user %s: %w", path, a.name, err)
	}
	return nil
}

// letThrough allows the account to walk to dir: dir itself and the data
// directory around it are opened to its group. Whatever else is closed on the
// way is the administrator's to open, and nothing is changed then.
func (a *account) letThrough(dir string) error {
	if a == nil {
		return nil
	}
	parent := filepath.Dir(dir)
	if err := a.walk(filepath.Dir(parent)); err != nil {
		return err
	}
	for _, folder := range []string{parent, dir} {
		closed, err := a.closedAt(folder)
		if err != nil {
			return err
		}
		if closed && datadir.LetThrough(folder, a.gid) != nil {
			return a.closedError(folder)
		}
	}
	return nil
}

// walk checks that the account may pass every folder from path up to the root.
func (a *account) walk(path string) error {
	for {
		closed, err := a.closedAt(path)
		if err != nil {
			return err
		}
		if closed {
			return a.closedError(path)
		}
		parent := filepath.Dir(path)
		if parent == path {
			return nil
		}
		path = parent
	}
}

func (a *account) closedError(path string) error {
	return fmt.Errorf("postgres refuses to run as root, so the database runs as the user %s, who may not enter %s: "+
		"choose a data directory elsewhere with --data-dir, such as /var/lib/keyledger, or run as an ordinary user", a.name, path)
}

func (a *account) closedAt(path string) (bool, error) {
	info, err := os.Stat(path)
	if err != nil {
		return false, fmt.Errorf("look at %s: %w", path, err)
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return false, nil
	}
	var needed fs.FileMode
	switch {
	case int(stat.Uid) == a.uid:
		needed = 0o100
	case int(stat.Gid) == a.gid:
		needed = 0o010
	default:
		needed = 0o001
	}
	return info.Mode().Perm()&needed == 0, nil
}
