package capture

import (
	"bytes"
	"errors"
	"fmt"
)

var (
	errCopyRow    = errors.New("copy data: the row does not end with a newline")
	errCopyEscape = errors.New("copy data: a backslash at the end of a field")
)

// decodeCopyRow decodes the first row of data, which is COPY's text format, into
// values, which has one element for each column. It returns what follows the row.
// Values point into data, whose escapes are resolved in place.
//
// The server writes a tab, newline or backslash inside a value as an escape, so
// the plain bytes only ever separate fields and rows. That holds in every encoding
// that a database can have, see charset: values are converted afterwards.
func decodeCopyRow(data []byte, values []Value) ([]byte, error) {
	end := bytes.IndexByte(data, '\n')
	if end < 0 {
		return nil, errCopyRow
	}
	row, rest := data[:end], data[end+1:]
	escaped := bytes.IndexByte(row, '\\') >= 0
	for i := range values {
		field := row
		tab := bytes.IndexByte(row, '\t')
		switch {
		case i == len(values)-1 && tab < 0:
			row = nil
		case i == len(values)-1 || tab < 0:
			return nil, fmt.Errorf("copy data: the row has %s than %d fields", moreOrFewer(tab), len(values))
		default:
			field, row = row[:tab:tab], row[tab+1:]
		}
		values[i] = Value{Kind: Text, Data: field[:len(field):len(field)]}
		if !escaped {
			continue
		}
		if len(field) == 2 && field[0] == '\\' && field[1] == 'N' {
			values[i] = Value{Kind: Null}
			continue
		}
		plain, err := unescapeCopy(field)
		if err != nil {
			return nil, err
		}
		values[i].Data = plain[:len(plain):len(plain)]
	}
	return rest, nil
}

func moreOrFewer(tab int) string {
	if tab < 0 {
		return "fewer"
	}
	return "more"
}

// unescapeCopy resolves the escapes of a field in place: \b \f \n \r \t \v, one
// to three octal digits, \x with one or two hex digits; any other character
// after a backslash stands for itself.
func unescapeCopy(field []byte) ([]byte, error) {
	to := bytes.IndexByte(field, '\\')
	if to < 0 {
		return field, nil
	}
	for from := to; from < len(field); {
		c := field[from]
		from++
		if c == '\\' {
			if from == len(field) {
				return nil, errCopyEscape
			}
			var used int
			c, used = copyEscape(field[from:])
			from += used
		}
		field[to] = c
		to++
	}
	return field[:to], nil
}

// copyEscape decodes what follows a backslash: s is not empty. It returns the
// byte meant and how many bytes of s say so.
func copyEscape(s []byte) (byte, int) {
	switch c := s[0]; c {
	case 'b':
		return '\b', 1
	case 'f':
		return '\f', 1
	case 'n':
		return '\n', 1
	case 'r':
		return '\r', 1
	case 't':
		return '\t', 1
	case 'v':
		return '\v', 1
	case 'x':
		value, digits := digitsOf(s[1:], 16, 2)
		if digits == 0 {
			return 'x', 1
		}
		return value, 1 + digits
	case '0', '1', '2', '3', '4', '5', '6', '7':
		return digitsOf(s, 8, 3)
	default:
		return c, 1
	}
}

// digitsOf reads up to limit digits of a base and returns their value, modulo 256
// as the server has it, and their number.
func digitsOf(s []byte, base byte, limit int) (byte, int) {
	var value byte
	n := 0
	for n < len(s) && n < limit {
		digit, ok := digitOf(s[n])
		if !ok || digit >= base {
			break
		}
		value = value*base + digit
		n++
	}
	return value, n
}

func digitOf(c byte) (byte, bool) {
	switch {
	case c >= '0' && c <= '9':
		return c - '0', true
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10, true
	case c >= 'A' && c <= 'F':
		return c - 'A' + 10, true
	}
	return 0, false
}
