package state

import (
	"bufio"
	"bytes"
	"container/heap"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
)

// Which says which keys are wanted.
type Which uint8

// The kinds of keys, to be combined with |.
const (
	Existing Which = 1 << iota // aggregates that exist
	Deleted                    // aggregates that were deleted
	Notes                      // keys of which only a change is noted
	All      = Existing | Deleted | Notes
)

func (w Which) has(kind recordKind) bool {
	return kind.keyed() && kind != kindGone && w&(1<<(kind-kindExisting)) != 0
}

// runBytes is how many bytes of keys are sorted in RAM at once.
const runBytes = 32 << 20

// Keys are the keys of a table in bytewise order. They were taken at one moment;
// what is written later does not change them. Close gives their files back.
//
//	for keys.Next() {
//		use(keys.Key())
//	}
//	if err := keys.Err(); err != nil { … }
type Keys struct {
	ram  keyRun // the last run, when it is the only one
	runs runHeap
	disk []file
	key  []byte
	err  error
}

// Keys returns the committed keys of a table. Commits wait while they are
// collected, which takes as long as to read the files of the store once; they are
// sorted in parts of 32 MiB, kept in files beside the log that a crash leaves
// nothing of.
func (s *Store) Keys(ctx context.Context, table uint16, which Which) (*Keys, error) {
	return s.collect(ctx, nil, table, which)
}

// Keys returns the keys of a table as the batch sees them, committed or not;
// see Store.Keys. The result may be used beyond the end of the batch.
func (b *Batch) Keys(ctx context.Context, table uint16, which Which) (*Keys, error) {
	if b.closed.Load() {
		return nil, ErrBatchClosed
	}
	return b.s.collect(ctx, b, table, which)
}

// collect takes the keys of the log that no batch has written, and those of the
// batches.
func (s *Store) collect(ctx context.Context, b *Batch, table uint16, which Which) (*Keys, error) {
	s.writing.Lock()
	defer s.writing.Unlock()
	c := &collector{s: s, table: table, which: which}
	s.mu.RLock()
	closed := s.closed
	if b != nil {
		c.batches = append(slices.Clone(s.before(b)), b)
	}
	c.segments = slices.DeleteFunc(slices.Clone(s.segments), func(seg *segment) bool { return seg == nil })
	s.mu.RUnlock()
	if closed {
		return nil, ErrClosed
	}
	err := c.fromBatches()
	for _, seg := range c.segments {
		if err == nil {
			err = c.fromSegment(ctx, seg)
		}
	}
	var keys *Keys
	if err == nil {
		keys, err = c.finish()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("collect the keys of table %d: %w", table, err), c.keys.Close())
	}
	return keys, nil
}

// collector sorts keys into runs. It works while nobody commits.
type collector struct {
	s        *Store
	table    uint16
	which    Which
	batches  []*Batch // in order
	segments []*segment
	run      keyRun
	keys     Keys
}

// fromBatches takes the keys that batches have written; the newest write counts.
func (c *collector) fromBatches() error {
	for i, b := range c.batches {
		for _, cl := range b.own.claims {
			if cl.where != inBuf || c.written(cl.hash, i+1) {
				continue
			}
			if err := c.take(recordAt(b.buf, cl.at)); err != nil {
				return err
			}
		}
	}
	return nil
}

// written reports whether a batch from the given one on has written the hash.
func (c *collector) written(h uint64, from int) bool {
	for _, b := range c.batches[from:] {
		if b.own.find(h).where == inBuf {
			return true
		}
	}
	return false
}

func (c *collector) fromSegment(ctx context.Context, seg *segment) error {
	sc := newScanner(seg.file, c.s.seed, seg.size)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		_, at, payload, err := sc.next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return c.s.scanError(seg, err)
		}
		err = eachRecord(payload, func(off int, r record) error {
			if r.table() != c.table || !c.which.has(r.kind()) || !c.s.isLive(seg, at+int64(off), r) || c.written(c.s.hashOf(r), 0) {
				return nil
			}
			return c.take(r)
		})
		if err != nil {
			return c.s.scanError(seg, err)
		}
	}
}

// take adds the key of a record, if it is wanted.
func (c *collector) take(r record) error {
	if r.table() != c.table || !c.which.has(r.kind()) {
		return nil
	}
	if key := r.key(); c.run.size()+len(key) > runBytes {
		if err := c.spill(); err != nil {
			return err
		}
	}
	c.run.add(r.key())
	return nil
}

// spill writes the sorted run to a file that has no name any more.
func (c *collector) spill() error {
	name := fmt.Sprintf("keys-%d%s", len(c.keys.disk), tmpSuffix)
	f, err := c.s.disk.Create(name)
	if err != nil {
		return err
	}
	c.keys.disk = append(c.keys.disk, f)
	if err := c.s.disk.Remove(name); err != nil {
		return err
	}
	c.run.sort()
	size, err := c.run.write(f)
	if err != nil {
		return fmt.Errorf("write %d sorted keys: %w", len(c.run.spans), err)
	}
	c.keys.runs = append(c.keys.runs, &diskRun{in: bufio.NewReaderSize(io.NewSectionReader(f, 0, size), 64<<10)})
	c.run = keyRun{buf: c.run.buf[:0], spans: c.run.spans[:0]}
	return nil
}

// finish makes the runs ready to be merged. The last run stays in RAM.
func (c *collector) finish() (*Keys, error) {
	c.run.sort()
	k := &c.keys
	if len(k.runs) == 0 {
		k.ram = c.run
		return k, nil
	}
	k.runs = append(k.runs, &c.run)
	filled := k.runs[:0]
	for _, r := range k.runs {
		ok, err := r.next()
		if err != nil {
			return nil, err
		}
		if ok {
			filled = append(filled, r)
		}
	}
	k.runs = filled
	heap.Init(&k.runs)
	return k, nil
}

// Next goes on to the next key and reports whether there is one.
func (k *Keys) Next() bool {
	if k.err != nil {
		return false
	}
	if len(k.disk) == 0 {
		ok, _ := k.ram.next()
		k.key = k.ram.key()
		return ok
	}
	if len(k.runs) == 0 {
		return false
	}
	k.key = append(k.key[:0], k.runs[0].key()...)
	ok, err := k.runs[0].next()
	switch {
	case err != nil:
		k.err = fmt.Errorf("read sorted keys: %w", err)
		return false
	case ok:
		heap.Fix(&k.runs, 0)
	default:
		heap.Pop(&k.runs)
	}
	return true
}

// Key is the current key, valid until the next call of Next.
func (k *Keys) Key() []byte { return k.key }

// Err is what ended the keys before their end.
func (k *Keys) Err() error { return k.err }

// Close gives memory and files back. It may be called twice.
func (k *Keys) Close() error {
	var errs []error
	for _, f := range k.disk {
		errs = append(errs, f.Close())
	}
	*k = Keys{}
	return errors.Join(errs...)
}

// run is a sorted sequence of keys.
type run interface {
	next() (ok bool, err error)
	key() []byte
}

// keyRun is a run in RAM.
type keyRun struct {
	buf   []byte
	spans []span
	now   []byte
}

type span struct{ from, to uint32 }

func (r *keyRun) size() int { return len(r.buf) + 8*len(r.spans) }

func (r *keyRun) add(key []byte) {
	from := len(r.buf)
	r.buf = append(r.buf, key...)
	r.spans = append(r.spans, span{uint32(from), uint32(len(r.buf))})
}

func (r *keyRun) at(s span) []byte { return r.buf[s.from:s.to:s.to] }

func (r *keyRun) sort() {
	slices.SortFunc(r.spans, func(a, b span) int { return bytes.Compare(r.at(a), r.at(b)) })
}

func (r *keyRun) next() (bool, error) {
	if len(r.spans) == 0 {
		return false, nil
	}
	r.now, r.spans = r.at(r.spans[0]), r.spans[1:]
	return true, nil
}

func (r *keyRun) key() []byte { return r.now }

// write writes each key with its length and checksum in front.
func (r *keyRun) write(f io.WriterAt) (size int64, err error) {
	out := io.NewOffsetWriter(f, 0)
	w := bufio.NewWriterSize(out, 1<<20)
	var head [8]byte
	for _, s := range r.spans {
		key := r.at(s)
		le.PutUint32(head[:], uint32(len(key)))
		le.PutUint32(head[4:], crc32.Checksum(key, castagnoli))
		if _, err := w.Write(head[:]); err != nil {
			return 0, err
		}
		if _, err := w.Write(key); err != nil {
			return 0, err
		}
		size += int64(len(head) + len(key))
	}
	return size, w.Flush()
}

// diskRun is a run that write has written.
type diskRun struct {
	in  *bufio.Reader
	now []byte
}

func (r *diskRun) next() (bool, error) {
	var head [8]byte
	if _, err := io.ReadFull(r.in, head[:]); err != nil {
		return false, ignoreEOF(err)
	}
	n := int(le.Uint32(head[:]))
	if n > maxGroup {
		return false, errors.New("the length of a key is wrong")
	}
	r.now = slices.Grow(r.now[:0], n)[:n]
	if _, err := io.ReadFull(r.in, r.now); err != nil {
		return false, err
	}
	if crc32.Checksum(r.now, castagnoli) != le.Uint32(head[4:]) {
		return false, errors.New("the checksum of a key is wrong")
	}
	return true, nil
}

func (r *diskRun) key() []byte { return r.now }

// runHeap has the run with the smallest key in front.
type runHeap []run

func (h runHeap) Len() int           { return len(h) }
func (h runHeap) Less(i, j int) bool { return bytes.Compare(h[i].key(), h[j].key()) < 0 }
func (h runHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *runHeap) Push(x any)        { *h = append(*h, x.(run)) }
func (h *runHeap) Pop() any {
	old := *h
	last := old[len(old)-1]
	*h = old[:len(old)-1]
	return last
}
