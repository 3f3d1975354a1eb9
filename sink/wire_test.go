package sink

import (
	"encoding/binary"
	"testing"
)

// FuzzAnswers reads any bytes as each answer that this package decodes itself.
// It may fail, and must neither panic nor take more memory than the bytes warrant.
func FuzzAnswers(f *testing.F) {
	f.Add([]byte{})
	f.Add(binary.BigEndian.AppendUint32(nil, 1<<31-1))
	producers := []byte{0, 0, 0, 0, 0, 2, 2, 't', 2, 0, 0, 0, 0, 0, 0, 0, 2}
	producers = append(producers, make([]byte, 40)...)
	f.Add(producers)
	var w wireWriter
	w.int32(0)
	w.int16(0)
	w.int32(0)
	w.int32(1)
	w.string("topic")
	w.int32(1)
	w.int32(0)
	w.int16(0)
	for range 3 {
		w.int64(7)
	}
	w.int32(-1)
	w.int32(-1)
	w.int32(2)
	w.b = append(w.b, 1, 2)
	f.Add(w.b)
	f.Fuzz(func(t *testing.T, b []byte) {
		var fetch fetchResponse
		if err := fetch.decode(wireReader{b: b}); err == nil {
			size := 0
			for _, p := range fetch.partitions {
				size += len(p.records)
			}
			if size > len(b) || len(fetch.partitions)*fetchedPartitionSize > len(b) {
				t.Errorf("%d bytes hold %d partitions with %d bytes", len(b), len(fetch.partitions), size)
			}
		}
		var offsets offsetsResponse
		if err := offsets.decode(wireReader{b: b}); err == nil && len(offsets.partitions)*offsetsPartitionSize > len(b) {
			t.Errorf("%d bytes hold %d offsets", len(b), len(offsets.partitions))
		}
		var found producersResponse
		_ = found.decode(wireReader{b: b})
		if len(found.found) > len(b)+1 {
			t.Errorf("%d bytes hold %d producers", len(b), len(found.found))
		}
	})
}
