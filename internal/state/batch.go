package state

import (
	"fmt"
	"slices"
	"sync/atomic"

	"backstory/transform"
)

// keepBytes is the size up to which the buffers of a batch are kept for the next.
const keepBytes = 64 << 20

// maxSalt bounds the search for the hash of a key. Even two keys of one hash are
// rare; so many mean that the hash function is broken.
const maxSalt = 255

// Batch is a set of writes that is committed whole or not at all. It sees the
// writes of itself and of all batches begun before it, committed or not.
//
// A batch is used by one goroutine; Commit, Sync and batches begun before may run
// in others. When a later batch has begun, only SetMeta, Meta, Bytes and Len
// remain allowed: the marks of a publication are known only after the next
// batch has begun.
//
// No slice that Get returned is changed before the batch is committed or dropped.
type Batch struct {
	s      *Store
	closed atomic.Bool // no Get and no write any more
	buffers

	count     int // records in buf
	metaCount int // records in meta; under Store.mu
}

// buffers are what a batch leaves to a later one.
type buffers struct {
	own   overlay
	buf   []byte   // header of the group, then the records as they go to disk
	read  []byte   // records that Get has fetched
	lists []uint32 // offsets in buf of the records that change the again list
	meta  []byte   // records of SetMeta; under Store.mu
}

// Get returns the entry of an aggregate and whether there is one. The image must
// not be changed; it is valid until the batch is committed or dropped.
func (b *Batch) Get(table uint16, key []byte) (transform.Entry, bool, error) {
	if b.closed.Load() {
		return transform.Entry{}, false, ErrBatchClosed
	}
	r, _, _, err := b.locate(table, key)
	if err != nil || r == nil || r.kind() == kindGone {
		return transform.Entry{}, false, err
	}
	return r.entry(), true, nil
}

// Put writes the entry of an aggregate; key and image are copied. An entry of
// version 0 is a note, one without an image a deleted aggregate.
func (b *Batch) Put(table uint16, key []byte, e transform.Entry) error {
	kind, err := kindOf(&e)
	if err != nil {
		return fmt.Errorf("put into the state: table %d: %w", table, err)
	}
	return b.write(kind, table, key, &e)
}

// Forget drops a note. A key that the store does not know is passed over; an
// aggregate is an error, because its version would be lost.
func (b *Batch) Forget(table uint16, key []byte) error {
	if b.closed.Load() {
		return ErrBatchClosed
	}
	r, _, _, err := b.locate(table, key)
	switch {
	case err != nil:
		return err
	case r == nil || r.kind() == kindGone:
		return nil
	case r.kind() != kindNote:
		return fmt.Errorf("forget in the state: table %d: the key is an aggregate, not a note", table)
	}
	return b.write(kindGone, table, key, &transform.Entry{})
}

// Again puts a key on the list of those to be read from the table.
func (b *Batch) Again(table uint16, key []byte) error { return b.list(kindAgain, table, key) }

// Done takes a key off that list.
func (b *Batch) Done(table uint16, key []byte) error { return b.list(kindDone, table, key) }

// SetMeta stores a value under a name; nil takes the name away. Both are copied.
// It may be called until the batch is committed, also from another goroutine.
func (b *Batch) SetMeta(name string, value []byte) {
	kind := kindMeta
	if value == nil {
		kind = kindNoMeta
	}
	b.s.mu.Lock()
	defer b.s.mu.Unlock()
	b.meta = appendRecord(b.meta, b.s.seed, kind, 0, 0, name, &transform.Entry{Image: value})
	b.metaCount++
}

// Meta returns a copy of the value of a name as this batch sees it.
func (b *Batch) Meta(name string) ([]byte, bool) {
	b.s.mu.RLock()
	defer b.s.mu.RUnlock()
	if r := lastMeta(b.meta, name); r != nil {
		return metaValue(r)
	}
	for _, f := range slices.Backward(b.s.before(b)) {
		if r := lastMeta(f.meta, name); r != nil {
			return metaValue(r)
		}
	}
	return b.s.metaLocked(name)
}

// Bytes is the size of the group that the batch will be on disk.
func (b *Batch) Bytes() int {
	b.s.mu.RLock()
	defer b.s.mu.RUnlock()
	return len(b.buf) + len(b.meta)
}

// Len is the number of writes in the batch.
func (b *Batch) Len() int {
	b.s.mu.RLock()
	defer b.s.mu.RUnlock()
	return b.count + b.metaCount
}

// write appends the record of a key.
func (b *Batch) write(kind recordKind, table uint16, key []byte, e *transform.Entry) error {
	if b.closed.Load() {
		return ErrBatchClosed
	}
	_, h, salt, err := b.locate(table, key)
	if err != nil {
		return err
	}
	at, err := b.append(kind, salt, table, key, e)
	if err != nil {
		return err
	}
	b.own.set(h, at, inBuf)
	return nil
}

func (b *Batch) list(kind recordKind, table uint16, key []byte) error {
	if b.closed.Load() {
		return ErrBatchClosed
	}
	at, err := b.append(kind, 0, table, key, &transform.Entry{})
	if err != nil {
		return err
	}
	b.lists = append(b.lists, uint32(at))
	return nil
}

func (b *Batch) append(kind recordKind, salt uint8, table uint16, key []byte, e *transform.Entry) (at int, err error) {
	at = len(b.buf)
	if size := recordHeaderSize + len(key) + len(e.Image); at+size > maxGroup {
		return 0, fmt.Errorf("a batch of the state would exceed %d bytes; it holds %d records of %d bytes and gets one of %d: make batches smaller",
			maxGroup, b.count, at, size)
	}
	b.buf = appendRecord(b.buf, b.s.seed, kind, salt, table, key, e)
	b.count++
	return at, nil
}

// locate returns the newest record of a key, nil if there is none, with the hash
// that the key has in the index or would take, and how often nextHash led to it.
func (b *Batch) locate(table uint16, key []byte) (r record, h uint64, salt uint8, err error) {
	h = b.s.hash(table, key)
	for i := range maxSalt {
		r, err := b.newest(h)
		if err != nil || r == nil || r.about(table, key) {
			return r, h, uint8(i), err
		}
		if b.s.hashOf(r) != h {
			return nil, 0, 0, b.s.misplaced(h)
		}
		h = nextHash(h)
	}
	return nil, 0, 0, fmt.Errorf("state: %d keys have the same hash", maxSalt)
}

// newest returns the newest record with a hash, nil if there is none.
func (b *Batch) newest(h uint64) (record, error) {
	switch c := b.own.find(h); c.where {
	case inBuf:
		return recordAt(b.buf, c.at), nil
	case inRead:
		return recordAt(b.read, c.at), nil
	case inNone:
		return nil, nil // and stays so: the batches before are closed
	}
	b.s.mu.RLock()
	defer b.s.mu.RUnlock()
	earlier := b.s.before(b)
	for i := len(earlier) - 1; i >= 0; i-- {
		if c := earlier[i].own.find(h); c.where == inBuf {
			return b.keep(h, recordAt(earlier[i].buf, c.at)), nil
		}
	}
	return b.fetch(h)
}

// keep copies a record of an earlier batch, whose buffer ends with its commit.
func (b *Batch) keep(h uint64, r record) record {
	at := len(b.read)
	if at+len(r) > maxGroup {
		return slices.Clone(r)
	}
	b.read = append(b.read, r...)
	b.own.set(h, at, inRead)
	return recordAt(b.read, uint32(at))
}

// fetch reads a committed record straight into the buffer of the batch. The
// caller has Store.mu.
func (b *Batch) fetch(h uint64) (record, error) {
	if b.s.closed {
		return nil, ErrClosed
	}
	l := b.s.index.get(h)
	if l == 0 {
		b.own.set(h, 0, inNone)
		return nil, nil
	}
	at := len(b.read)
	if at+l.size() > maxGroup {
		return b.s.readRecord(nil, l) // too much to keep it all
	}
	room, err := b.s.readRecord(b.read, l)
	if err != nil {
		return nil, err
	}
	b.read = room
	b.own.set(h, at, inRead)
	return recordAt(b.read, uint32(at)), nil
}

func recordAt(buf []byte, at uint32) record {
	r := record(buf[at:])
	n := r.length()
	return r[:n:n]
}

// lastMeta returns the newest record of a name among encoded ones.
func lastMeta(meta []byte, name string) record {
	var found record
	for len(meta) > 0 {
		r := recordAt(meta, 0)
		if string(r.key()) == name {
			found = r
		}
		meta = meta[padded(len(r)):]
	}
	return found
}

func metaValue(r record) ([]byte, bool) {
	if r.kind() == kindNoMeta {
		return nil, false
	}
	return append([]byte{}, r.image()...), true
}

// reset empties the buffers. Very large ones are given up.
func (b *buffers) reset() {
	b.own.reset()
	b.buf, b.read, b.meta = emptied(b.buf), emptied(b.read), emptied(b.meta)
	b.lists = b.lists[:0]
}

func emptied(buf []byte) []byte {
	if cap(buf) > keepBytes {
		return nil
	}
	return buf[:0]
}
