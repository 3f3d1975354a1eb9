package transform

import (
	"encoding/binary"
	"unicode/utf8"
)

const lowerHex = "0123456789abcdef"

// errUTF8 is the last guard: capture has converted texts, or refused them, before.
const errUTF8 valueError = "the value is not UTF-8: mend it in the table, or leave the column out with omit"

// appendString appends text as a JSON string. Only what JSON demands is
// escaped: quotes, backslashes and control characters. Text that is not UTF-8 is an
// error, because no JSON string can hold it exactly.
func appendString(dst, text []byte) ([]byte, error) {
	dst = append(dst, '"')
	from, high := 0, byte(0)
	for i := 0; i < len(text); {
		end := len(text)
		if i+8 <= end {
			if plain(binary.LittleEndian.Uint64(text[i:])) {
				i += 8
				continue
			}
			end = i + 8
		}
		for ; i < end; i++ {
			c := text[i]
			high |= c
			if c >= ' ' && c != '"' && c != '\\' {
				continue
			}
			dst = append(dst, text[from:i]...)
			dst = appendEscape(dst, c)
			from = i + 1
		}
	}
	if high >= utf8.RuneSelf && !utf8.Valid(text) {
		return dst, errUTF8
	}
	dst = append(dst, text[from:]...)
	return append(dst, '"'), nil
}

// plain reports whether eight bytes are all ASCII and none needs an escape.
func plain(word uint64) bool {
	const ones, tops = 0x0101010101010101, 0x8080808080808080
	quote, back := word^'"'*ones, word^'\\'*ones
	control := word - ' '*ones // a byte below the space borrows
	return (word|control|(quote-ones)|(back-ones))&tops == 0
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
