package transform

import (
	"errors"
	"unicode/utf8"
)

const lowerHex = "0123456789abcdef"

var errUTF8 = errors.New("the value is not UTF-8: mend it in the table, or leave the column out with omit")

// appendString appends text as a JSON string. Only what JSON demands is
// escaped: quotes, backslashes and control characters. Text that is not UTF-8,
// which a database of encoding SQL_ASCII may hold, is an error, because no JSON
// string can hold it exactly.
func appendString(dst, text []byte) ([]byte, error) {
	dst = append(dst, '"')
	from, high := 0, byte(0)
	for i, c := range text {
		high |= c
		if c >= ' ' && c != '"' && c != '\\' {
			continue
		}
		dst = append(dst, text[from:i]...)
		dst = appendEscape(dst, c)
		from = i + 1
	}
	if high >= utf8.RuneSelf && !utf8.Valid(text) {
		return dst, errUTF8
	}
	dst = append(dst, text[from:]...)
	return append(dst, '"'), nil
}

// appendEscape appends the shortest escape of a byte that needs one.
func appendEscape(dst []byte, c byte) []byte {
	switch c {
	case '"', '\\':
		return append(dst, '\\', c)
	case '\b':
		return append(dst, '\\', 'b')
	case '\f':
		return append(dst, '\\', 'f')
	case '\n':
		return append(dst, '\\', 'n')
	case '\r':
		return append(dst, '\\', 'r')
	case '\t':
		return append(dst, '\\', 't')
	}
	return append(dst, '\\', 'u', '0', '0', lowerHex[c>>4], lowerHex[c&15])
}
