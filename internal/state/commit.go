package state

import (
	"errors"
	"fmt"
	"hash/crc32"
	"time"

	"backstory/transform"
)

const (
	// applyStep is how many keys are put into the index while readers wait.
	applyStep = 128
	// overdueWait is how long a commit waits at most for a step of compaction that
	// has fallen behind.
	overdueWait = 10 * time.Millisecond
)

// Commit appends the batch to the log, in one write, and makes it the committed
// state. It must be the oldest batch that is not committed. On an error, a full
// disk for instance, the store is as before and the batch may be committed again
// or dropped. Commit does not sync: see Sync.
func (s *Store) Commit(b *Batch) error {
	began := time.Now()
	if err := s.commitNext(b); err != nil {
		return err
	}
	s.metrics.commits.Observe(time.Since(began).Seconds())
	if s.wantsCompaction() {
		s.wake()
	}
	if s.overdue() {
		s.giveWay()
	}
	return nil
}

func (s *Store) commitNext(b *Batch) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	if err := s.mayCommit(b); err != nil {
		return fmt.Errorf("commit to the state: %w", err)
	}
	if err := s.commit(b); err != nil {
		return fmt.Errorf("commit %d records to the state: %w", b.count, err)
	}
	s.retireBatch(b)
	return nil
}

// giveWay lets compaction do a step before the next commit.
func (s *Store) giveWay() {
	limit := time.NewTimer(overdueWait)
	defer limit.Stop()
	select {
	case <-s.moved:
	case <-limit.C:
	}
}

func (s *Store) mayCommit(b *Batch) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	switch {
	case s.closed:
		return ErrClosed
	case len(s.flights) == 0 || s.flights[0] != b:
		for _, f := range s.flights {
			if f == b {
				return errors.New("a batch that was begun before is neither committed nor dropped")
			}
		}
		return ErrBatchClosed
	}
	return nil
}

// commit writes the group of a batch and applies it. The caller has writing.
func (s *Store) commit(b *Batch) error {
	buf, count := s.whole(b)
	if count == 0 {
		return nil
	}
	if err := s.makeRoom(len(buf)); err != nil {
		return err
	}
	seg, at, err := s.appendGroup(groupBatch, buf, count)
	if err != nil {
		return err
	}
	if err := s.apply(b, seg, at); err != nil {
		return s.fail(err)
	}
	s.applyLists(b, buf[len(b.buf):])
	return nil
}

// whole returns the group of a batch, with room for the header, and the number
// of its records. The meta is put behind the records, which readers may be
// looking at.
func (s *Store) whole(b *Batch) (buf []byte, count int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(b.buf)
	buf = append(b.buf, b.meta...)
	b.buf = buf[:n]
	return buf, b.count + b.metaCount
}

// makeRoom begins the next segment where the active one would grow beyond its
// size. The opening group does not count: with a long list of keys to read again
// it may be larger than that, and each group would get a segment of its own.
func (s *Store) makeRoom(n int) error {
	if s.failed != nil {
		return s.failed
	}
	if used := s.active.movable(); used > 0 && used+int64(n) > s.segmentBytes {
		return s.roll()
	}
	return nil
}

// appendGroup writes buf, which has room for the header in front, at the end of
// the active segment. Where the write fails the segment is as before.
func (s *Store) appendGroup(kind groupKind, buf []byte, count int) (*segment, int64, error) {
	seg, at := s.active, s.active.size
	s.fillGroup(kind, buf, count)
	if _, err := seg.file.WriteAt(buf, at); err != nil {
		err = fmt.Errorf("write %d bytes to %s: %w", len(buf), logName(seg.number), err)
		if cut := seg.file.Truncate(at); cut != nil {
			err = s.fail(errors.Join(err, fmt.Errorf("cut them off again: %w", cut)))
		}
		return nil, 0, err
	}
	s.grown(seg, at+int64(len(buf)))
	return seg, at, nil
}

// fillGroup writes the header of the next group into the front of buf.
func (s *Store) fillGroup(kind groupKind, buf []byte, count int) {
	g := group{
		seq: s.seq + 1, synced: s.Synced(), payload: len(buf) - groupHeaderSize,
		records: uint32(count), kind: kind,
	}
	g.crc = crc32.Update(s.seed, castagnoli, buf[groupHeaderSize:])
	g.put(buf, s.seed)
}

// grown takes note of a group that is written.
func (s *Store) grown(seg *segment, size int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seq++
	seg.last = s.seq
	seg.size = size
}

// apply points the index to the records of a batch. Readers find them in the
// batch until all are in the index.
func (s *Store) apply(b *Batch, seg *segment, at int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	left := applyStep
	for i := range b.own.claims {
		c := &b.own.claims[i]
		if c.where != inBuf {
			continue
		}
		r := recordAt(b.buf, c.at)
		size := padded(len(r))
		if err := s.place(c.hash, r.table(), makeLoc(seg.handle, at+int64(c.at), size, r.kind()), size); err != nil {
			return err
		}
		if left--; left == 0 {
			s.mu.Unlock()
			left = applyStep
			s.mu.Lock()
		}
	}
	return nil
}

// applyLists takes the meta and the again list of a batch over.
func (s *Store) applyLists(b *Batch, meta []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, at := range b.lists {
		s.applyList(recordAt(b.buf, at))
	}
	for len(meta) > 0 {
		r := recordAt(meta, 0)
		s.applyList(r)
		meta = meta[padded(len(r)):]
	}
}

// applyList takes one record of meta or of the again list over.
func (s *Store) applyList(r record) {
	switch r.kind() {
	case kindMeta:
		if v := s.meta[string(r.key())]; v != nil {
			*v = append((*v)[:0], r.image()...)
			return
		}
		v := append([]byte{}, r.image()...)
		s.meta[string(r.key())] = &v
	case kindNoMeta:
		delete(s.meta, string(r.key()))
	case kindAgain:
		keys := s.again[r.table()]
		if keys == nil {
			keys = map[string]struct{}{}
			s.again[r.table()] = keys
		}
		keys[string(r.key())] = struct{}{}
	case kindDone:
		keys := s.again[r.table()]
		if delete(keys, string(r.key())); len(keys) == 0 {
			delete(s.again, r.table())
		}
	}
}

// retireBatch ends a committed batch and keeps its buffers for a later one. They
// are emptied when no other batch can look into them any more.
func (s *Store) retireBatch(b *Batch) {
	b.closed.Store(true)
	left := s.landed(b)
	left.reset()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.free) < maxFree {
		s.free = append(s.free, left)
	}
}

// landed takes the oldest batch, b, out of those under way, and its buffers from it.
func (s *Store) landed(b *Batch) (left buffers) {
	s.mu.Lock()
	defer s.mu.Unlock()
	left, b.buffers = b.buffers, buffers{}
	n := copy(s.flights, s.flights[1:])
	s.flights[n] = nil
	s.flights = s.flights[:n]
	return left
}

// fail makes every later write return err, because what is in RAM and what is on
// disk may differ.
func (s *Store) fail(err error) error {
	if s.failed == nil {
		s.failed = fmt.Errorf("the state is closed for writing until it is opened again: %w", err)
	}
	return err
}

// roll seals the active segment and begins the next, whose first group says all
// that is not in the index: the other segments, meta and the keys to read again.
// So only the newest segment has to be read for these. The name of a segment is
// durable before the next one begins, so that a loss of power leaves no gap; the
// keeper has seen to that long before. The caller has writing.
func (s *Store) roll() error {
	if !s.active.named {
		if err := s.disk.Sync(); err != nil {
			return s.fail(fmt.Errorf("sync the names of the state's files: %w", err))
		}
		s.active.named = true
	}
	seg, err := s.newSegment(s.active.number + 1)
	if err != nil {
		return fmt.Errorf("begin the next file of the state: %w", err)
	}
	s.active = seg
	s.wake()
	return nil
}

// newSegment makes a segment with its header and opening group and gives it a
// handle. On an error nothing is left of it.
func (s *Store) newSegment(number uint64) (*segment, error) {
	handle, err := s.freeHandle()
	if err != nil {
		return nil, err
	}
	buf := s.opening(number)
	if len(buf) > maxGroup {
		return nil, fmt.Errorf("its opening group would exceed %d bytes: too many keys wait to be read again", maxGroup)
	}
	f, err := s.disk.Create(logName(number))
	if err != nil {
		return nil, err
	}
	s.dirty = true
	if _, err := f.WriteAt(buf, 0); err != nil {
		return nil, errors.Join(err, f.Close(), s.disk.Remove(logName(number)))
	}
	seg := &segment{number: number, handle: handle, file: f, fixed: int64(len(buf))}
	s.grown(seg, seg.fixed)
	s.addSegment(seg)
	return seg, nil
}

// opening is the header of a segment and its first group.
func (s *Store) opening(number uint64) []byte {
	buf := make([]byte, segmentHeaderSize+groupHeaderSize)
	putSegmentHeader(buf, s.id, number)
	buf, count := s.appendRest(buf)
	s.fillGroup(groupOpening, buf[segmentHeaderSize:], count)
	return buf
}

// appendRest encodes what the store has beside the index.
func (s *Store) appendRest(buf []byte) (_ []byte, count int) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	add := func(kind recordKind, table uint16, key string, value []byte) {
		buf = appendRecord(buf, s.seed, kind, 0, table, key, &transform.Entry{Image: value})
		count++
	}
	var others []byte
	for _, seg := range s.segments {
		if seg != nil && !seg.retired {
			others = le.AppendUint64(others, seg.number)
			others = le.AppendUint64(others, seg.last)
		}
	}
	add(kindSegments, 0, "", others)
	for name, v := range s.meta {
		add(kindMeta, 0, name, *v)
	}
	for table, keys := range s.again {
		for k := range keys {
			add(kindAgain, table, k, nil)
		}
	}
	return buf, count
}

func (s *Store) freeHandle() (uint16, error) {
	for i, seg := range s.segments {
		if seg == nil {
			return uint16(i), nil
		}
	}
	if len(s.segments) > 1<<16-1 {
		return 0, errors.New("more than 65,536 files: make segment_bytes larger")
	}
	return uint16(len(s.segments)), nil
}

func (s *Store) addSegment(seg *segment) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if int(seg.handle) == len(s.segments) {
		s.segments = append(s.segments, nil)
	}
	s.segments[seg.handle] = seg
}
