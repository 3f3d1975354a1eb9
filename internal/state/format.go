package state

import (
	"encoding/binary"
	"errors"
	"hash/crc32"

	"backstory/capture"
	"backstory/transform"
)

// The layout of the files is in DESIGN.md. Numbers are little-endian, records
// and groups begin at multiples of 8.
const (
	formatVersion     = 1
	segmentMagic      = "bckstate"
	segmentHeaderSize = 48
	groupMagic        = 0x70756f72 // "roup"
	groupHeaderSize   = 40
	recordHeaderSize  = 44
	// maxGroup bounds the payload of a group, so that a segment and the group
	// that goes beyond it stay below the 4 GiB that the index can address.
	maxGroup = 1 << 30
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var le = binary.LittleEndian

// storeID tells the files of one store from those of every other. Its checksum
// begins all others, so that bytes of another store never look valid.
type storeID [16]byte

func (id storeID) seed() uint32 { return crc32.Checksum(id[:], castagnoli) }

// groupKind says who wrote a group.
type groupKind byte

const (
	groupBatch   groupKind = 1 // a committed batch
	groupOpening groupKind = 2 // first of a segment: the other segments, all meta, all keys to read again
	groupMoved   groupKind = 3 // compaction: records of another segment, or its retirement
)

// group is the header of a group.
type group struct {
	seq     uint64 // consecutive over all segments
	synced  uint64 // everything up to this group was durable when this one was written
	payload int    // bytes after the header, a multiple of 8
	records uint32
	crc     uint32 // of the payload
	kind    groupKind
}

// put writes the header into the first bytes of buf.
func (g *group) put(buf []byte, seed uint32) {
	le.PutUint32(buf[4:], groupMagic)
	le.PutUint64(buf[8:], g.seq)
	le.PutUint64(buf[16:], g.synced)
	le.PutUint32(buf[24:], uint32(g.payload))
	le.PutUint32(buf[28:], g.records)
	le.PutUint32(buf[32:], g.crc)
	le.PutUint32(buf[36:], uint32(g.kind))
	le.PutUint32(buf, crc32.Update(seed, castagnoli, buf[4:groupHeaderSize]))
}

// parseGroup reads a header and reports whether it is one.
func parseGroup(buf []byte, seed uint32) (group, bool) {
	if len(buf) < groupHeaderSize || le.Uint32(buf[4:]) != groupMagic {
		return group{}, false
	}
	if le.Uint32(buf) != crc32.Update(seed, castagnoli, buf[4:groupHeaderSize]) {
		return group{}, false
	}
	return group{
		seq:     le.Uint64(buf[8:]),
		synced:  le.Uint64(buf[16:]),
		payload: int(le.Uint32(buf[24:])),
		records: le.Uint32(buf[28:]),
		crc:     le.Uint32(buf[32:]),
		kind:    groupKind(le.Uint32(buf[36:])),
	}, true
}

// recordKind says what a record is about. The first four are of a key and are in
// the index.
type recordKind byte

const (
	kindExisting recordKind = 1  // an aggregate with an image
	kindDeleted  recordKind = 2  // an aggregate without one
	kindNote     recordKind = 3  // a change of an unknown aggregate
	kindGone     recordKind = 4  // a note that was forgotten
	kindMeta     recordKind = 5  // key is the name, image the value
	kindNoMeta   recordKind = 6  // the name has no value any more
	kindAgain    recordKind = 7  // the key must be read again
	kindDone     recordKind = 8  // it was
	kindSegments recordKind = 9  // image is the other segments: number and last group of each
	kindRetired  recordKind = 10 // image is the number of a segment that is not needed any more
)

func (k recordKind) keyed() bool { return k >= kindExisting && k <= kindGone }

// record is one record as it is on disk, without padding.
type record []byte

func (r record) length() int      { return int(le.Uint32(r[4:])) }
func (r record) kind() recordKind { return recordKind(r[8]) }
func (r record) salt() uint8      { return r[9] }
func (r record) table() uint16    { return le.Uint16(r[10:]) }
func (r record) key() []byte {
	n := r.keyLength()
	return r[recordHeaderSize : recordHeaderSize+n : recordHeaderSize+n]
}
func (r record) keyLength() int { return int(le.Uint32(r[40:])) }
func (r record) image() []byte  { return r[recordHeaderSize+r.keyLength() : len(r) : len(r)] }
func (r record) about(t uint16, key []byte) bool {
	return r.table() == t && string(r.key()) == string(key)
}

// entry decodes the record; the image stays where it is.
func (r record) entry() transform.Entry {
	e := transform.Entry{
		Version: le.Uint64(r[16:]),
		XID:     le.Uint32(r[12:]),
		Place: transform.Place{
			Pos: capture.Position{
				LSN:   capture.LSN(le.Uint64(r[24:])),
				Kind:  capture.Kind(r[38]),
				Index: le.Uint32(r[32:]),
			},
			Index: le.Uint16(r[36:]),
		},
	}
	if r.kind() == kindExisting {
		e.Image = r.image()
	}
	return e
}

// kindOf says which record an entry needs.
func kindOf(e *transform.Entry) (recordKind, error) {
	switch {
	case e.Image != nil && len(e.Image) == 0:
		return 0, errors.New("an image of no bytes")
	case e.Exists() && e.Version == 0:
		return 0, errors.New("an aggregate that exists needs a version")
	case e.Exists():
		return kindExisting, nil
	case e.Version > 0:
		return kindDeleted, nil
	}
	return kindNote, nil
}

// padded rounds up to the multiple of 8 at which the next record begins.
func padded(n int) int { return (n + 7) &^ 7 }

// appendRecord encodes a record behind buf, with its checksum and padding.
func appendRecord[K string | []byte](buf []byte, seed uint32, kind recordKind, salt uint8, table uint16, key K, e *transform.Entry) []byte {
	start := len(buf)
	var h [recordHeaderSize]byte
	n := recordHeaderSize + len(key) + len(e.Image)
	le.PutUint32(h[4:], uint32(n))
	h[8], h[9] = byte(kind), salt
	le.PutUint16(h[10:], table)
	le.PutUint32(h[12:], e.XID)
	le.PutUint64(h[16:], e.Version)
	le.PutUint64(h[24:], uint64(e.Place.Pos.LSN))
	le.PutUint32(h[32:], e.Place.Pos.Index)
	le.PutUint16(h[36:], e.Place.Index)
	h[38] = byte(e.Place.Pos.Kind)
	le.PutUint32(h[40:], uint32(len(key)))
	buf = append(buf, h[:]...)
	buf = append(buf, key...)
	buf = append(buf, e.Image...)
	le.PutUint32(buf[start:], crc32.Update(seed, castagnoli, buf[start+4:start+n]))
	for len(buf) < start+padded(n) {
		buf = append(buf, 0)
	}
	return buf
}

// checkRecord reads the record at the start of buf and says what is wrong with
// it; an empty problem means that it is what was written.
func checkRecord(buf []byte, seed uint32) (r record, problem string) {
	r, problem = cutRecord(buf)
	if problem == "" && le.Uint32(r) != crc32.Update(seed, castagnoli, r[4:]) {
		return nil, "the checksum of the record is wrong"
	}
	return r, problem
}

// cutRecord is checkRecord without the checksum, for bytes that a group's
// checksum covers.
func cutRecord(buf []byte) (r record, problem string) {
	if len(buf) < recordHeaderSize {
		return nil, "the record is cut off"
	}
	n := record(buf).length()
	if n < recordHeaderSize || n > len(buf) {
		return nil, "the length of the record is wrong"
	}
	if record(buf).keyLength() > n-recordHeaderSize {
		return nil, "the length of the key is wrong"
	}
	return record(buf[:n:n]), ""
}
