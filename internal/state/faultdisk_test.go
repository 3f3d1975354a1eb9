package state_test

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"syscall"

	"backstory/internal/state"
)

// errCrashed is what every call gets once the process is dead.
var errCrashed = errors.New("the process is dead")

// inode is the content of a file as the process sees it, and as a loss of power
// may leave it: what was there at the last sync, and any of the writes since.
type inode struct {
	now     []byte
	durable []byte
	pending []patch
}

// patch is a write that is not synced; nil data cuts the file to off.
type patch struct {
	off  int64
	data []byte
}

func (p patch) apply(b []byte) []byte {
	if p.data == nil {
		return resize(b, int(p.off))
	}
	if end := int(p.off) + len(p.data); end > len(b) {
		b = resize(b, end)
	}
	copy(b[p.off:], p.data)
	return b
}

func resize(b []byte, n int) []byte {
	if n <= len(b) {
		return b[:n:n]
	}
	return append(b[:len(b):len(b)], make([]byte, n-len(b))...)
}

// rename is a change of the directory: name stands for file, or for nothing, and
// from for nothing.
type rename struct {
	name, from string
	file       *inode
}

func (r rename) apply(names map[string]*inode) {
	delete(names, r.from)
	if delete(names, r.name); r.file != nil {
		names[r.name] = r.file
	}
}

// faultDisk is a disk in RAM that may die at any change, tear the write it dies
// at, run full, and lose what was not synced.
type faultDisk struct {
	mu      sync.Mutex
	names   map[string]*inode
	durable map[string]*inode
	pending []rename
	rnd     *rand.Rand

	ops     int // changes so far
	crashAt int // the change that does not happen whole any more; 0: none
	crashed bool
	next    int // armed with at the next restart
	opens   int // open files
	room    int // bytes that may still be written; below 0: no bound
	writes  int // so far
	fullAt  int // the write that finds the disk full; 0: none
	failOn  func(op, name string) error
	written func(name string, n int)
}

func newFaultDisk(seed uint64) *faultDisk {
	return &faultDisk{
		names: map[string]*inode{}, durable: map[string]*inode{},
		rnd: rand.New(rand.NewPCG(seed, 1)), room: -1,
	}
}

// change counts a change and says whether the process lives to make it.
func (d *faultDisk) change(op, name string) error {
	if d.crashed {
		return errCrashed
	}
	if d.failOn != nil {
		if err := d.failOn(op, name); err != nil {
			return err
		}
	}
	if d.ops++; d.ops == d.crashAt {
		d.crashed = true
		return errCrashed
	}
	return nil
}

// dead reports whether the process has died.
func (d *faultDisk) dead() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.crashed
}

// arm lets the process die at the n-th change from now; 0 disarms.
func (d *faultDisk) arm(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.crashAt = 0
	if n > 0 {
		d.crashAt = d.ops + n
	}
}

// armNext lets the next process die at its n-th change.
func (d *faultDisk) armNext(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.next = n
}

// limit lets n more bytes be written; below 0 there is no bound.
func (d *faultDisk) limit(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.room = n
}

// restart is the next process on the same machine: it finds what the last one
// wrote, synced or not.
func (d *faultDisk) restart() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.crashed, d.crashAt, d.opens = false, 0, 0
	if d.next > 0 {
		d.crashAt, d.next = d.ops+d.next, 0
	}
}

// losePower keeps what was synced and some of what was not: any of the changed
// names, and of each file any of its writes, cut to sectors.
func (d *faultDisk) losePower() {
	d.restart()
	d.mu.Lock()
	defer d.mu.Unlock()
	keep := d.rnd.Float64() // nearly all, nearly nothing, or anything between
	names := maps.Clone(d.durable)
	for _, r := range d.pending {
		if d.rnd.Float64() < keep {
			r.apply(names)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		names[name].lose(d.rnd, keep)
	}
	d.names, d.durable, d.pending = names, maps.Clone(names), nil
}

func (f *inode) lose(rnd *rand.Rand, keep float64) {
	const sector = 64
	b := slices.Clone(f.durable)
	prefix := rnd.IntN(2) == 0
	for _, p := range f.pending {
		if rnd.Float64() < keep {
			b = p.apply(b)
			continue
		}
		for at := 0; at < len(p.data); at += sector {
			if rnd.IntN(2) == 0 {
				b = patch{p.off + int64(at), p.data[at:min(at+sector, len(p.data))]}.apply(b)
			}
		}
		if prefix {
			break
		}
	}
	f.now, f.durable, f.pending = slices.Clone(b), b, nil
}

func (d *faultDisk) Open(name string) (state.File, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.crashed {
		return nil, errCrashed
	}
	f := d.names[name]
	if f == nil {
		return nil, fmt.Errorf("open %s: %w", name, fs.ErrNotExist)
	}
	d.opens++
	return &faultFile{disk: d, name: name, inode: f}, nil
}

func (d *faultDisk) Create(name string) (state.File, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.change("create", name); err != nil {
		return nil, err
	}
	f := d.names[name]
	if f == nil {
		f = &inode{}
		d.rename(rename{name: name, file: f})
	} else {
		f.patch(patch{})
	}
	d.opens++
	return &faultFile{disk: d, name: name, inode: f}, nil
}

func (d *faultDisk) rename(r rename) {
	r.apply(d.names)
	d.pending = append(d.pending, r)
}

func (d *faultDisk) Rename(from, to string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.change("rename", to); err != nil {
		return err
	}
	d.rename(rename{name: to, from: from, file: d.names[from]})
	return nil
}

func (d *faultDisk) Remove(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.change("remove", name); err != nil {
		return err
	}
	if f := d.names[name]; f != nil {
		if d.room >= 0 {
			d.room += len(f.now)
		}
		d.rename(rename{name: name})
	}
	return nil
}

func (d *faultDisk) List() ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.crashed {
		return nil, errCrashed
	}
	return slices.Sorted(maps.Keys(d.names)), nil
}

func (d *faultDisk) Sync() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.change("sync", ""); err != nil {
		return err
	}
	d.durable, d.pending = maps.Clone(d.names), nil
	return nil
}

// copyFiles returns the content of every file.
func (d *faultDisk) copyFiles() map[string][]byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	files := map[string][]byte{}
	for name, f := range d.names {
		files[name] = slices.Clone(f.now)
	}
	return files
}

// diskOf makes a disk with the files of copyFiles.
func diskOf(files map[string][]byte) *faultDisk {
	d := newFaultDisk(1)
	for name, b := range files {
		d.names[name] = &inode{now: slices.Clone(b), durable: slices.Clone(b)}
	}
	d.durable = maps.Clone(d.names)
	return d
}

type faultFile struct {
	disk   *faultDisk
	name   string
	inode  *inode
	closed bool
}

func (f *inode) patch(p patch) {
	f.now = p.apply(f.now)
	f.pending = append(f.pending, p)
}

func (f *faultFile) ReadAt(b []byte, off int64) (int, error) {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	if f.disk.crashed {
		return 0, errCrashed
	}
	if f.closed {
		return 0, fs.ErrClosed
	}
	if off >= int64(len(f.inode.now)) {
		return 0, io.EOF
	}
	n := copy(b, f.inode.now[off:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (f *faultFile) WriteAt(b []byte, off int64) (int, error) {
	d := f.disk
	d.mu.Lock()
	defer d.mu.Unlock()
	if f.closed {
		return 0, fs.ErrClosed
	}
	dead := d.crashed
	if err := d.change("write", f.name); err != nil {
		if !dead && d.crashed { // torn anywhere, but not whole
			n := d.rnd.IntN(len(b))
			f.inode.patch(patch{off, slices.Clone(b[:n:n])})
		}
		return 0, err
	}
	n := len(b)
	if d.room >= 0 {
		grows := max(0, int(off)+n-max(int(off), len(f.inode.now)))
		n -= max(0, grows-d.room)
		d.room -= min(grows, d.room)
	}
	if d.writes++; d.writes == d.fullAt {
		n = d.rnd.IntN(n)
	}
	f.inode.patch(patch{off, append([]byte{}, b[:n]...)})
	if d.written != nil {
		d.written(f.name, n)
	}
	if n < len(b) {
		return n, fmt.Errorf("write %s: %w", f.name, syscall.ENOSPC)
	}
	return n, nil
}

func (f *faultFile) Truncate(size int64) error {
	d := f.disk
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.change("truncate", f.name); err != nil {
		return err
	}
	if d.room >= 0 {
		d.room += max(0, len(f.inode.now)-int(size))
	}
	f.inode.patch(patch{off: size})
	return nil
}

func (f *faultFile) Sync() error {
	d := f.disk
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.change("sync", f.name); err != nil {
		return err
	}
	f.inode.durable, f.inode.pending = slices.Clone(f.inode.now), nil
	return nil
}

func (f *faultFile) Size() (int64, error) {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	return int64(len(f.inode.now)), nil
}

func (f *faultFile) Close() error {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	if f.closed {
		return fs.ErrClosed
	}
	f.closed = true
	f.disk.opens--
	return nil
}
