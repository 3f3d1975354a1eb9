package sink

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/s2"
	"github.com/segmentio/kafka-go/protocol"
	"pgregory.net/rapid"
)

// kept is a record as a test compares it.
type kept struct {
	Offset     int64
	Time       int64
	Key, Value []byte
	Headers    []protocol.Header
}

// libraryBatch has kafka-go encode records of the given offset deltas.
func libraryBatch(tb testing.TB, base int64, attributes protocol.Attributes, records []kept) []byte {
	tb.Helper()
	out := make([]protocol.Record, len(records))
	for i, r := range records {
		out[i] = protocol.Record{
			Offset: int64(i), Time: time.UnixMilli(r.Time),
			Key: protocol.NewBytes(r.Key), Value: protocol.NewBytes(r.Value), Headers: r.Headers,
		}
	}
	set := protocol.RecordSet{Version: 2, Attributes: attributes, Records: protocol.NewRecordReader(out...)}
	var b bytes.Buffer
	if _, err := set.WriteTo(&b); err != nil {
		tb.Fatal(err)
	}
	raw := b.Bytes()[4:] // the set begins with its size
	binary.BigEndian.PutUint64(raw, uint64(base))
	return raw
}

// handBatch encodes an uncompressed batch by hand, with any offsets from base on.
func handBatch(base int64, lastDelta int32, attributes uint16, records []kept) []byte {
	b := make([]byte, batchRecordsAt)
	first := int64(0)
	if len(records) > 0 {
		first = records[0].Time
	}
	for _, r := range records {
		var body []byte
		body = append(body, 0)
		body = binary.AppendVarint(body, r.Time-first)
		body = binary.AppendVarint(body, r.Offset-base)
		body = handBytes(body, r.Key)
		body = handBytes(body, r.Value)
		body = binary.AppendVarint(body, int64(len(r.Headers)))
		for _, h := range r.Headers {
			body = handBytes(body, []byte(h.Key))
			body = handBytes(body, h.Value)
		}
		b = binary.AppendVarint(b, int64(len(body)))
		b = append(b, body...)
	}
	binary.BigEndian.PutUint64(b, uint64(base))
	binary.BigEndian.PutUint32(b[batchLengthAt:], uint32(len(b)-batchLengthOf))
	b[batchMagicAt] = 2
	binary.BigEndian.PutUint16(b[batchAttributesAt:], attributes)
	binary.BigEndian.PutUint32(b[batchLastDeltaAt:], uint32(lastDelta))
	binary.BigEndian.PutUint64(b[batchFirstTimeAt:], uint64(first))
	binary.BigEndian.PutUint64(b[batchMaxTimeAt:], uint64(first)+777)
	binary.BigEndian.PutUint32(b[batchCountAt:], uint32(len(records)))
	return sealed(b)
}

func handBytes(b, s []byte) []byte {
	if s == nil {
		return binary.AppendVarint(b, -1)
	}
	return append(binary.AppendVarint(b, int64(len(s))), s...)
}

// sealed sets the checksum of a batch.
func sealed(b []byte) []byte {
	sum := crc32.Checksum(b[batchAttributesAt:], crc32.MakeTable(crc32.Castagnoli))
	binary.BigEndian.PutUint32(b[batchCRCAt:], sum)
	return b
}

// decodeAll reads everything; the position is where the decoder would go on.
func decodeAll(d *decoder, data []byte, from int64) (got []kept, position int64, err error) {
	d.reset(data, from)
	var r record
	for {
		ok, err := d.next(&r)
		if err != nil || !ok {
			return got, d.position, err
		}
		p := kept{Offset: r.offset, Time: r.time, Key: bytes.Clone(r.key), Value: bytes.Clone(r.value)}
		for {
			name, value, ok, err := r.headers.next()
			if err != nil {
				return got, d.position, err
			}
			if !ok {
				break
			}
			p.Headers = append(p.Headers, protocol.Header{Key: string(name), Value: bytes.Clone(value)})
		}
		got = append(got, p)
	}
}

func someRecords(n int, base int64) []kept {
	out := make([]kept, n)
	for i := range out {
		out[i] = kept{
			Offset: base + int64(i), Time: 1700000000000 + int64(i)*3,
			Key: fmt.Appendf(nil, "key-%d", i%7), Value: []byte(strings.Repeat("value ", 10+i%50)),
			Headers: []protocol.Header{{Key: "ce_id", Value: fmt.Appendf(nil, "%d", i)}, {Key: "empty", Value: []byte{}}},
		}
	}
	return out
}

func TestDecodeCodecs(t *testing.T) {
	t.Parallel()
	for name, attributes := range map[string]protocol.Attributes{
		"none": 0, "gzip": protocol.Gzip, "snappy": protocol.Snappy, "lz4": protocol.Lz4, "zstd": protocol.Zstd,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var d decoder
			for round := range 3 { // the decompressors are used again
				want := someRecords(300+round*1000, 40)
				data := libraryBatch(t, 40, attributes, want)
				if name != "none" && len(data) > 300*60 && round == 0 {
					t.Fatalf("%d bytes: the batch is not compressed", len(data))
				}
				got, position, err := decodeAll(&d, data, 40)
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Fatal(diff)
				}
				if next := 40 + int64(len(want)); position != next {
					t.Errorf("position is %d, want %d", position, next)
				}
			}
		})
	}
}

// A batch that the bridge itself compressed comes back as it was.
func TestInflateDeflated(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(1, 2))
	noise := make([]byte, 200_000)
	for i := range noise {
		noise[i] = byte(rng.Uint32())
	}
	text := bytes.Repeat([]byte(`{"name":"chair","price":"19.90"},`), 9000)
	for name, c := range codecs {
		deflate, err := newDeflater(c)
		if err != nil {
			t.Fatal(err)
		}
		var inflate inflater
		for _, src := range [][]byte{text, text[:1], append(bytes.Clone(noise), text...), text[:65536], text[:65537]} {
			out, used, err := deflate.deflate(nil, src)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			back, err := inflate.inflate(used, out)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if !bytes.Equal(back, src) {
				t.Fatalf("%s: %d bytes came back as %d others", name, len(src), len(back))
			}
		}
	}
}

func TestInflateForms(t *testing.T) {
	t.Parallel()
	src := bytes.Repeat([]byte("abcdefgh"), 20_000)
	raw := s2.EncodeSnappy(nil, src)
	framed := append([]byte(xerialMagic), 0, 0, 0, 1, 0, 0, 0, 1)
	for _, block := range [][]byte{src[:32768], src[32768:]} {
		b := s2.EncodeSnappy(nil, block)
		framed = append(binary.BigEndian.AppendUint32(framed, uint32(len(b))), b...)
	}
	for name, b := range map[string][]byte{"one block": raw, "framed": framed} {
		var f inflater
		got, err := f.inflate(codecSnappy, b)
		if err != nil || !bytes.Equal(got, src) {
			t.Errorf("%s: got %d bytes, %v; want %d", name, len(got), err, len(src))
		}
	}
}

func TestInflateBound(t *testing.T) {
	t.Parallel()
	src := make([]byte, 3<<20)
	for name, c := range codecs {
		if c == codecNone {
			continue
		}
		deflate, err := newDeflater(c)
		if err != nil {
			t.Fatal(err)
		}
		b, _, err := deflate.deflate(nil, src)
		if err != nil {
			t.Fatal(err)
		}
		f := inflater{limit: 1 << 20}
		if _, err := f.inflate(c, b); err == nil {
			t.Errorf("%s: 3 MiB came out of a bound of 1 MiB", name)
		}
		if cap(f.buf) > 4<<20 {
			t.Errorf("%s: %d bytes are held for a bound of 1 MiB", name, cap(f.buf))
		}
		f.limit = 4 << 20
		f.zstd = nil
		if got, err := f.inflate(c, b); err != nil || len(got) != len(src) {
			t.Errorf("%s: got %d bytes, %v; want %d", name, len(got), err, len(src))
		}
	}
}

// What compaction, transactions and fetches in the middle of a batch leave.
func TestDecodeHoles(t *testing.T) {
	t.Parallel()
	at := func(offsets ...int64) []kept {
		var out []kept
		for _, o := range offsets {
			out = append(out, kept{Offset: o, Time: 1700000000000 + o, Key: []byte("k"), Value: []byte{byte(o)}})
		}
		return out
	}
	var data []byte
	data = append(data, handBatch(10, 4, 0, at(10, 12))...)                // the last two are gone
	data = append(data, handBatch(15, 2, 0, nil)...)                       // all are gone
	data = append(data, handBatch(18, 0, batchControlBit|0x10, at(18))...) // a marker
	data = append(data, handBatch(19, 9, 0x10, at(20, 28))...)             // transactional
	data = append(data, handBatch(29, 5, 0, at(34))...)                    // the first are gone
	tail := handBatch(35, 3, 0, at(35, 36))                                // cut off below
	tests := []struct {
		name string
		data []byte
		from int64
		want []kept
		next int64
	}{
		{"all", data, 10, at(10, 12, 20, 28, 34), 35},
		{"from the middle of a batch", data, 11, at(12, 20, 28, 34), 35},
		{"from a hole", data, 13, at(20, 28, 34), 35},
		{"from behind", data, 35, nil, 35},
		{"from far behind", data, 99, nil, 99},
		{"a cut batch", append(bytes.Clone(data), tail[:len(tail)-1]...), 30, at(34), 35},
		{"a cut head", append(bytes.Clone(data), tail[:11]...), 30, at(34), 35},
		{"the whole one", append(bytes.Clone(data), tail...), 30, at(34, 35, 36), 39},
		{"nothing", nil, 7, nil, 7},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, position, err := decodeAll(new(decoder), tt.data, tt.from)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
			next, err := nextOffset(tt.data, tt.from)
			if position != tt.next || next != tt.next || err != nil {
				t.Errorf("position %d, next offset %d (%v), want %d", position, next, err, tt.next)
			}
		})
	}
}

func TestDecodeAppendTime(t *testing.T) {
	t.Parallel()
	data := handBatch(0, 1, batchAppendTimeBit, []kept{{Offset: 0, Time: 5}, {Offset: 1, Time: 6}})
	got, _, err := decodeAll(new(decoder), data, 0)
	if err != nil || len(got) != 2 || got[0].Time != 5+777 || got[1].Time != 5+777 {
		t.Errorf("got %v, %v; want both at the broker's time 782", got, err)
	}
}

func TestDecodeRefuses(t *testing.T) {
	t.Parallel()
	good := func() []byte { return handBatch(3, 1, 0, someRecords(2, 3)) }
	change := func(fn func(b []byte)) []byte {
		b := good()
		fn(b)
		return sealed(b)
	}
	tests := []struct {
		name string
		data []byte
		want string
	}{
		{"a flipped bit", func() []byte { b := good(); b[len(b)-1] ^= 1; return b }(), "checksum"},
		{"format 1", change(func(b []byte) { b[batchMagicAt] = 1 }), "format 1"},
		{"format 0", change(func(b []byte) { b[batchMagicAt] = 0 }), "format 0"},
		{"format 3", change(func(b []byte) { b[batchMagicAt] = 3 }), "format 3"},
		{"unknown codec", change(func(b []byte) { b[batchAttributesAt+1] = 5 }), "compression 5"},
		{"no gzip", change(func(b []byte) { b[batchAttributesAt+1] = 1 }), "gzip"},
		{"no snappy", change(func(b []byte) { b[batchAttributesAt+1] = 2 }), "snappy"},
		{"no lz4", change(func(b []byte) { b[batchAttributesAt+1] = 3 }), "lz4"},
		{"no zstd", change(func(b []byte) { b[batchAttributesAt+1] = 4 }), "zstd"},
		{"negative count", change(func(b []byte) { b[batchCountAt] = 0x80 }), "records"},
		{"too few records", change(func(b []byte) { b[batchCountAt+3] = 1 }), "behind the last record"},
		{"too many records", change(func(b []byte) { b[batchCountAt+3] = 3 }), "3 records, last offset delta 1"},
		{"negative last delta", change(func(b []byte) { b[batchLastDeltaAt] = 0xff }), "delta"},
		{"delta above the last", change(func(b []byte) { b[batchLastDeltaAt+3] = 0; b[batchCountAt+3] = 1 }), "behind the last record"},
		{"negative offset", change(func(b []byte) { b[0] = 0x80 }), "delta"},
		{"negative length", change(func(b []byte) { b[batchLengthAt] = 0x80 }), "length"},
		{"tiny length", change(func(b []byte) { copy(b[batchLengthAt:], []byte{0, 0, 0, 2}) }), "length"},
		{"short head", sealed(append(good()[:batchLengthAt], 0, 0, 0, 20, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)), "head"},
		{"equal deltas", handBatch(3, 1, 0, someRecords(1, 3)[:0:0]), ""},
		{"going back", append(handBatch(9, 5, 0, nil), handBatch(4, 7, 0, nil)...), "below the batch before"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, _, err := decodeAll(new(decoder), tt.data, 0)
			if tt.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got error %v, want one with %q", err, tt.want)
			}
		})
	}
}

// Any records, in any batches, come back from any offset on.
func TestDecodeProperty(t *testing.T) {
	t.Parallel()
	bytesOrNil := rapid.OneOf(rapid.Just([]byte(nil)), rapid.SliceOfN(rapid.Byte(), 0, 200))
	rapid.Check(t, func(t *rapid.T) {
		var data []byte
		var all []kept
		next := rapid.Int64Range(0, 1<<40).Draw(t, "base")
		first := next
		for range rapid.IntRange(1, 4).Draw(t, "batches") {
			base := next
			var records []kept
			for range rapid.IntRange(0, 6).Draw(t, "records") {
				next += rapid.Int64Range(0, 3).Draw(t, "hole")
				r := kept{Offset: next, Time: rapid.Int64Range(0, 1<<45).Draw(t, "time"),
					Key: bytesOrNil.Draw(t, "key"), Value: bytesOrNil.Draw(t, "value")}
				for range rapid.IntRange(0, 3).Draw(t, "headers") {
					r.Headers = append(r.Headers, protocol.Header{
						Key: rapid.StringN(0, 80, -1).Draw(t, "name"), Value: bytesOrNil.Draw(t, "header")})
				}
				records = append(records, r)
				next++
			}
			next += rapid.Int64Range(0, 3).Draw(t, "tail")
			last := max(next-1, base)
			next = last + 1
			data = append(data, handBatch(base, int32(last-base), 0, records)...)
			all = append(all, records...)
		}
		from := rapid.Int64Range(first, next).Draw(t, "from")
		for len(all) > 0 && all[0].Offset < from {
			all = all[1:]
		}
		got, position, err := decodeAll(new(decoder), data, from)
		if err != nil {
			t.Fatal(err)
		}
		if len(all) == 0 {
			all = nil
		}
		if diff := cmp.Diff(all, got); diff != "" {
			t.Fatal(diff)
		}
		if position != next {
			t.Fatalf("position %d, want %d", position, next)
		}
	})
}

func FuzzDecode(f *testing.F) {
	records := someRecords(5, 0)
	for _, c := range []protocol.Attributes{0, protocol.Gzip, protocol.Snappy, protocol.Lz4, protocol.Zstd} {
		f.Add(libraryBatch(f, 7, c, records), int64(0))
	}
	f.Add(append(handBatch(1, 9, 0, nil), handBatch(11, 0, batchControlBit, nil)...), int64(3))
	f.Fuzz(func(t *testing.T, data []byte, from int64) {
		from = max(from, 0)
		d := decoder{inflater: inflater{limit: 1 << 20}}
		for range 2 { // as it comes, then with a checksum that lets more pass
			got, position, err := decodeAll(&d, data, from)
			if position < from {
				t.Fatalf("position %d goes back from %d", position, from)
			}
			last := from - 1
			for _, r := range got {
				if r.Offset <= last || r.Offset >= position {
					t.Fatalf("offset %d behind %d, position %d", r.Offset, last, position)
				}
				last = r.Offset
			}
			if next, scanErr := nextOffset(data, from); err == nil && (scanErr != nil || next != position) {
				t.Fatalf("the scan says %d, %v; the decoder %d", next, scanErr, position)
			}
			if len(data) <= batchRecordsAt {
				return
			}
			data = sealed(bytes.Clone(data))
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	value := bytes.Repeat([]byte("0123456789"), 30)
	records := make([]kept, 1000)
	for i := range records {
		records[i] = kept{Offset: int64(i), Time: 1700000000000, Key: []byte("12345"), Value: value}
	}
	for _, c := range []struct {
		name       string
		attributes protocol.Attributes
	}{{"none", 0}, {"snappy", protocol.Snappy}, {"lz4", protocol.Lz4}, {"zstd", protocol.Zstd}, {"gzip", protocol.Gzip}} {
		data := libraryBatch(b, 0, c.attributes, records)
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			var d decoder
			var r record
			for b.Loop() {
				d.reset(data, 0)
				for n := 0; ; n++ {
					ok, err := d.next(&r)
					if err != nil {
						b.Fatal(err)
					}
					if !ok {
						break
					}
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(records)), "ns/record")
		})
	}
}
