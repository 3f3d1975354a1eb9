package sink

import (
	"encoding/binary"
	"strconv"
	"strings"
	"time"

	"backstory/capture"
	"backstory/transform"
)

// recordOverhead bounds, in bytes, what a record has besides key, value, type
// and the texts of its context: lengths, header names and fixed values.
const recordOverhead = 688

// recordWriter appends records in the format of batches, version 2. It serves one
// goroutine.
type recordWriter struct {
	clock clock
	base  capture.LSN // ce_sequencebase; 0: absent
}

// recordPlace says where in its batch a record stands.
type recordPlace struct {
	offset int32 // from the batch's first record
	time   int64 // milliseconds from the batch's first record
}

// recordExtra are the headers that depend on the record and not on the event.
type recordExtra struct {
	typ          string // ce_type
	eventsOffset int64  // -1: absent
	dataRef      []byte // nil: absent
}

// sizeRoom is what the length of a record takes as a rule: it is known when the
// record is written, and nearly all have 64 to 8191 bytes.
const sizeRoom = 2

// append writes one record: the event's key and headers with the given value,
// which is null where it is nil.
func (w *recordWriter) append(b []byte, shared *sharedHeaders, e *transform.Event, x *recordExtra, at recordPlace, value []byte) []byte {
	start := len(b)
	b = append(b, 0, 0) // sizeRoom
	b = append(b, 0)    // attributes
	b = binary.AppendVarint(b, at.time)
	b = binary.AppendVarint(b, int64(at.offset))
	b = binary.AppendVarint(b, int64(len(e.Key)))
	b = append(b, e.Key...)
	if value == nil {
		b = binary.AppendVarint(b, -1)
	} else {
		b = binary.AppendVarint(b, int64(len(value)))
		b = append(b, value...)
	}
	b = w.headers(b, shared, e, x)
	return putSize(b, start)
}

// putSize writes the length of the record that begins behind sizeRoom at start, and
// moves it where that needs another room.
func putSize(b []byte, start int) []byte {
	size := int64(len(b) - start - sizeRoom)
	if n := varintSize(size); n != sizeRoom {
		body := b[start+sizeRoom:]
		b = extend(b, max(0, n-sizeRoom))
		copy(b[start+n:], body)
		b = b[:start+n+int(size)]
	}
	binary.PutVarint(b[start:], size)
	return b
}

// headers writes the headers in their fixed order, their count first.
func (w *recordWriter) headers(h []byte, shared *sharedHeaders, e *transform.Event, x *recordExtra) []byte {
	count := len(h)
	h = append(h, 0) // it fits in one byte
	h = append(h, shared.text...)
	n := shared.count + 7
	h = appendName(h, HeaderID)
	h = append(h, 2*36)
	h = e.ID.Append(h)
	h = appendHeader(h, HeaderType, x.typ)
	h = appendHeader(h, HeaderSubject, e.Key)
	h = appendNumber(h, HeaderAggregateVersion, e.Version)
	h = appendName(h, HeaderTime)
	h = append(h, 2*timeSize)
	h = w.clock.append(h, e.Time)
	h = appendSequence(h, e.Place)
	h = appendHeader(h, HeaderOp, e.Op.String())
	if e.XID != 0 {
		h, n = appendNumber(h, HeaderXID, uint64(e.XID)), n+1
	}
	if e.Cause != transform.NoCause {
		h, n = appendHeader(h, HeaderCause, e.Cause.String()), n+1
	}
	if e.Related != nil {
		h, n = appendHeader(h, HeaderRelated, e.Related), n+1
	}
	h, n = appendContext(h, n, e.Context)
	if x.eventsOffset >= 0 {
		h, n = appendNumber(h, HeaderEventsOffset, uint64(x.eventsOffset)), n+1
	}
	if x.dataRef != nil {
		h, n = appendHeader(h, HeaderDataRef, x.dataRef), n+1
	}
	if w.base != 0 {
		h, n = appendNumber(h, HeaderSequenceBase, uint64(w.base)), n+1
	}
	h[count] = byte(n << 1)
	return h
}

func appendContext(h []byte, n int, c *capture.Context) ([]byte, int) {
	if c == nil {
		return h, n
	}
	if c.Actor != "" {
		h, n = appendHeader(h, HeaderActor, c.Actor), n+1
	}
	if c.CorrelationID != "" {
		h, n = appendHeader(h, HeaderCorrelationID, c.CorrelationID), n+1
	}
	if c.CausationID != "" {
		h, n = appendHeader(h, HeaderCausationID, c.CausationID), n+1
	}
	return h, n
}

// sharedHeaders are the encoded headers that are the same in every record of a topic.
type sharedHeaders struct {
	text  []byte
	count int
}

// shareHeaders encodes them for a topic of the table.
func shareHeaders(source string, t *transform.Table, kind transform.Topic) sharedHeaders {
	if kind == transform.Latest {
		source += LatestFragment
	}
	s := sharedHeaders{count: 4}
	s.text = appendHeader(s.text, HeaderSpecVersion, SpecVersion)
	s.text = appendHeader(s.text, HeaderContentType, ContentType)
	s.text = appendHeader(s.text, HeaderSource, source)
	s.text = appendHeader(s.text, HeaderAggregateType, t.Aggregate)
	if len(t.Former) == 0 {
		return s
	}
	former := make([]string, len(t.Former))
	for i := range t.Former {
		former[i] = t.Former[i].Source
	}
	s.text = appendHeader(s.text, HeaderFormerSource, strings.Join(former, " "))
	s.count++
	return s
}

// recordBound is at least the length of the event's record with the given value.
func recordBound(shared *sharedHeaders, e *transform.Event, value int) int {
	n := recordOverhead + len(shared.text) + 2*len(e.Key) + len(e.Type) + len(e.Table.Aggregate) + len(e.Related) + value
	if c := e.Context; c != nil {
		n += len(c.Actor) + len(c.CorrelationID) + len(c.CausationID)
	}
	return n
}

// appendName writes a header's name; ours are shorter than 64 bytes.
func appendName(h []byte, name string) []byte {
	return append(append(h, byte(len(name)<<1)), name...)
}

func appendHeader[T string | []byte](h []byte, name string, value T) []byte {
	h = appendName(h, name)
	h = binary.AppendVarint(h, int64(len(value)))
	return append(h, value...)
}

// appendNumber writes a header with a decimal number.
func appendNumber(h []byte, name string, v uint64) []byte {
	h = appendName(h, name)
	at := len(h)
	h = append(h, 0) // the length, at most 20, fits in one byte
	h = strconv.AppendUint(h, v, 10)
	h[at] = byte((len(h) - at - 1) << 1)
	return h
}

// appendSequence writes the place so that texts sort as places do: the LSN as 16
// hex digits, the kind, the change as 10 and the event as 3 digits.
func appendSequence(h []byte, p transform.Place) []byte {
	h = appendName(h, HeaderSequence)
	at := len(h)
	h = append(h, 0)
	const digits = "0123456789ABCDEF"
	for shift := 60; shift >= 0; shift -= 4 {
		h = append(h, digits[uint64(p.Pos.LSN)>>shift&15])
	}
	h = append(h, '-', '0'+byte(p.Pos.Kind), '-')
	h = appendPadded(h, uint64(p.Pos.Index), 10)
	h = append(h, '-')
	h = appendPadded(h, uint64(p.Index), 3)
	h[at] = byte((len(h) - at - 1) << 1)
	return h
}

// appendPadded writes a decimal number with zeros before it.
func appendPadded(b []byte, v uint64, width int) []byte {
	n := 1
	for x := v; x >= 10; x /= 10 {
		n++
	}
	for ; n < width; width-- {
		b = append(b, '0')
	}
	return strconv.AppendUint(b, v, 10)
}

// varintSize is the length of binary.AppendVarint's output.
func varintSize(v int64) int {
	n := 1
	for u := uint64(v)<<1 ^ uint64(v>>63); u >= 0x80; u >>= 7 {
		n++
	}
	return n
}

// timeSize is the length of "2006-01-02T15:04:05.000000Z".
const timeSize = 27

// clock writes times; it formats a second once, as many events share one.
type clock struct {
	second int64
	text   []byte // "2006-01-02T15:04:05"; empty at the start
}

// append writes a time in microseconds since 1970-01-01 UTC, of the years up to 9999.
func (c *clock) append(b []byte, micros int64) []byte {
	second, fraction := micros/1e6, micros%1e6
	if fraction < 0 {
		second, fraction = second-1, fraction+1e6
	}
	if second != c.second || len(c.text) == 0 {
		c.second = second
		c.text = time.Unix(second, 0).UTC().AppendFormat(c.text[:0], "2006-01-02T15:04:05")
	}
	b = append(b, c.text...)
	b = append(b, '.')
	b = appendPadded(b, uint64(fraction), 6)
	return append(b, 'Z')
}

// murmur2 is the hash of Java's partitioner.
func murmur2(key []byte) uint32 {
	const m, seed = 0x5bd1e995, 0x9747b28c
	h := seed ^ uint32(len(key))
	for ; len(key) >= 4; key = key[4:] {
		k := binary.LittleEndian.Uint32(key) * m
		k ^= k >> 24
		h = h*m ^ k*m
	}
	switch len(key) {
	case 3:
		h ^= uint32(key[2]) << 16
		fallthrough
	case 2:
		h ^= uint32(key[1]) << 8
		fallthrough
	case 1:
		h = (h ^ uint32(key[0])) * m
	}
	h ^= h >> 13
	h *= m
	return h ^ h>>15
}

// partitionOf is the partition that Java's producer gives a key with this hash.
func partitionOf(hash uint32, partitions int) int32 {
	return int32((hash & 0x7fffffff) % uint32(partitions))
}
