package state

import (
	"cmp"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"strconv"
	"strings"
)

const (
	logSuffix  = ".log"
	hintSuffix = ".hint"
	tmpSuffix  = ".tmp"
)

// segment is one file of the log. All but the newest are sealed.
type segment struct {
	number uint64 // ever rising
	handle uint16 // what loc says; given to another segment once this one is gone
	file   file
	fixed  int64 // bytes of the header and the opening group
	size   int64 // bytes that hold whole groups; under Store.mu
	live   int64 // bytes of records that the index points to; under Store.mu

	last    uint64 // its last group; under Store.mu
	named   bool   // its name is durable; under Store.writing
	synced  bool   // sealed and durable; under Store.writing
	retired bool   // a group says that it is not needed any more; under Store.writing
	hinted  bool   // has a hint file; only for the keeper
}

// movable is the size of its groups without the opening one, which compaction
// does not move and every segment has.
func (seg *segment) movable() int64 { return seg.size - seg.fixed }

func logName(number uint64) string  { return fmt.Sprintf("%010d%s", number, logSuffix) }
func hintName(number uint64) string { return fmt.Sprintf("%010d%s", number, hintSuffix) }

// numberOf reads the number from the name of a segment's file.
func numberOf(name, suffix string) (uint64, bool) {
	digits, ok := strings.CutSuffix(name, suffix)
	if !ok || len(digits) < 10 {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 10, 64)
	return n, err == nil
}

// putSegmentHeader writes the header into the first bytes of buf.
func putSegmentHeader(buf []byte, id storeID, number uint64) {
	copy(buf, segmentMagic)
	le.PutUint32(buf[8:], formatVersion)
	copy(buf[16:], id[:])
	le.PutUint64(buf[32:], number)
	le.PutUint64(buf[40:], 0)
	le.PutUint32(buf[12:], headerSum(buf))
}

// headerSum is the checksum of a header of 48 bytes whose own place is 12 to 16.
func headerSum(buf []byte) uint32 {
	return crc32.Update(crc32.Checksum(buf[:12], castagnoli), castagnoli, buf[16:segmentHeaderSize])
}

// errVersion is wrapped where files are of a later format.
var errVersion = errors.New("format is not known to this program")

// readSegmentHeader returns the store that the file belongs to; ok is false if
// the header is not one of segment number.
func readSegmentHeader(f io.ReaderAt, number uint64) (id storeID, ok bool, err error) {
	var buf [segmentHeaderSize]byte
	if _, err := f.ReadAt(buf[:], 0); err != nil {
		if errors.Is(err, io.EOF) {
			return id, false, nil
		}
		return id, false, err
	}
	if string(buf[:8]) != segmentMagic || le.Uint32(buf[12:]) != headerSum(buf[:]) || le.Uint64(buf[32:]) != number {
		return id, false, nil
	}
	if v := le.Uint32(buf[8:]); v != formatVersion {
		return id, false, fmt.Errorf("%s: version %d of the %w", logName(number), v, errVersion)
	}
	return storeID(buf[16:32]), true, nil
}

// scanWindow is how much a scanner reads at once.
const scanWindow = 1 << 20

// scanner reads the groups of a segment in order and checks them.
type scanner struct {
	file   io.ReaderAt
	seed   uint32
	off    int64 // of the next group
	end    int64
	expect uint64 // seq of the next group; 0: any

	window   []byte // a part of the file
	windowAt int64
}

// badGroup says where the bytes of a segment stop being groups.
type badGroup struct {
	offset  int64
	problem string
}

func (b *badGroup) Error() string { return fmt.Sprintf("byte %d: %s", b.offset, b.problem) }

func newScanner(f io.ReaderAt, seed uint32, size int64) *scanner {
	return &scanner{file: f, seed: seed, off: segmentHeaderSize, end: size}
}

// next returns a group, the offset of its payload and the payload, which is
// valid until the next call; io.EOF at the end, a *badGroup where the bytes are
// not the group that belongs there.
func (sc *scanner) next() (g group, at int64, payload []byte, err error) {
	if sc.off == sc.end {
		return group{}, 0, nil, io.EOF
	}
	head, err := sc.bytes(sc.off, groupHeaderSize)
	if err != nil {
		return group{}, 0, nil, err
	}
	g, ok := parseGroup(head, sc.seed)
	if !ok {
		return group{}, 0, nil, &badGroup{sc.off, "the header of the group is wrong"}
	}
	if sc.expect != 0 && g.seq != sc.expect {
		return group{}, 0, nil, &badGroup{sc.off, fmt.Sprintf("group %d stands where %d belongs", g.seq, sc.expect)}
	}
	at = sc.off + groupHeaderSize
	if payload, err = sc.bytes(at, g.payload); err != nil {
		return group{}, 0, nil, err
	}
	if crc32.Update(sc.seed, castagnoli, payload) != g.crc {
		return group{}, 0, nil, &badGroup{sc.off, "the checksum of the group is wrong"}
	}
	sc.off = at + int64(g.payload)
	sc.expect = g.seq + 1
	return g, at, payload, nil
}

// bytes returns n bytes from offset at.
func (sc *scanner) bytes(at int64, n int) ([]byte, error) {
	if at+int64(n) > sc.end {
		return nil, &badGroup{sc.off, "the group is cut off"}
	}
	if lo := at - sc.windowAt; lo >= 0 && lo+int64(n) <= int64(len(sc.window)) {
		return sc.window[lo : lo+int64(n)], nil
	}
	size := int(min(int64(max(n, scanWindow)), sc.end-at))
	if cap(sc.window) < size {
		sc.window = make([]byte, size)
	}
	sc.window, sc.windowAt = sc.window[:size], at
	if _, err := sc.file.ReadAt(sc.window, at); err != nil {
		sc.window = sc.window[:0]
		if errors.Is(err, io.EOF) {
			return nil, &badGroup{sc.off, "the file has become shorter"}
		}
		return nil, err
	}
	return sc.window[:n], nil
}

// eachRecord walks the records of a group whose checksum is right.
func eachRecord(payload []byte, fn func(at int, r record) error) error {
	for at := 0; at < len(payload); {
		r, problem := cutRecord(payload[at:])
		if problem != "" {
			return &badGroup{int64(at), problem}
		}
		if err := fn(at, r); err != nil {
			return err
		}
		at += padded(len(r))
	}
	return nil
}

// sortSegments puts segments into the order of the log.
func sortSegments(segs []*segment) {
	slices.SortFunc(segs, func(a, b *segment) int { return cmp.Compare(a.number, b.number) })
}
