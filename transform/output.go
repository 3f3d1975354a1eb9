package transform

import (
	"bytes"
	"unsafe"

	"backstory/capture"
)

const (
	chunkBytes = 256 << 10
	// keptChunks bounds what an Output holds on to over a Reset: 16 MiB.
	keptChunks = 64
)

// Output takes the events of a run of changes and owns their bytes until Reset.
// It is made to be used again; the zero Output is ready.
type Output struct {
	// Events are in the order of the changes; the events of one change follow
	// one another.
	Events []Event

	// Filled are the aggregates whose last change left out a large column
	// (unchanged TOAST), so that its value came from the state: where the state
	// is in doubt, they have to be read again.
	Filled []Filled

	// Mismatches counts the changes whose old row, of a table with REPLICA
	// IDENTITY FULL, is not what the state has: changes were missed, or the
	// state was altered. Mismatch is the first of them.
	Mismatches int
	Mismatch   Mismatch

	chunks   [][]byte // of chunkBytes each; used again after Reset
	free     int      // chunks[:free] are in use
	tail     []byte   // the rest of the chunk in use: length 0
	used     int      // bytes handed out since Reset
	contexts []*capture.Context
	context  int // contexts[:context] are in use
}

// Filled names an aggregate whose image has values that the WAL did not bring.
type Filled struct {
	Table *Table
	Key   []byte
	// From is the aggregate that the values were taken from: Key itself, or the
	// old key of an aggregate whose key was changed.
	From []byte
}

// Mismatch is a change whose old row differs from the state.
type Mismatch struct {
	Table  *Table
	Column string // the first that differs
	Key    []byte
	Pos    capture.Position
}

// Reset forgets everything and keeps the room. All slices that the Output gave
// out become invalid.
func (o *Output) Reset() {
	clear(o.Events)
	clear(o.Filled)
	*o = Output{
		Events: o.Events[:0], Filled: o.Filled[:0],
		chunks: o.chunks[:min(len(o.chunks), keptChunks)], contexts: o.contexts,
	}
}

// Bytes returns the memory that the events take, in bytes.
func (o *Output) Bytes() int {
	return o.used + len(o.Events)*int(unsafe.Sizeof(Event{}))
}

// reserve returns an empty slice with room for n bytes. What has been appended
// to it is kept by passing it to keep, before the next call of reserve.
func (o *Output) reserve(n int) []byte {
	if n <= cap(o.tail) {
		return o.tail
	}
	if n > chunkBytes/4 {
		return make([]byte, 0, n) // one of its own, which Reset drops
	}
	if o.free == len(o.chunks) {
		o.chunks = append(o.chunks, make([]byte, chunkBytes))
	}
	o.tail = o.chunks[o.free][:0]
	o.free++
	return o.tail
}

// keep takes possession of a slice of reserve and returns it, cut to its length.
func (o *Output) keep(b []byte) []byte {
	o.used += len(b)
	if len(b) > 0 && cap(o.tail) > 0 && &b[0] == &o.tail[:1][0] {
		o.tail = o.tail[len(b):len(b):cap(o.tail)]
	}
	if b == nil {
		return []byte{} // an empty key is a key
	}
	return b[:len(b):len(b)]
}

// copy returns a copy of b that lives as long as the events.
func (o *Output) copy(b []byte) []byte {
	return o.keep(append(o.reserve(len(b)), b...))
}

// keepContext returns a copy of c that lives as long as the events. Changes that
// follow one another mostly share theirs, and so do the copies.
func (o *Output) keepContext(c *capture.Context) *capture.Context {
	if c == nil {
		return nil
	}
	if o.context > 0 {
		if last := o.contexts[o.context-1]; equalContext(last, c) {
			return last
		}
	}
	if o.context == len(o.contexts) {
		o.contexts = append(o.contexts, new(capture.Context))
	}
	kept := o.contexts[o.context]
	o.context++
	*kept = *c
	kept.Reason = nil
	if c.Reason != nil {
		kept.Reason = o.copy(c.Reason)
	}
	return kept
}

func equalContext(a, b *capture.Context) bool {
	return a.Actor == b.Actor && a.CorrelationID == b.CorrelationID && a.CausationID == b.CausationID &&
		bytes.Equal(a.Reason, b.Reason) && (a.Reason == nil) == (b.Reason == nil)
}
