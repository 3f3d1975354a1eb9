package child

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// scratchPrefix begins the names of all scratch directories. Short: a path of a
// Unix socket has to fit into 103 bytes.
const scratchPrefix = "backstory-"

// Scratch is a directory in the system's place for temporary files. The file
// beside it, locked while its owner lives, tells others that it is in use.
type Scratch struct {
	Dir  string
	lock *os.File
}

// NewScratch makes a scratch directory, which everybody may read, and removes
// those whose owners died.
func NewScratch(kind string) (*Scratch, error) {
	sweep(os.TempDir())
	lock, err := newLock(kind)
	if err != nil {
		return nil, fmt.Errorf("scratch directory: %w", err)
	}
	s := &Scratch{Dir: strings.TrimSuffix(lock.Name(), ".lock"), lock: lock}
	if err := errors.Join(os.Mkdir(s.Dir, 0o755), os.Chmod(s.Dir, 0o755)); err != nil {
		return nil, errors.Join(fmt.Errorf("scratch directory: %w", err), s.Remove())
	}
	return s, nil
}

// newLock makes and locks a lock file. Another process may sweep it away
// between the two; then the next try makes another.
func newLock(kind string) (*os.File, error) {
	for {
		f, err := os.CreateTemp("", scratchPrefix+kind+"-*.lock")
		if err != nil {
			return nil, err
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			if _, serr := os.Lstat(f.Name()); serr == nil {
				return f, nil
			}
		} else if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", f.Name(), err), f.Close())
		}
		if err := f.Close(); err != nil {
			return nil, err
		}
	}
}

// Remove removes the directory. It may be called twice.
func (s *Scratch) Remove() error {
	if s.lock == nil {
		return nil
	}
	err := errors.Join(os.RemoveAll(s.Dir), os.Remove(s.lock.Name()), s.lock.Close())
	s.lock = nil
	return err
}

// sweep removes what dead owners left in tmp. Its errors concern only files of
// others, so there is nobody to tell.
func sweep(tmp string) {
	locks, err := filepath.Glob(filepath.Join(tmp, scratchPrefix+"*.lock"))
	if err != nil {
		return
	}
	for _, name := range locks {
		sweepOne(name)
	}
}

func sweepOne(name string) {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return
	}
	defer f.Close()
	if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		return // its owner lives
	}
	if os.RemoveAll(strings.TrimSuffix(name, ".lock")) == nil {
		_ = os.Remove(name)
	}
}
