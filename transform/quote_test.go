package transform

import (
	"encoding/json"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"
)

// A string must be what encoding/json reads back, and no byte more is escaped than
// has to be, wherever in a word it stands.
func TestAppendString(t *testing.T) {
	letters := rapid.SampledFrom([]byte("ab z\x00\x01\b\f\n\r\t\x1f !\"\\~\x7f\x80\xbf\xc3\xa9\xe2\x82\xac\xff"))
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.OneOf(rapid.SliceOfN(letters, 0, 40), rapid.SliceOfN(rapid.Byte(), 0, 40),
			rapid.Map(rapid.String(), func(s string) []byte { return []byte(s) })).Draw(t, "text")
		got, err := appendString([]byte("x"), text)
		if !utf8.Valid(text) {
			if err == nil {
				t.Fatalf("%q is not UTF-8, and became %s", text, got)
			}
			return
		}
		var back string
		if err != nil || got[0] != 'x' || json.Unmarshal(got[1:], &back) != nil || back != string(text) {
			t.Fatalf("%q became %s, which is %q, error %v", text, got, back, err)
		}
		want := 3
		for _, c := range text {
			want += len(written(c))
		}
		if len(got) != want {
			t.Fatalf("%q became %s, of %d bytes, want %d", text, got, len(got), want)
		}
	})
}

// written is a byte as a string has it.
func written(c byte) []byte {
	if c < ' ' || c == '"' || c == '\\' {
		return appendEscape(nil, c)
	}
	return []byte{c}
}
