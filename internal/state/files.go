package state

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// file is an open file of the store.
type file interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Truncate(size int64) error
	Sync() error
	Size() (int64, error)
}

// disk is the directory of the store. Names have no slash. Besides that of the
// operating system there is one in the tests, which fails, forgets and cuts.
type disk interface {
	// Open opens a file for reading and writing; fs.ErrNotExist if there is none.
	Open(name string) (file, error)
	// Create makes an empty file, in place of one that is there.
	Create(name string) (file, error)
	Rename(from, to string) error
	Remove(name string) error
	List() ([]string, error)
	// Sync makes created, renamed and removed names durable.
	Sync() error
}

// osDisk is a directory of the operating system, locked for this process.
type osDisk struct {
	dir  string
	lock *os.File
}

// lockName is the file that carries the lock and the process id of its holder.
const lockName = "LOCK"

// Exists reports whether a store has ever been opened in the directory.
func Exists(dir string) (bool, error) {
	_, err := os.Stat(filepath.Join(dir, lockName))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

func openDir(dir string) (*osDisk, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the state directory: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the lock of the state: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		holder, _ := io.ReadAll(io.LimitReader(lock, 32))
		_ = lock.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock the state directory %s: %w", dir, err)
		}
		return nil, &Refusal{
			Thing:   "state directory " + dir,
			Problem: "another process uses it: pid " + strings.TrimSpace(string(holder)),
			Cure:    "stop that process, or give this one a state.dir of its own",
		}
	}
	if err := writePid(lock); err != nil {
		_ = lock.Close()
		return nil, fmt.Errorf("write the lock of the state: %w", err)
	}
	return &osDisk{dir: dir, lock: lock}, nil
}

func writePid(lock *os.File) error {
	if err := lock.Truncate(0); err != nil {
		return err
	}
	_, err := lock.WriteAt(fmt.Appendln(nil, os.Getpid()), 0)
	return err
}

func (d *osDisk) path(name string) string { return filepath.Join(d.dir, name) }

func (d *osDisk) Open(name string) (file, error) {
	f, err := os.OpenFile(d.path(name), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

func (d *osDisk) Create(name string) (file, error) {
	f, err := os.OpenFile(d.path(name), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

func (d *osDisk) Rename(from, to string) error { return os.Rename(d.path(from), d.path(to)) }

func (d *osDisk) Remove(name string) error {
	if err := os.Remove(d.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (d *osDisk) List() ([]string, error) {
	entries, err := os.ReadDir(d.dir)
	if err != nil {
		return nil, err
	}
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, nil
}

func (d *osDisk) Sync() error {
	f, err := os.Open(d.dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Close gives the lock back.
func (d *osDisk) Close() error { return d.lock.Close() }

type osFile struct{ *os.File }

func (f osFile) Size() (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}
