package state

import (
	"fmt"
	"unsafe"

	"github.com/cespare/xxhash/v2"
	"golang.org/x/sys/unix"
)

// loc says where the newest record of a key is: 16 bits segment handle, 29 bits
// offset and 17 bits length in units of 8 bytes, 2 bits kind. No record is at
// offset 0, so 0 is an empty slot.
type loc uint64

// longest is the length at which loc stops counting (1 MiB − 8): the record has
// at least that many bytes, its header says how many.
const longest = (1<<17 - 1) * 8

func makeLoc(handle uint16, offset int64, size int, kind recordKind) loc {
	return loc(handle)<<48 | loc(offset/8)<<19 | loc(min(size, longest)/8)<<2 | loc(kind-kindExisting)
}

func (l loc) handle() uint16   { return uint16(l >> 48) }
func (l loc) offset() int64    { return int64(l>>19&(1<<29-1)) * 8 }
func (l loc) size() int        { return int(l>>2&(1<<17-1)) * 8 }
func (l loc) kind() recordKind { return recordKind(l&3) + kindExisting }

// hashKey is the hash of a key for ever: it is in the hint files.
func hashKey(table uint16, key []byte) uint64 {
	h := xxhash.Sum64(key) ^ uint64(table)*0x9e3779b97f4a7c15
	h ^= h >> 32
	h *= 0xd6e8feb86659fd93
	return h ^ h>>32
}

// nextHash is the hash that a key takes when another key has h already. It is a
// bijection, so no two hashes lead to the same one.
func nextHash(h uint64) uint64 { return h*0x5851f42d4c957f2d + 0x14057b7ef767814f }

// slot is one place of the index: 16 bytes. A hash stands for one key only, so it
// decides without a look at the record.
type slot struct {
	hash uint64
	loc  loc
}

const (
	slotBytes = int(unsafe.Sizeof(slot{}))
	// shardMin is the number of slots a shard begins with: a page.
	shardMin = 256
)

// index maps hashes to locs: 256 tables with linear probing, which double one by
// one at a load of 4/5. At most 40 bytes a key, and no pause is longer than the
// doubling of a 256th. The memory is not Go's, which would let the garbage
// collector wait until as much again is used. Nothing is ever taken out.
type index struct {
	shards [256]shard
	used   int
}

type shard struct {
	slots []slot
	used  int
}

// probe returns the slot that has h, or the empty one that it would take.
func (t *shard) probe(h uint64) *slot {
	mask := uint64(len(t.slots) - 1)
	for i := h & mask; ; i = (i + 1) & mask {
		if s := &t.slots[i]; s.loc == 0 || s.hash == h {
			return s
		}
	}
}

// get returns 0 for a hash that is not there.
func (x *index) get(h uint64) loc {
	t := &x.shards[h>>56]
	if t.slots == nil {
		return 0
	}
	return t.probe(h).loc
}

// put sets the loc of a hash and returns the one it had.
func (x *index) put(h uint64, l loc) (old loc, err error) {
	t := &x.shards[h>>56]
	if t.used*5 >= len(t.slots)*4 {
		if err := t.grow(); err != nil {
			return 0, err
		}
	}
	s := t.probe(h)
	if old = s.loc; old == 0 {
		s.hash = h
		t.used++
		x.used++
	}
	s.loc = l
	return old, nil
}

func (t *shard) grow() error {
	bigger := shard{used: t.used}
	n := max(2*len(t.slots), shardMin)
	mem, err := unix.Mmap(-1, 0, n*slotBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return fmt.Errorf("memory for the index of the state, %d bytes: %w", n*slotBytes, err)
	}
	bigger.slots = unsafe.Slice((*slot)(unsafe.Pointer(unsafe.SliceData(mem))), n)
	for _, s := range t.slots {
		if s.loc != 0 {
			*bigger.probe(s.hash) = s
		}
	}
	t.free()
	*t = bigger
	return nil
}

func (t *shard) free() {
	if t.slots == nil {
		return
	}
	mem := unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(t.slots))), len(t.slots)*slotBytes)
	_ = unix.Munmap(mem) // fails only for memory that is not mapped
	t.slots = nil
}

// bytes is the memory of the index.
func (x *index) bytes() int {
	n := 0
	for i := range x.shards {
		n += len(x.shards[i].slots) * slotBytes
	}
	return n
}

// close gives the memory back; the index is empty then.
func (x *index) close() {
	for i := range x.shards {
		x.shards[i].free()
		x.shards[i].used = 0
	}
	x.used = 0
}
