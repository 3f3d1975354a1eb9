package state

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"slices"
	"strings"
	"time"
)

// loader brings a store back from its files.
type loader struct {
	s       *Store
	mark    mark
	marked  bool
	numbers []uint64 // of the segments, ascending
	seq     uint64   // newest valid group so far
	before  uint64   // number of the segment that was loaded last; 0: none
	headed  []uint64 // those of them whose header is right
	needed  []needed // what must be there, as the newest opening group says
}

// needed is a segment and its last group.
type needed struct{ number, last uint64 }

// load opens what is in the directory, or begins a new log.
func (s *Store) load(ctx context.Context) error {
	began := time.Now()
	ld := &loader{s: s}
	if err := ld.list(); err != nil {
		return fmt.Errorf("open the state: %w", err)
	}
	fresh, err := ld.identify()
	if err != nil {
		return fmt.Errorf("open the state: %w", err)
	}
	if fresh {
		err = s.create()
	} else {
		err = ld.segments(ctx)
	}
	if err != nil {
		return fmt.Errorf("open the state: %w", err)
	}
	if err := s.openMark(); err != nil {
		return fmt.Errorf("open the state: %s: %w", markName, err)
	}
	s.dirty = true // also names that a killed process made may not be durable
	if err := s.Sync(ctx); err != nil {
		return err
	}
	if err := ld.removeRest(); err != nil {
		return fmt.Errorf("open the state: %w", err)
	}
	s.log.Info("state opened", "dir", s.dir, "keys", s.index.used, "segments", len(s.segments),
		"seq", s.seq, "seconds", time.Since(began).Seconds())
	return nil
}

// list finds the segments and removes files that were never finished.
func (ld *loader) list() error {
	names, err := ld.s.disk.List()
	if err != nil {
		return err
	}
	for _, name := range names {
		if strings.HasSuffix(name, tmpSuffix) {
			if err := ld.s.disk.Remove(name); err != nil {
				return err
			}
		}
		if n, ok := numberOf(name, logSuffix); ok {
			ld.numbers = append(ld.numbers, n)
		}
	}
	slices.Sort(ld.numbers)
	ld.mark, ld.marked, err = readMark(ld.s.disk)
	return err
}

// bornMax is more than a store has when its creation was interrupted.
const bornMax = 4096

// identify finds the id of the store in the headers of the files, which must all
// be of one store. fresh says that there is no store yet.
func (ld *loader) identify() (fresh bool, err error) {
	s := ld.s
	ids := map[storeID]string{}
	if ld.marked {
		ids[ld.mark.id] = markName
	}
	var bytes int64
	for _, n := range ld.numbers {
		id, ok, size, err := s.inspect(n)
		if err != nil {
			return false, err
		}
		if bytes += size; ok {
			ids[id] = logName(n)
			ld.headed = append(ld.headed, n)
		}
	}
	switch {
	case len(ids) > 1:
		return false, &Refusal{
			Thing:   "state directory " + s.dir,
			Problem: "its files are of different stores",
			Cure:    rebuildCure(s.dir),
		}
	case len(ids) == 1:
		for id := range ids {
			s.id, s.seed = id, id.seed()
		}
		if len(ld.numbers) == 0 {
			return false, damaged(s.dir, markName, 0, "the log that it tells of is gone")
		}
		return false, nil
	case bytes > bornMax || len(ld.numbers) > 0 && ld.numbers[len(ld.numbers)-1] != 1:
		return false, damaged(s.dir, logName(ld.numbers[0]), 0, "the header of the file is wrong")
	}
	return true, nil
}

// inspect reads the header of a segment.
func (s *Store) inspect(number uint64) (id storeID, ok bool, size int64, err error) {
	f, err := s.disk.Open(logName(number))
	if err != nil {
		return id, false, 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if size, err = f.Size(); err != nil {
		return id, false, 0, err
	}
	id, ok, err = readSegmentHeader(f, number)
	if errors.Is(err, errVersion) {
		return id, false, 0, &Refusal{
			Thing:   "state directory " + s.dir,
			Problem: err.Error(),
			Cure:    "use the version of backstory that wrote it, or " + rebuildCure(s.dir),
		}
	}
	return id, ok, size, err
}

// create begins a new log. What an interrupted creation left goes.
func (s *Store) create() error {
	if _, err := rand.Read(s.id[:]); err != nil {
		return err
	}
	s.seed = s.id.seed()
	seg, err := s.newSegment(1)
	if err != nil {
		return err
	}
	s.active = seg
	return nil
}

// segments loads the segments in the order of the log.
func (ld *loader) segments(ctx context.Context) error {
	s := ld.s
	for i, number := range ld.numbers {
		if err := ctx.Err(); err != nil {
			return err
		}
		newest := i == len(ld.numbers)-1
		whole, err := ld.segment(number, newest)
		if err != nil {
			return err
		}
		if !whole {
			if err := ld.cutAfter(i); err != nil {
				return err
			}
			break
		}
	}
	if s.active == nil && !ld.marked {
		return s.create() // it was interrupted before
	}
	return ld.complete()
}

// segment loads one segment, by its hint if it has one. whole is false if it
// ends in a torn tail: then the log ends before it.
func (ld *loader) segment(number uint64, newest bool) (whole bool, err error) {
	s := ld.s
	f, err := s.disk.Open(logName(number))
	if err != nil {
		return false, err
	}
	size, err := f.Size()
	if err != nil {
		return false, errors.Join(err, f.Close())
	}
	handle, err := s.freeHandle()
	if err != nil {
		return false, errors.Join(err, f.Close())
	}
	seg := &segment{number: number, handle: handle, file: f, size: size}
	s.addSegment(seg)
	if !newest && slices.Contains(ld.headed, number) {
		h, ok, err := s.loadHint(seg)
		if err != nil {
			return false, err
		}
		if ok {
			return true, ld.hinted(seg, h)
		}
	}
	return ld.scan(seg)
}

// hinted takes over a segment that was loaded by its hint.
func (ld *loader) hinted(seg *segment, h hint) error {
	if h.first <= ld.seq || ld.before == seg.number-1 && h.first != ld.seq+1 {
		return damaged(ld.s.dir, logName(seg.number), segmentHeaderSize,
			fmt.Sprintf("group %d does not follow group %d", h.first, ld.seq))
	}
	seg.last, seg.fixed, seg.hinted, seg.synced = h.last, h.fixed, true, true
	ld.s.active, ld.seq, ld.before = seg, h.last, seg.number
	return nil
}

// scan loads a segment by reading it, and decides what a group that is not whole
// means.
func (ld *loader) scan(seg *segment) (whole bool, err error) {
	s := ld.s
	_, ok, err := readSegmentHeader(seg.file, seg.number)
	if err != nil {
		return false, err
	}
	if !ok {
		return ld.torn(seg, &badGroup{0, "the header of the file is wrong"})
	}
	sc := newScanner(seg.file, s.seed, seg.size)
	if ld.before == seg.number-1 && ld.before > 0 {
		sc.expect = ld.seq + 1
	}
	for {
		g, at, payload, err := sc.next()
		var bad *badGroup
		switch {
		case errors.Is(err, io.EOF) && sc.off > segmentHeaderSize:
			s.active, ld.before = seg, seg.number
			return true, nil
		case errors.Is(err, io.EOF):
			return ld.torn(seg, &badGroup{segmentHeaderSize, "the opening group is missing"})
		case errors.As(err, &bad):
			return ld.torn(seg, bad)
		case err != nil:
			return false, fmt.Errorf("read %s: %w", logName(seg.number), err)
		}
		if err := ld.group(seg, g, at, payload, sc.off); err != nil {
			return false, err
		}
	}
}

// group takes a valid group over.
func (ld *loader) group(seg *segment, g group, at int64, payload []byte, end int64) error {
	s := ld.s
	if opens := at == segmentHeaderSize+groupHeaderSize; opens != (g.kind == groupOpening) || g.seq <= ld.seq {
		return damaged(s.dir, logName(seg.number), at-groupHeaderSize, fmt.Sprintf("group %d does not belong here", g.seq))
	}
	if g.kind == groupOpening {
		clear(s.meta)
		clear(s.again)
		ld.needed = ld.needed[:0]
		seg.fixed = end
	}
	err := eachRecord(payload, func(off int, r record) error { return ld.record(seg, at+int64(off), r) })
	var bad *badGroup
	if errors.As(err, &bad) {
		return damaged(s.dir, logName(seg.number), at+bad.offset, bad.problem)
	}
	ld.seq, seg.last = g.seq, g.seq
	return err
}

func (ld *loader) record(seg *segment, at int64, r record) error {
	s := ld.s
	switch kind := r.kind(); {
	case kind.keyed():
		size := padded(len(r))
		return s.place(s.hashOf(r), r.table(), makeLoc(seg.handle, at, size, kind), size)
	case kind == kindSegments:
		for b := r.image(); len(b) >= 16; b = b[16:] {
			ld.needed = append(ld.needed, needed{le.Uint64(b), le.Uint64(b[8:])})
		}
	case kind == kindRetired:
		if b := r.image(); len(b) >= 8 {
			ld.needed = slices.DeleteFunc(ld.needed, func(n needed) bool { return n.number == le.Uint64(b) })
		}
	default:
		s.applyList(r)
	}
	return nil
}

// torn decides about a group that is not whole. If anything says that it was
// synced, it is damage. Else it is what a crash left: the log ends before it.
func (ld *loader) torn(seg *segment, bad *badGroup) (whole bool, err error) {
	s := ld.s
	durable, err := ld.durable(seg, bad.offset)
	if err != nil {
		return false, err
	}
	if ld.seq < durable {
		return false, damaged(s.dir, logName(seg.number), bad.offset, bad.problem)
	}
	s.log.Info("state cut after its last whole group", "file", logName(seg.number),
		"offset", bad.offset, "bytes", seg.size-bad.offset, "seq", ld.seq)
	if bad.offset > segmentHeaderSize {
		seg.size = bad.offset
		s.active = seg
		return false, nil
	}
	s.segments[seg.handle] = nil
	return false, seg.file.Close()
}

// durable is the newest group that is known to have been synced: by the mark, by
// a later group, or by a later segment's hint.
func (ld *loader) durable(seg *segment, from int64) (uint64, error) {
	newest := ld.mark.seq
	for _, n := range ld.numbers {
		if n < seg.number {
			continue
		}
		if n > seg.number {
			from = 0
			if ok, err := ld.s.hasHint(n); err != nil || ok {
				return math.MaxUint64, err
			}
		}
		seen, err := ld.s.newestSynced(n, from)
		if err != nil {
			return 0, err
		}
		newest = max(newest, seen)
	}
	return newest, nil
}

// newestSynced looks for headers of groups at every place where one could be.
func (s *Store) newestSynced(number uint64, from int64) (newest uint64, err error) {
	f, err := s.disk.Open(logName(number))
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	size, err := f.Size()
	if err != nil {
		return 0, err
	}
	buf := make([]byte, min(scanWindow, max(size-from, 0))+groupHeaderSize)
	for from &^= 7; ; from += scanWindow {
		n, err := f.ReadAt(buf, from)
		for i := 0; i+groupHeaderSize <= n; i += 8 {
			if g, ok := parseGroup(buf[i:], s.seed); ok {
				newest = max(newest, g.synced)
			}
		}
		if errors.Is(err, io.EOF) {
			return newest, nil
		}
		if err != nil {
			return 0, err
		}
	}
}

// cutAfter makes segment i, or the one before it if nothing is left of i, the end
// of the log. Until nothing can bring the later segments back, i stays torn, so
// that a crash leaves no log with a gap.
func (ld *loader) cutAfter(i int) error {
	s := ld.s
	later := ld.numbers[i+1:]
	for _, n := range later {
		if err := s.disk.Remove(logName(n)); err != nil {
			return err
		}
	}
	if len(later) > 0 {
		if err := s.disk.Sync(); err != nil {
			return err
		}
	}
	seg := s.active
	if seg == nil || seg.number != ld.numbers[i] {
		if err := s.disk.Remove(logName(ld.numbers[i])); err != nil {
			return err
		}
	}
	if seg == nil {
		return nil
	}
	if seg.hinted {
		// The newest segment is read, because its hint does not have meta.
		if _, err := ld.rescan(seg); err != nil {
			return err
		}
	}
	return seg.file.Truncate(seg.size)
}

func (ld *loader) rescan(seg *segment) (bool, error) {
	ld.mark.seq = max(ld.mark.seq, seg.last)
	seg.hinted, seg.synced = false, false
	ld.seq, ld.before = 0, 0
	if err := ld.s.disk.Remove(hintName(seg.number)); err != nil {
		return false, err
	}
	return ld.scan(seg)
}

// complete checks that every segment is there that the newest one names, and
// takes leave of those that it does not name.
func (ld *loader) complete() error {
	s := ld.s
	if s.seq = ld.seq; ld.seq < ld.mark.seq || s.active == nil {
		return damaged(s.dir, logName(ld.mark.number), 0,
			fmt.Sprintf("the log ends with group %d, though group %d was synced", ld.seq, ld.mark.seq))
	}
	for _, n := range ld.needed {
		if err := ld.present(n); err != nil {
			return err
		}
	}
	for _, seg := range s.segments {
		if seg == nil || seg == s.active || slices.ContainsFunc(ld.needed, func(n needed) bool { return n.number == seg.number }) {
			continue
		}
		seg.retired = true
		if seg.live > 0 {
			return damaged(s.dir, logName(seg.number), 0, "the file was given up with records that are in no other")
		}
	}
	return nil
}

// present checks that a segment is there to its last group.
func (ld *loader) present(n needed) error {
	s := ld.s
	i := slices.IndexFunc(s.segments, func(seg *segment) bool { return seg != nil && seg.number == n.number })
	switch {
	case i < 0:
		return damaged(s.dir, logName(n.number), 0, "the file is missing")
	case s.segments[i].last != n.last:
		return damaged(s.dir, logName(n.number), s.segments[i].size,
			fmt.Sprintf("the file ends with group %d, not with group %d", s.segments[i].last, n.last))
	}
	return nil
}

// removeRest removes segments that compaction had emptied, and hints without a
// segment. The log that says so is synced by then.
func (ld *loader) removeRest() error {
	s := ld.s
	for _, seg := range s.segments {
		if seg != nil && seg.retired {
			if err := s.remove(seg); err != nil {
				return err
			}
		}
	}
	names, err := s.disk.List()
	if err != nil {
		return err
	}
	for _, name := range names {
		n, ok := numberOf(name, hintSuffix)
		if !ok || slices.ContainsFunc(s.segments, func(seg *segment) bool { return seg != nil && seg.number == n }) {
			continue
		}
		if err := s.disk.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
