package state

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"backstory/transform"
)

const (
	// moveStep is about how many bytes compaction writes while commits wait.
	moveStep = 1 << 20
	// moveScan is about how many bytes it reads for that at most.
	moveScan = 8 << 20
	// keeperRetry is how long the keeper waits after an error before it tries again.
	keeperRetry = 5 * time.Second
)

// wake makes the keeper look for work.
func (s *Store) wake() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// keep writes hints and compacts, whenever it is woken, until ctx is done.
func (s *Store) keep(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.kick:
		}
		for ctx.Err() == nil {
			more, err := s.work(ctx)
			if err != nil && ctx.Err() == nil {
				s.keepFailed(ctx, err)
			}
			if err != nil || !more {
				break
			}
		}
	}
}

// keepFailed deals with an error that nobody waits for: damage stops the next
// commit, anything else, such as a full disk, is tried again.
func (s *Store) keepFailed(ctx context.Context, err error) {
	var refusal *Refusal
	if errors.As(err, &refusal) {
		s.writing.Lock()
		defer s.writing.Unlock()
		_ = s.fail(err) // the next commit returns it
		return
	}
	s.log.Warn("state is not compacted", "dir", s.dir, "err", err, "retry", keeperRetry)
	retry := time.NewTimer(keeperRetry)
	defer retry.Stop()
	select {
	case <-ctx.Done():
	case <-retry.C:
		s.wake()
	}
}

// work does one step of what is to be done.
func (s *Store) work(ctx context.Context) (more bool, err error) {
	if s.unnamed() {
		return true, s.Sync(ctx)
	}
	if s.moving == nil && s.wantsCompaction() {
		s.moving = s.pick()
	}
	if s.moving != nil {
		return true, s.moveOn(ctx)
	}
	if seg := s.unhinted(); seg != nil {
		if err := s.writeHint(ctx, seg); err != nil {
			return false, fmt.Errorf("write the hint of %s: %w", logName(seg.number), err)
		}
		seg.hinted = true
		return true, nil
	}
	return false, nil
}

// unnamed reports whether the next segment could not begin without a sync.
func (s *Store) unnamed() bool {
	s.writing.Lock()
	defer s.writing.Unlock()
	return !s.active.named
}

// unhinted returns a durable segment that has no hint.
func (s *Store) unhinted() *segment {
	s.writing.Lock()
	defer s.writing.Unlock()
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, seg := range s.segments {
		if seg != nil && seg != s.active && seg.synced && !seg.hinted && !seg.retired {
			return seg
		}
	}
	return nil
}

// wantsCompaction reports whether the files are so much larger than what is live
// in them that a segment is worth being emptied: disk use stays at about twice the
// live records and one segment.
func (s *Store) wantsCompaction() bool {
	u := s.usage()
	return u.movable > u.live+u.live*3/4+s.segmentBytes
}

// overdue reports whether compaction has fallen behind the commits.
func (s *Store) overdue() bool {
	u := s.usage()
	return u.movable > 2*u.live+3*s.segmentBytes
}

// move is the compaction of one segment.
type move struct {
	seg  *segment
	scan *scanner
	end  bool    // the segment is read to its end
	buf  []byte  // room for a group's header, then records that were live when they were read
	from []int64 // where in the segment they are
	done int     // bytes of buf that are written, or need not be
}

// pick begins with the sealed segment that gives back most for what must be
// written; nil if there is none that gives anything.
func (s *Store) pick() *move {
	s.writing.Lock()
	defer s.writing.Unlock()
	s.mu.RLock()
	defer s.mu.RUnlock()
	var best *segment
	for _, seg := range s.segments {
		if seg == nil || seg == s.active || seg.retired || seg.live*8 > seg.movable()*7 {
			continue
		}
		if best == nil || seg.live*best.movable() < best.live*seg.movable() {
			best = seg
		}
	}
	if best == nil {
		return nil
	}
	return &move{seg: best, scan: newScanner(best.file, s.seed, best.size)}
}

// moveOn does one step of the compaction: it reads beside the commits and writes
// between two of them.
func (s *Store) moveOn(ctx context.Context) error {
	m := s.moving
	if m.end {
		return s.moveDone(ctx)
	}
	err := s.gather(m)
	if err == nil {
		err = s.writeMoved(m)
	}
	if err != nil {
		s.moving = nil // from the start again: what has moved is not live there any more
		return fmt.Errorf("compact %s: %w", logName(m.seg.number), err)
	}
	select {
	case s.moved <- struct{}{}:
	default:
	}
	return nil
}

// gather collects live records from the next groups.
func (s *Store) gather(m *move) error {
	var head [groupHeaderSize]byte
	m.buf, m.from, m.done = append(m.buf[:0], head[:]...), m.from[:0], len(head)
	limit := int(min(moveStep, s.segmentBytes/4))
	for stop := m.scan.off + moveScan; len(m.buf) < limit && m.scan.off < stop; {
		_, at, payload, err := m.scan.next()
		if errors.Is(err, io.EOF) {
			m.end = true
			return nil
		}
		if err != nil {
			return s.scanError(m.seg, err)
		}
		if err := s.gatherGroup(m, at, payload); err != nil {
			return s.scanError(m.seg, err)
		}
	}
	return nil
}

func (s *Store) gatherGroup(m *move, at int64, payload []byte) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return eachRecord(payload, func(off int, r record) error {
		if s.isLive(m.seg, at+int64(off), r) {
			m.buf = append(m.buf, payload[off:off+padded(len(r))]...)
			m.from = append(m.from, at+int64(off))
		}
		return nil
	})
}

// writeMoved writes those of the collected records that are still live, in groups
// of about moveStep, so that no commit waits for long.
func (s *Store) writeMoved(m *move) error {
	for first := 0; first < len(m.from); {
		n, err := s.writeSome(m, first)
		if err != nil {
			return err
		}
		first += n
	}
	return nil
}

// writeSome writes from the record with ordinal first on and returns how many
// records it has dealt with. The header of their group takes the place of what is
// done.
func (s *Store) writeSome(m *move, first int) (n int, err error) {
	s.writing.Lock()
	defer s.writing.Unlock()
	read, kept, count := m.done, m.done, 0
	for first+n < len(m.from) && read-m.done < moveStep {
		r := recordAt(m.buf, uint32(read))
		size := padded(len(r))
		if s.isLive(m.seg, m.from[first+n], r) {
			kept += copy(m.buf[kept:], m.buf[read:read+size])
			count++
		}
		read += size
		n++
	}
	if count > 0 {
		if err := s.writeGroup(m.buf[m.done-groupHeaderSize:kept], count); err != nil {
			return 0, err
		}
	}
	m.done = read
	return n, nil
}

func (s *Store) writeGroup(buf []byte, count int) error {
	if err := s.makeRoom(len(buf)); err != nil {
		return err
	}
	seg, at, err := s.appendGroup(groupMoved, buf, count)
	if err != nil {
		return err
	}
	if err := s.applyMoved(buf, seg, at); err != nil {
		return s.fail(err)
	}
	s.metrics.moved.Add(float64(len(buf)))
	return nil
}

// isLive reports whether the index points to the record. The caller has
// writing or mu, so the index does not change.
func (s *Store) isLive(seg *segment, at int64, r record) bool {
	if !r.kind().keyed() {
		return false
	}
	l := s.index.get(s.hashOf(r))
	return l != 0 && l.handle() == seg.handle && l.offset() == at
}

func (s *Store) applyMoved(buf []byte, seg *segment, at int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return eachRecord(buf[groupHeaderSize:], func(off int, r record) error {
		size := padded(len(r))
		l := makeLoc(seg.handle, at+groupHeaderSize+int64(off), size, r.kind())
		return s.place(s.hashOf(r), r.table(), l, size)
	})
}

// moveDone takes leave of an emptied segment: the log says so, the log is synced
// up to there, and only then the file goes.
func (s *Store) moveDone(ctx context.Context) error {
	seg := s.moving.seg
	if err := s.retire(seg); err != nil {
		return fmt.Errorf("retire %s: %w", logName(seg.number), err)
	}
	if err := s.Sync(ctx); err != nil {
		return err
	}
	if err := s.remove(seg); err != nil {
		return fmt.Errorf("remove %s: %w", logName(seg.number), err)
	}
	s.moving = nil
	return nil
}

// retire writes that a segment is not needed any more.
func (s *Store) retire(seg *segment) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	if seg.retired {
		return nil
	}
	s.mu.RLock()
	live := seg.live
	s.mu.RUnlock()
	if live != 0 {
		return fmt.Errorf("%d bytes of it are still live", live)
	}
	buf := appendRecord(make([]byte, groupHeaderSize), s.seed, kindRetired, 0, 0, "",
		&transform.Entry{Image: le.AppendUint64(nil, seg.number)})
	if err := s.makeRoom(len(buf)); err != nil {
		return err
	}
	if _, _, err := s.appendGroup(groupMoved, buf, 1); err != nil {
		return err
	}
	seg.retired = true
	return nil
}

// remove closes and removes the file of a retired segment.
func (s *Store) remove(seg *segment) error {
	s.syncing.Lock()
	defer s.syncing.Unlock()
	s.writing.Lock()
	defer s.writing.Unlock()
	var closed error
	if s.segments[seg.handle] == seg {
		s.mu.Lock()
		s.segments[seg.handle] = nil
		s.mu.Unlock()
		closed = seg.file.Close()
	}
	s.dirty = true
	return errors.Join(closed, s.disk.Remove(logName(seg.number)), s.disk.Remove(hintName(seg.number)))
}
