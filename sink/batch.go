package sink

import (
	"encoding/binary"
	"hash/crc32"
	"math"

	"backstory/transform"
)

// Where a batch's fields are that the session stamps; see decode.go for others.
const (
	batchEpochOfLeaderAt = 12
	batchProducerAt      = 43
	batchEpochAt         = 51
	batchSequenceAt      = 53
)

// frameSize is the length prefix that a request has before a batch.
const frameSize = 4

// batchTarget is where, in bytes before compression, a batch is closed at the
// next boundary of a change: consumers meet batches of the size that Java's
// defaults give, and a batch fits under any usual limit without being compressed
// on trial.
const batchTarget = 1 << 20

// batch is one record batch on its way to one partition. Its bytes lie in the
// publication's arena, with their length before them, as requests want them.
type batch struct {
	part     *partition
	from, to int   // in the arena
	base     int64 // offset that the first record will get
	count    int32
	maxTime  int64 // newest record, milliseconds since 1970-01-01 UTC
	stamped  bool  // has producer id and sequence, and never changes again
	doubtful bool  // an attempt ended without an answer
}

// batchWriter gathers the records of one batch after another.
type batchWriter struct {
	deflate *deflater
	records recordWriter
	raw     []byte
	part    *partition
	base    int64
	count   int32
	first   int64 // time of the first record, milliseconds
	newest  int64
}

// begin starts a batch.
func (w *batchWriter) begin(part *partition) {
	w.part, w.base, w.count = part, part.planned, 0
	w.raw = w.raw[:0]
}

// add appends a record and plans its offset.
func (w *batchWriter) add(shared *sharedHeaders, e *transform.Event, x *recordExtra, value []byte) {
	at := e.Time / 1000
	if w.count == 0 {
		w.first, w.newest = at, at
	}
	w.newest = max(w.newest, at)
	w.raw = w.records.append(w.raw, shared, e, x, recordPlace{w.count, at - w.first}, value)
	w.count++
	w.part.planned++
	w.part.last = e.ID
}

// close compresses the open batch to the end of the arena. It returns a batch
// without records if there is none.
func (w *batchWriter) close(arena []byte) ([]byte, batch, error) {
	if w.count == 0 {
		return arena, batch{}, nil
	}
	from := len(arena)
	arena = extend(arena, frameSize+batchRecordsAt)
	arena, used, err := w.deflate.deflate(arena, w.raw)
	if err != nil {
		return arena, batch{}, err
	}
	b := batch{part: w.part, from: from, to: len(arena), base: w.base, count: w.count, maxTime: w.newest}
	w.head(arena[from:], used)
	w.count = 0
	return arena, b, nil
}

// head writes the fields that do not depend on the session.
func (w *batchWriter) head(frame []byte, used codec) {
	binary.BigEndian.PutUint32(frame, uint32(len(frame)-frameSize))
	h := frame[frameSize:]
	binary.BigEndian.PutUint64(h, 0) // the broker sets the offset
	binary.BigEndian.PutUint32(h[batchLengthAt:], uint32(len(h)-batchLengthOf))
	binary.BigEndian.PutUint32(h[batchEpochOfLeaderAt:], math.MaxUint32) // −1: unknown
	h[batchMagicAt] = 2
	binary.BigEndian.PutUint16(h[batchAttributesAt:], uint16(used))
	binary.BigEndian.PutUint32(h[batchLastDeltaAt:], uint32(w.count-1))
	binary.BigEndian.PutUint64(h[batchFirstTimeAt:], uint64(w.first))
	binary.BigEndian.PutUint64(h[batchMaxTimeAt:], uint64(w.newest))
	binary.BigEndian.PutUint32(h[batchCountAt:], uint32(w.count))
}

// size is what brokers compare with max.message.bytes.
func (b *batch) size() int { return b.to - b.from - frameSize }

// stamp makes the batch one of the session: producer, epoch, sequence, checksum.
// It happens once, so that every attempt sends the same bytes.
func (b *batch) stamp(arena []byte, s session) {
	h := arena[b.from+frameSize : b.to]
	binary.BigEndian.PutUint64(h[batchProducerAt:], uint64(s.id))
	binary.BigEndian.PutUint16(h[batchEpochAt:], uint16(s.epoch))
	binary.BigEndian.PutUint32(h[batchSequenceAt:], uint32(b.part.sequence))
	binary.BigEndian.PutUint32(h[batchCRCAt:], crc32.Checksum(h[batchAttributesAt:], castagnoli))
	b.part.sequence = nextSequence(b.part.sequence, b.count)
	b.stamped = true
}

// nextSequence is the sequence after count records: sequences go from 0 to
// 2³¹−1 and begin again.
func nextSequence(sequence, count int32) int32 {
	return int32((int64(sequence) + int64(count)) & math.MaxInt32)
}
