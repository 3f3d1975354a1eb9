package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
)

// diskBytes is the size of the file system under the states.
const diskBytes = 96 << 20

// disk is where the states are: a small file system of its own where root may
// mount one, so that it can be filled.
type disk struct {
	dir     string
	mounted bool
}

// mountDisk falls back to a plain directory, which can't be filled.
func mountDisk(dir string) *disk {
	d := &disk{dir: dir}
	if err := os.MkdirAll(dir, 0o755); err == nil {
		d.mounted = syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", diskBytes)) == nil
	}
	return d
}

func (d *disk) filler() string { return filepath.Join(d.dir, "filler") }

// fill leaves no byte.
func (d *disk) fill() (err error) {
	f, err := os.Create(d.filler())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	block := make([]byte, 1<<16)
	for size := len(block); size > 0; {
		n, err := f.Write(block[:size])
		if errors.Is(err, syscall.ENOSPC) {
			size /= 2
			continue
		}
		if err == nil && n < size {
			err = io.ErrShortWrite
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (d *disk) empty() error { return os.Remove(d.filler()) }

func (d *disk) close() error {
	if !d.mounted {
		return nil
	}
	if err := syscall.Unmount(d.dir, syscall.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount %s: %w", d.dir, err)
	}
	return nil
}
