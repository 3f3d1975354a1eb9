package capture

import (
	"bytes"
	"slices"
	"testing"
)

// copyEscaper writes a value as the server's COPY does.
func copyEscaper(value []byte) []byte {
	var out []byte
	for _, c := range value {
		if i := bytes.IndexByte([]byte("\b\f\n\r\t\v\\"), c); i >= 0 {
			out = append(out, '\\', `bfnrtv\`[i])
			continue
		}
		out = append(out, c)
	}
	return out
}

// FuzzCopyRow reads any bytes as a row, and values as the server writes them.
func FuzzCopyRow(f *testing.F) {
	f.Add([]byte("a\t\\N\t\\\\N\n"), uint8(3))
	f.Add([]byte("\\x41\\101\\t\\q\\\n"), uint8(1))
	f.Fuzz(func(t *testing.T, data []byte, columns uint8) {
		values := make([]Value, max(1, int(columns)))
		if rest, err := decodeCopyRow(slices.Clone(data), values); err == nil && len(rest) >= len(data) {
			t.Fatalf("a row of no bytes: %q", data)
		}
		var row []byte
		parts := bytes.SplitN(data, []byte{0}, len(values))
		for i, part := range parts {
			if i > 0 {
				row = append(row, '\t')
			}
			row = append(row, copyEscaper(part)...)
		}
		row = append(row, "\nrest"...)
		values = values[:len(parts)]
		rest, err := decodeCopyRow(row, values)
		if err != nil || string(rest) != "rest" {
			t.Fatalf("row of %q: got rest %q, %v", parts, rest, err)
		}
		for i, part := range parts {
			if values[i].Kind != Text || !bytes.Equal(values[i].Data, part) {
				t.Errorf("value %d: got %q, want %q", i, values[i].Data, part)
			}
		}
	})
}
