package child

import (
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// User is whom a child runs as.
type User struct {
	UID, GID uint32
}

// Unprivileged returns the user that a server which refuses root can run as:
// the first of names that exists, else 65534, which is nobody by convention. It
// returns nil, which means ourselves, when this process is not root.
func Unprivileged(names ...string) *User {
	if os.Geteuid() != 0 {
		return nil
	}
	for _, name := range names {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, uerr := strconv.ParseUint(u.Uid, 10, 32)
		gid, gerr := strconv.ParseUint(u.Gid, 10, 32)
		if uerr == nil && gerr == nil {
			return &User{UID: uint32(uid), GID: uint32(gid)}
		}
	}
	return &User{UID: 65534, GID: 65534}
}

func (u *User) credential() *syscall.Credential {
	if u == nil {
		return nil
	}
	return &syscall.Credential{Uid: u.UID, Gid: u.GID}
}

// Prepare gives cmd the user's identity, for a program that is run to its end
// and not started by Start.
func (u *User) Prepare(cmd *syscall.SysProcAttr) { cmd.Credential = u.credential() }

// Own makes the user the owner of dir and everything below it.
func (u *User) Own(dir string) error {
	if u == nil {
		return nil
	}
	return filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, int(u.UID), int(u.GID))
	})
}

// Reaches reports as an error a directory above path that the user can't pass,
// which a server would only call "permission denied".
func (u *User) Reaches(path string) error {
	if u == nil {
		return nil
	}
	for dir := filepath.Dir(path); ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil {
			return err
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if ok && info.Mode().Perm()&passable(st, u) == 0 {
			return fmt.Errorf("%s is closed to uid %d, which the server runs as: open it (chmod o+x) or choose another place", dir, u.UID)
		}
		if dir == filepath.Dir(dir) {
			return nil
		}
	}
}

// passable is the execute bit that counts for the user.
func passable(st *syscall.Stat_t, u *User) os.FileMode {
	switch {
	case st.Uid == u.UID:
		return 0o100
	case st.Gid == u.GID:
		return 0o010
	}
	return 0o001
}
