package sink

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/segmentio/kafka-go/protocol"
)

// maxResponse bounds, in bytes, one answer of a broker: what a broken or foreign
// server may make us allocate.
const maxResponse = 1<<31 - 1

// Raw requests carry this correlation id: a connection of kafka-go's transport
// has one request under way at a time.
const rawCorrelationID = 0x62737279

// wireWriter appends the fields of a request. The zero value begins an empty one.
type wireWriter struct{ b []byte }

// begin starts a request of header version 1; finish completes it.
func (w *wireWriter) begin(key protocol.ApiKey, version int16, clientID string) {
	w.b = append(w.b[:0], 0, 0, 0, 0)
	w.int16(int16(key))
	w.int16(version)
	w.int32(rawCorrelationID)
	w.string(clientID)
}

func (w *wireWriter) finish() []byte {
	binary.BigEndian.PutUint32(w.b, uint32(len(w.b)-4))
	return w.b
}

func (w *wireWriter) int8(v int8)   { w.b = append(w.b, byte(v)) }
func (w *wireWriter) int16(v int16) { w.b = binary.BigEndian.AppendUint16(w.b, uint16(v)) }
func (w *wireWriter) int32(v int32) { w.b = binary.BigEndian.AppendUint32(w.b, uint32(v)) }
func (w *wireWriter) int64(v int64) { w.b = binary.BigEndian.AppendUint64(w.b, uint64(v)) }

func (w *wireWriter) string(s string) {
	w.int16(int16(len(s)))
	w.b = append(w.b, s...)
}

// wireReader takes the fields of an answer off b. A field that isn't there sets
// short, and is zero; so an answer is checked once, when all is read.
type wireReader struct {
	b     []byte
	short bool
}

func (r *wireReader) take(n int) []byte {
	if n < 0 || n > len(r.b) {
		r.b, r.short = nil, true
		return nil
	}
	s := r.b[:n:n]
	r.b = r.b[n:]
	return s
}

func (r *wireReader) int16() int16 {
	if s := r.take(2); s != nil {
		return int16(binary.BigEndian.Uint16(s))
	}
	return 0
}

func (r *wireReader) int32() int32 {
	if s := r.take(4); s != nil {
		return int32(binary.BigEndian.Uint32(s))
	}
	return 0
}

func (r *wireReader) int64() int64 {
	if s := r.take(8); s != nil {
		return int64(binary.BigEndian.Uint64(s))
	}
	return 0
}

func (r *wireReader) string() []byte { return r.take(int(r.int16())) }

// count reads the length of an array whose elements have at least size bytes; a
// null array has none.
func (r *wireReader) count(size int) int {
	n := int(r.int32())
	if n > len(r.b)/size {
		r.b, r.short = nil, true
		return 0
	}
	return max(n, 0)
}

// bytes reads a byte string with an int32 length; null is nil.
func (r *wireReader) bytes() []byte {
	n := int(r.int32())
	if n < 0 {
		return nil
	}
	return r.take(n)
}

// rawExchange sends a finished request and reads its answer into body, which it
// returns, grown where needed, together with a reader behind the correlation id.
func rawExchange(rw io.ReadWriter, request, body []byte) ([]byte, wireReader, error) {
	if _, err := rw.Write(request); err != nil {
		return body, wireReader{}, err
	}
	var head [8]byte
	if _, err := io.ReadFull(rw, head[:]); err != nil {
		return body, wireReader{}, err
	}
	size := int64(binary.BigEndian.Uint32(head[:])) - 4
	if size < 0 || size > maxResponse {
		return body, wireReader{}, fmt.Errorf("answer of %d bytes: this is no Kafka broker", size+4)
	}
	if id := binary.BigEndian.Uint32(head[4:]); id != rawCorrelationID {
		return body, wireReader{}, fmt.Errorf("answer to request %08x instead of %08x", id, rawCorrelationID)
	}
	if int64(cap(body)) < size {
		body = make([]byte, size)
	}
	body = body[:size]
	if _, err := io.ReadFull(rw, body); err != nil {
		return body, wireReader{}, err
	}
	return body, wireReader{b: body}, nil
}

// checkVersion says what is wrong if the broker's newest version of an API,
// negotiated with what kafka-go knows, isn't the one that the request is written in.
func checkVersion(api string, got, want int16) error {
	if got == want {
		return nil
	}
	return &Refusal{
		Thing:   "broker",
		Problem: fmt.Sprintf("it speaks version %d of %s, and backstory needs %d", got, api, want),
		Cure:    "use Kafka 2.3 or later",
	}
}
