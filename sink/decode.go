package sink

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// The layout of a record batch of format version 2: byte offsets of its fields.
// baseOffset is at 0; the batch's length counts the bytes behind the length field.
const (
	batchLengthAt      = 8
	batchMagicAt       = 16
	batchCRCAt         = 17
	batchAttributesAt  = 21 // the CRC covers everything from here on
	batchLastDeltaAt   = 23
	batchFirstTimeAt   = 27
	batchMaxTimeAt     = 35
	batchCountAt       = 57
	batchRecordsAt     = 61
	batchLengthOf      = batchLengthAt + 4
	batchAppendTimeBit = 1 << 3
	batchControlBit    = 1 << 5
)

// errTruncated is a length that points behind the end of what holds it.
var errTruncated = errors.New("a length points behind the end")

// castagnoli is the polynomial of a batch's checksum.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// record is one data record as a batch holds it. Its slices belong to the
// fetched bytes or to the decoder and are valid until the decoder's next call.
type record struct {
	offset  int64
	time    int64  // milliseconds since 1970-01-01 UTC
	key     []byte // nil: null
	value   []byte // nil: null
	headers headers
}

// headers iterates over the headers of a record. The zero value has none.
type headers struct {
	left int
	data []byte
}

// next takes the next header off. It reports false at the end, and an error if
// the bytes are not what the record's header count promises. A null value is nil.
func (h *headers) next() (name, value []byte, ok bool, err error) {
	if h.left == 0 {
		if len(h.data) != 0 {
			return nil, nil, false, fmt.Errorf("%d bytes behind the last header", len(h.data))
		}
		return nil, nil, false, nil
	}
	h.left--
	if name, h.data, ok = takeBytes(h.data); !ok || name == nil {
		return nil, nil, false, fmt.Errorf("header name: %w", errTruncated)
	}
	if value, h.data, ok = takeBytes(h.data); !ok {
		return nil, nil, false, fmt.Errorf("header value: %w", errTruncated)
	}
	return name, value, true, nil
}

// decoder reads the record batches (format 2) of one fetched partition. It
// checks every length and every checksum, passes over control batches, batches
// that compaction has emptied and records below the offset that was asked for,
// and leaves a last batch that the broker cut off alone. It keeps buffers and
// decompressors from one partition to the next and serves one goroutine.
type decoder struct {
	inflater inflater
	data     []byte // what follows the current batch
	want     int64  // records below are passed over
	position int64  // behind the last complete batch, at least want

	// The current batch.
	records   []byte
	left      int
	base      int64
	lastDelta int32
	lastSeen  int64 // delta of the record before, −1 at the start
	firstTime int64
	fixedTime int64 // time of every record if the broker sets it, else −1
}

// reset begins with the bytes of another partition, fetched at offset want.
func (d *decoder) reset(data []byte, want int64) {
	d.data, d.want, d.position = data, want, want
	d.records, d.left = nil, 0
}

// next reads the next data record into r. It reports false when the bytes end;
// position then is the offset to go on from.
func (d *decoder) next(r *record) (bool, error) {
	for {
		for d.left > 0 {
			if err := d.record(r); err != nil {
				return false, fmt.Errorf("record batch at offset %d: %w", d.base, err)
			}
			if r.offset >= d.want {
				return true, nil
			}
		}
		if more, err := d.batch(); !more {
			return false, err
		}
	}
}

// batch opens the next batch, or reports false if no complete one is left.
func (d *decoder) batch() (bool, error) {
	frame, rest, err := cutBatch(d.data)
	if frame == nil {
		return false, err
	}
	d.data = rest
	d.base = int64(binary.BigEndian.Uint64(frame))
	if err := d.open(frame); err != nil {
		return false, fmt.Errorf("record batch at offset %d: %w", d.base, err)
	}
	return true, nil
}

// cutBatch splits the first batch off. The frame is nil where data ends before
// the batch does.
func cutBatch(data []byte) (frame, rest []byte, err error) {
	if len(data) < batchLengthOf {
		return nil, nil, nil
	}
	length := int64(int32(binary.BigEndian.Uint32(data[batchLengthAt:])))
	if length <= batchMagicAt-batchLengthOf {
		return nil, nil, fmt.Errorf("record batch at offset %d: its length is %d",
			int64(binary.BigEndian.Uint64(data)), length)
	}
	if int64(len(data)) < batchLengthOf+length {
		return nil, nil, nil
	}
	end := batchLengthOf + int(length)
	return data[:end:end], data[end:], nil
}

// open checks the head of a batch and lays its records ready.
func (d *decoder) open(b []byte) error {
	if magic := b[batchMagicAt]; magic != 2 {
		return fmt.Errorf("record format %d is older than Kafka 0.11 (2 is wanted): "+
			"the topic was written by another program, or is older than backstory", magic)
	}
	if len(b) < batchRecordsAt {
		return fmt.Errorf("head of %d bytes: %w", len(b), errTruncated)
	}
	sum := crc32.Checksum(b[batchAttributesAt:], castagnoli)
	if want := binary.BigEndian.Uint32(b[batchCRCAt:]); sum != want {
		return fmt.Errorf("checksum is %08x, the batch says %08x", sum, want)
	}
	d.lastDelta = int32(binary.BigEndian.Uint32(b[batchLastDeltaAt:]))
	last := d.base + int64(d.lastDelta)
	if d.base < 0 || d.lastDelta < 0 || last < d.base {
		return fmt.Errorf("last offset delta is %d", d.lastDelta)
	}
	if last < d.want {
		return nil
	}
	if last < d.position {
		return fmt.Errorf("it ends at offset %d, below the batch before it", last)
	}
	d.position = last + 1
	attributes := binary.BigEndian.Uint16(b[batchAttributesAt:])
	count := int32(binary.BigEndian.Uint32(b[batchCountAt:]))
	if count < 0 || int64(count) > int64(d.lastDelta)+1 {
		return fmt.Errorf("%d records, last offset delta %d", count, d.lastDelta)
	}
	if attributes&batchControlBit != 0 || count == 0 {
		return nil
	}
	records, err := d.inflater.inflate(codec(attributes&codecMask), b[batchRecordsAt:])
	if err != nil {
		return err
	}
	d.records, d.left, d.lastSeen = records, int(count), -1
	d.firstTime = int64(binary.BigEndian.Uint64(b[batchFirstTimeAt:]))
	d.fixedTime = -1
	if attributes&batchAppendTimeBit != 0 {
		d.fixedTime = int64(binary.BigEndian.Uint64(b[batchMaxTimeAt:]))
	}
	return nil
}

// record reads the next record of the current batch, without its headers.
func (d *decoder) record(r *record) error {
	size, n := binary.Varint(d.records)
	if n <= 0 || size < 1 || size > int64(len(d.records)-n) {
		return fmt.Errorf("record length: %w", errTruncated)
	}
	body := d.records[n+1 : n+int(size)] // byte n: the record's attributes, unused
	d.records = d.records[n+int(size):]
	d.left--
	if d.left == 0 && len(d.records) != 0 {
		return fmt.Errorf("%d bytes behind the last record", len(d.records))
	}
	timeDelta, n := binary.Varint(body)
	if n <= 0 {
		return fmt.Errorf("record time: %w", errTruncated)
	}
	body = body[n:]
	delta, n := binary.Varint(body)
	if n <= 0 || delta <= d.lastSeen || delta > int64(d.lastDelta) {
		return fmt.Errorf("offset delta %d behind %d, of at most %d", delta, d.lastSeen, d.lastDelta)
	}
	d.lastSeen = delta
	r.offset = d.base + delta
	if r.time = d.fixedTime; r.time < 0 {
		r.time = d.firstTime + timeDelta
	}
	return r.body(body[n:])
}

// body reads what follows the offset delta: key, value, and the headers' count.
func (r *record) body(b []byte) error {
	var ok bool
	if r.key, b, ok = takeBytes(b); !ok {
		return fmt.Errorf("key of offset %d: %w", r.offset, errTruncated)
	}
	if r.value, b, ok = takeBytes(b); !ok {
		return fmt.Errorf("value of offset %d: %w", r.offset, errTruncated)
	}
	count, n := binary.Varint(b)
	if n <= 0 || count < 0 || count > int64(len(b)) {
		return fmt.Errorf("headers of offset %d: %w", r.offset, errTruncated)
	}
	r.headers = headers{left: int(count), data: b[n:]}
	return nil
}

// takeBytes takes a byte string with a varint length off b; length −1 is nil.
func takeBytes(b []byte) (s, rest []byte, ok bool) {
	if len(b) > 0 && b[0] < 0x80 && b[0]&1 == 0 { // a length below 64: one byte, zigzag
		size := int(b[0] >> 1)
		if size >= len(b) {
			return nil, b, false
		}
		return b[1 : 1+size : 1+size], b[1+size:], true
	}
	size, n := binary.Varint(b)
	if n <= 0 || size < -1 || size > int64(len(b)-n) {
		return nil, b, false
	}
	b = b[n:]
	if size < 0 {
		return nil, b, true
	}
	return b[:size:size], b[size:], true
}

// nextOffset is the offset behind the last complete batch in data, at least from:
// where the next fetch begins. It looks at the heads only.
func nextOffset(data []byte, from int64) (int64, error) {
	for {
		frame, rest, err := cutBatch(data)
		if frame == nil {
			return from, err
		}
		if len(frame) < batchRecordsAt || frame[batchMagicAt] != 2 {
			return from, new(decoder).open(frame) // which says what is wrong with it
		}
		last := int64(binary.BigEndian.Uint64(frame)) + int64(int32(binary.BigEndian.Uint32(frame[batchLastDeltaAt:])))
		from = max(from, last+1)
		data = rest
	}
}
