package state

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
)

// A hint is the part of the index that a sealed segment stands for, so that
// opening a store does not mean reading it all. It is written when the segment is
// durable, and made anew from the segment if it is missing or wrong.
const (
	hintMagic      = "bckhint1"
	hintHeaderSize = 64
	hintEntrySize  = 20
	hintBlock      = 3200 // entries that share a checksum
	hintBlockSize  = hintBlock*hintEntrySize + 4
)

// hint is the header of a hint file.
type hint struct {
	number      uint64 // of the segment
	size        int64  // of the segment
	fixed       int64  // of its header and opening group
	first, last uint64 // its groups
	entries     uint64
}

func (h hint) encode(seed uint32) []byte {
	buf := make([]byte, hintHeaderSize)
	copy(buf, hintMagic)
	le.PutUint64(buf[16:], h.number)
	le.PutUint64(buf[24:], uint64(h.size))
	le.PutUint64(buf[32:], h.first)
	le.PutUint64(buf[40:], h.last)
	le.PutUint64(buf[48:], h.entries)
	le.PutUint64(buf[56:], uint64(h.fixed))
	le.PutUint32(buf[8:], crc32.Update(seed, castagnoli, buf[12:]))
	return buf
}

// readHint reads the header of the hint of a segment; ok is false if it is not one.
func (s *Store) readHint(f io.ReaderAt, number uint64) (h hint, ok bool, err error) {
	var buf [hintHeaderSize]byte
	if _, err := f.ReadAt(buf[:], 0); err != nil {
		return h, false, ignoreEOF(err)
	}
	h = hint{
		number: le.Uint64(buf[16:]), size: int64(le.Uint64(buf[24:])),
		first: le.Uint64(buf[32:]), last: le.Uint64(buf[40:]), entries: le.Uint64(buf[48:]),
		fixed: int64(le.Uint64(buf[56:])),
	}
	ok = string(buf[:8]) == hintMagic && h.number == number &&
		le.Uint32(buf[8:]) == crc32.Update(s.seed, castagnoli, buf[12:])
	return h, ok, nil
}

// openHint opens the hint of a segment; f is nil if there is none that is valid.
func (s *Store) openHint(number uint64) (f file, h hint, err error) {
	f, err = s.disk.Open(hintName(number))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, h, nil
	}
	if err != nil {
		return nil, h, err
	}
	h, ok, err := s.readHint(f, number)
	if err != nil || !ok {
		return nil, h, errors.Join(err, f.Close())
	}
	return f, h, nil
}

// hasHint reports whether a segment has a valid hint, which means that it was
// durable.
func (s *Store) hasHint(number uint64) (bool, error) {
	f, _, err := s.openHint(number)
	if f == nil {
		return false, err
	}
	return true, f.Close()
}

// loadHint puts the entries of a segment's hint into the index. ok is false if the
// segment must be read instead; what was put by then does no harm, because the
// reading puts the same again.
func (s *Store) loadHint(seg *segment) (h hint, ok bool, err error) {
	f, h, err := s.openHint(seg.number)
	if f == nil {
		return h, false, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if h.size != seg.size {
		return h, false, nil
	}
	buf := make([]byte, hintBlockSize)
	at := int64(hintHeaderSize)
	for left := h.entries; left > 0; {
		n := int(min(left, hintBlock))
		block := buf[:n*hintEntrySize+4]
		if _, err := f.ReadAt(block, at); err != nil {
			return h, false, ignoreEOF(err)
		}
		if le.Uint32(block) != crc32.Update(s.seed, castagnoli, block[4:]) {
			return h, false, nil
		}
		if err := s.placeBlock(seg, block[4:]); err != nil {
			return h, false, err
		}
		at += int64(len(block))
		left -= uint64(n)
	}
	return h, true, nil
}

func (s *Store) placeBlock(seg *segment, block []byte) error {
	for ; len(block) > 0; block = block[hintEntrySize:] {
		size := int(le.Uint32(block[12:]))
		l := makeLoc(seg.handle, int64(le.Uint32(block[8:]))*8, size, recordKind(block[18]))
		if err := s.place(le.Uint64(block), le.Uint16(block[16:]), l, size); err != nil {
			return err
		}
	}
	return nil
}

// hintWriter writes a hint file block by block.
type hintWriter struct {
	seed  uint32
	file  file
	at    int64
	block []byte // begins with room for the checksum
	hint  hint
}

func (w *hintWriter) add(h uint64, at int64, r record) error {
	w.block = le.AppendUint64(w.block, h)
	w.block = le.AppendUint32(w.block, uint32(at/8))
	w.block = le.AppendUint32(w.block, uint32(padded(len(r))))
	w.block = le.AppendUint16(w.block, r.table())
	w.block = append(w.block, byte(r.kind()), 0)
	w.hint.entries++
	if len(w.block) < hintBlockSize {
		return nil
	}
	return w.flush()
}

func (w *hintWriter) flush() error {
	if len(w.block) == 4 {
		return nil
	}
	le.PutUint32(w.block, crc32.Update(w.seed, castagnoli, w.block[4:]))
	if _, err := w.file.WriteAt(w.block, w.at); err != nil {
		return err
	}
	w.at += int64(len(w.block))
	w.block = w.block[:4]
	return nil
}

// writeHint makes the hint of a sealed and durable segment by reading it. The file
// is complete before it has its name.
func (s *Store) writeHint(ctx context.Context, seg *segment) (err error) {
	name := hintName(seg.number)
	f, err := s.disk.Create(name + tmpSuffix)
	if err != nil {
		return err
	}
	if err = s.fillHint(ctx, seg, f); err != nil {
		return errors.Join(err, f.Close(), s.disk.Remove(name+tmpSuffix))
	}
	if err := f.Close(); err != nil {
		return err
	}
	return s.disk.Rename(name+tmpSuffix, name)
}

func (s *Store) fillHint(ctx context.Context, seg *segment, f file) error {
	w := &hintWriter{
		seed: s.seed, file: f, at: hintHeaderSize, block: make([]byte, 4, hintBlockSize),
		hint: hint{number: seg.number, size: seg.size, fixed: seg.fixed},
	}
	sc := newScanner(seg.file, s.seed, seg.size)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		g, at, payload, err := sc.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return s.scanError(seg, err)
		}
		if w.hint.first == 0 {
			w.hint.first = g.seq
		}
		w.hint.last = g.seq
		err = eachRecord(payload, func(off int, r record) error {
			if !r.kind().keyed() {
				return nil
			}
			return w.add(s.hashOf(r), at+int64(off), r)
		})
		if err != nil {
			return s.scanError(seg, err)
		}
	}
	if err := w.flush(); err != nil {
		return err
	}
	_, err := f.WriteAt(w.hint.encode(s.seed), 0)
	return err
}

// scanError names the file of an error that a scanner returned.
func (s *Store) scanError(seg *segment, err error) error {
	var bad *badGroup
	if errors.As(err, &bad) {
		return damaged(s.dir, logName(seg.number), bad.offset, bad.problem)
	}
	return fmt.Errorf("read %s: %w", logName(seg.number), err)
}
