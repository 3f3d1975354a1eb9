package screen_test

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"backstory/capture"
	"backstory/internal/screen"
	"backstory/transform"
)

var update = flag.Bool("update", false, "rewrite the golden files")

const at = 1767225600_120000 // 2026-01-01T00:00:00.12Z

func event(key string, version uint64, kind string, op capture.Op, data string) *transform.Stored {
	return &transform.Stored{
		Event: transform.Event{
			ID: transform.EventID{0x01, 0x02, 15: 0xff}, Type: kind + ".v1", Key: []byte(key), Version: version,
			Time: at + int64(version)*1000, Op: op, XID: 77, Data: []byte(data),
		},
		Topic: transform.Events, Partition: 3, Offset: 41,
	}
}

func state(key string, version uint64, image string) *transform.Stored {
	r := event(key, version, "ProductState", capture.OpUpdate, "")
	r.Topic, r.Data = transform.Latest, nil
	if image != "" {
		r.State = []byte(image)
	}
	return r
}

func with(r *transform.Stored, change func(*transform.Stored)) *transform.Stored {
	change(r)
	return r
}

// records has one of each kind that a person may see.
func records() []*transform.Stored {
	long := strings.Repeat("long text ", 20)
	return []*transform.Stored{
		event("42", 1, "ProductImported", capture.OpRead, `{"old":{},"new":{"sku":"A-42","price":"19.90","stock":4,"tags":["a","b"],"note":null},"reason":null}`),
		state("42", 1, `{"sku":"A-42","price":"19.90","stock":4,"tags":["a","b"],"note":null}`),
		with(event("42", 2, "com.example.legacy.PriceChanged", capture.OpUpdate, `{"old":{"price":"19.90"},"new":{"price":"17.90"},"reason":"spring sale"}`),
			func(r *transform.Stored) { r.Context = &capture.Context{Actor: "ann"} }),
		event("42", 3, "StockAdjusted", capture.OpUpdate, `{"old":{"stock":4},"new":{"stock":3},"reason":{"order":10042}}`),
		event("42", 4, "ProductUpdated", capture.OpUpdate, `{"old":{"note":null},"new":{"note":"","colour":"two, or three"},"reason":null}`),
		with(event("42", 5, "ProductDeleted", capture.OpDelete, `{"old":{"sku":"A-42","price":"17.90"},"new":{},"reason":null}`),
			func(r *transform.Stored) { r.Cause, r.Related = transform.KeyChanged, []byte("43") }),
		with(event("43", 1, "ProductCreated", capture.OpInsert, `{"old":{},"new":{"sku":"A-42"},"reason":null}`),
			func(r *transform.Stored) { r.Cause, r.Related = transform.KeyChanged, []byte("42") }),
		state("42", 5, ""),
		with(event("a-rather-long-key/of-two-parts/and-more", 1234567, "ProductDeleted", capture.OpTruncate, `{"old":{"sku":"x"},"new":{},"reason":"cleaning"}`),
			func(r *transform.Stored) { r.Cause = transform.Truncated }),
		with(event("44", 2, "ProductUpdated", capture.OpRead, `{"old":{"name":"`+long+`"},"new":{"name":"kürzer → 简体"},"reason":null}`),
			func(r *transform.Stored) { r.Cause = transform.Reconciliation }),
		event("\x1b[2Jevil\n", 1, "ProductCreated", capture.OpInsert, `{"old":{},"new":{"name":"\u001b]0;title\u0007\r\nnext\u202e"},"reason":"\u001b[31m"}`),
		event("45", 1, "Strange", capture.OpUpdate, `not json at all`),
	}
}

func render(s *screen.Screen) string {
	var b strings.Builder
	for _, r := range records() {
		topic := "product.events"
		if r.Topic == transform.Latest {
			topic = "product.latest"
		}
		b.WriteString(s.Render(topic, r) + "\n")
	}
	return b.String()
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Error(d)
	}
}

func TestRender(t *testing.T) {
	t.Parallel()
	tests := []struct {
		file  string
		style screen.Style
	}{
		{"plain.golden", screen.Style{}},
		{"color.golden", screen.Style{Color: true}},
		{"narrow.golden", screen.Style{Width: 72}},
	}
	for _, tt := range tests {
		t.Run(tt.file, func(t *testing.T) {
			t.Parallel()
			golden(t, tt.file, render(&screen.Screen{Style: tt.style, Zone: time.UTC}))
		})
	}
}

func TestLinesFitTheTerminal(t *testing.T) {
	t.Parallel()
	for _, width := range []int{1, 10, 40, 80} {
		for line := range strings.Lines(render(&screen.Screen{Style: screen.Style{Width: width}, Zone: time.UTC})) {
			if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > width {
				t.Errorf("width %d: a line of %d columns: %q", width, n, line)
			}
		}
	}
}

func TestDataCannotSteerTheTerminal(t *testing.T) {
	t.Parallel()
	for line := range strings.SplitSeq(strings.TrimSuffix(render(&screen.Screen{Zone: time.UTC}), "\n"), "\n") {
		for _, r := range line {
			if r < 0x20 || r == 0x7f || r >= 0x80 && r < 0xa0 || r == 0x202e {
				t.Errorf("control character %U in %q", r, line)
			}
		}
	}
	if got := len(strings.Split(render(&screen.Screen{Zone: time.UTC}), "\n")) - 1; got != len(records()) {
		t.Errorf("got %d lines for %d records", got, len(records()))
	}
}

func TestJSON(t *testing.T) {
	t.Parallel()
	var b strings.Builder
	for _, r := range records()[:9] {
		line, err := screen.JSON("product.events", r)
		if err != nil {
			t.Fatal(err)
		}
		if !json.Valid([]byte(line)) || strings.Contains(line, "\n") {
			t.Errorf("no JSON line: %q", line)
		}
		b.WriteString(line + "\n")
	}
	golden(t, "json.golden", b.String())
	if _, err := screen.JSON("t", records()[11]); err == nil {
		t.Error("a value that is no JSON: no error")
	}
}

func TestTypeName(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"PriceChanged.v1": "PriceChanged", "com.example.PriceChanged.v12": "PriceChanged", "PriceChanged": "PriceChanged", "": "",
	} {
		if got := screen.TypeName(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

func TestStyleOfAFileIsPlain(t *testing.T) {
	t.Parallel()
	f, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if got := screen.StyleOf(f); got != (screen.Style{}) {
		t.Errorf("got %+v, want neither colour nor width", got)
	}
}
