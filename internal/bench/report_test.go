package main

import (
	"strings"
	"testing"
)

func TestTableHasMedianAndSpread(t *testing.T) {
	r := newReport("some")
	for _, v := range []float64{1500, 900, 123456} {
		r.row("a").add("changes/s", v)
	}
	r.row("a").add("ratio", 0.625)
	r.row("b").add("ms", 12.34)
	r.note("that was all")
	var b strings.Builder
	if err := r.table(&b); err != nil {
		t.Fatal(err)
	}
	_, got, _ := strings.Cut(b.String(), "\n") // the first line has time and machine
	want := `   changes/s            ratio
a  1,500 (900–123,456)  0.62
   ms
b  12.3
that was all
`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestQuantile(t *testing.T) {
	values := []float64{4, 1, 3, 2}
	for q, want := range map[float64]float64{0: 1, 0.5: 2.5, 1: 4} {
		if got := quantile(values, q); got != want {
			t.Errorf("quantile %v: got %v, want %v", q, got, want)
		}
	}
	if values[0] != 4 {
		t.Error("the values were sorted in place")
	}
}

// Helpers belong to the step that called them.
func TestStepOf(t *testing.T) {
	tests := []struct{ stack, want string }{
		{"runtime.memmove backstory/sink.appendHeader backstory/sink.(*recordWriter).headers backstory/sink.(*Producer).encode", "encode"},
		{"runtime.memmove backstory/sink.extend backstory/sink.(*deflater).compressLZ4 backstory/sink.(*Producer).encode", "compress"},
		{"syscall.Pread backstory/internal/state.(*Batch).Get backstory/transform.(*Transformer).Apply", "state"},
		{"syscall.Read backstory/capture.(*wire).read backstory/capture.(*Stream).Next", "read"},
		{"syscall.Write github.com/segmentio/kafka-go.(*conn).run", "produce"},
		{"runtime.scanobject runtime.gcDrain runtime.gcBgMarkWorker", "garbage collection"},
		{"main.main", "other"},
	}
	for _, tt := range tests {
		if got := stepOf(strings.Fields(tt.stack)); got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.stack, got, tt.want)
		}
	}
}
