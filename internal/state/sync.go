package state

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"time"
)

// markName is the file that says how far the log was durable when it was last
// synced. What lies below can't be a torn tail, whatever is missing.
const markName = "SYNCED"

const (
	markMagic = "bckmark1"
	markSize  = 48
)

// mark is the content of that file.
type mark struct {
	id     storeID
	seq    uint64
	number uint64 // of the segment that holds it
}

func (m mark) encode() []byte {
	buf := make([]byte, markSize)
	copy(buf, markMagic)
	copy(buf[16:], m.id[:])
	le.PutUint64(buf[32:], m.seq)
	le.PutUint64(buf[40:], m.number)
	le.PutUint32(buf[12:], markSum(buf))
	return buf
}

func markSum(buf []byte) uint32 {
	return crc32.Update(crc32.Checksum(buf[:12], castagnoli), castagnoli, buf[16:markSize])
}

// readMark returns the mark, or ok false if there is none that is whole: it only
// sharpens the detection of damage, so a lost one is no damage.
func readMark(d disk) (m mark, ok bool, err error) {
	f, err := d.Open(markName)
	if errors.Is(err, fs.ErrNotExist) {
		return m, false, nil
	}
	if err != nil {
		return m, false, err
	}
	var buf [markSize]byte
	_, err = f.ReadAt(buf[:], 0)
	if err = errors.Join(ignoreEOF(err), f.Close()); err != nil {
		return m, false, err
	}
	if string(buf[:8]) != markMagic || le.Uint32(buf[12:]) != markSum(buf[:]) {
		return m, false, nil
	}
	return mark{id: storeID(buf[16:32]), seq: le.Uint64(buf[32:]), number: le.Uint64(buf[40:])}, true, nil
}

func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// Sync makes everything durable that is committed when it is called. It runs
// beside commits and holds none of them up for longer than it takes to look
// which files there are. Where files could not be synced the store accepts no
// commit any more, since the operating system may have forgotten what it could
// not write; where only the mark could not be written, Sync may be called again.
func (s *Store) Sync(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("sync the state: %w", err)
	}
	s.syncing.Lock()
	defer s.syncing.Unlock()
	began := time.Now()
	w, err := s.unsynced()
	if err != nil {
		return fmt.Errorf("sync the state: %w", err)
	}
	if w.upTo == s.Synced() && !w.names {
		return nil
	}
	if err := s.syncFiles(w); err != nil {
		s.writing.Lock()
		defer s.writing.Unlock()
		return s.fail(fmt.Errorf("sync the state: %w", err))
	}
	s.setNamed(w)
	if err := s.writeMark(mark{id: s.id, seq: w.upTo, number: w.files[len(w.files)-1].number}); err != nil {
		return fmt.Errorf("sync the state: %w", err)
	}
	s.setSynced(w)
	s.metrics.syncs.Observe(time.Since(began).Seconds())
	return nil
}

// unsyncedWork is what a Sync has to do.
type unsyncedWork struct {
	files []*segment // in the order of the log
	names bool
	upTo  uint64
}

func (s *Store) unsynced() (w unsyncedWork, err error) {
	s.writing.Lock()
	defer s.writing.Unlock()
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return w, ErrClosed
	}
	if s.failed != nil {
		return w, s.failed
	}
	for _, seg := range s.segments {
		if seg != nil && !seg.synced {
			w.files = append(w.files, seg)
		}
	}
	sortSegments(w.files)
	w.names, s.dirty = s.dirty, false
	w.upTo = s.seq
	return w, nil
}

// syncFiles syncs the older files first: what is durable is then a prefix of the log.
func (s *Store) syncFiles(w unsyncedWork) error {
	for _, seg := range w.files {
		if err := seg.file.Sync(); err != nil {
			return fmt.Errorf("%s: %w", logName(seg.number), err)
		}
	}
	if w.names {
		if err := s.disk.Sync(); err != nil {
			return fmt.Errorf("directory: %w", err)
		}
	}
	return nil
}

// openMark opens the file of the mark or makes it.
func (s *Store) openMark() error {
	f, err := s.disk.Open(markName)
	if errors.Is(err, fs.ErrNotExist) {
		f, err = s.disk.Create(markName)
	}
	s.markFile = f
	return err
}

func (s *Store) writeMark(m mark) error {
	if _, err := s.markFile.WriteAt(m.encode(), 0); err != nil {
		return fmt.Errorf("write %s: %w", markName, err)
	}
	return nil
}

// setNamed takes note that the names of files are durable.
func (s *Store) setNamed(w unsyncedWork) {
	if !w.names {
		return
	}
	s.writing.Lock()
	defer s.writing.Unlock()
	for _, seg := range w.files {
		seg.named = true
	}
}

func (s *Store) setSynced(w unsyncedWork) {
	s.writing.Lock()
	defer s.writing.Unlock()
	for _, seg := range w.files {
		if seg != s.active && seg.last <= w.upTo {
			seg.synced = true
			s.wake() // its hint can be written
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.synced = w.upTo
}
