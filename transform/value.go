package transform

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"unicode/utf8"

	"backstory/capture"
)

// form is how a Postgres type is written in JSON: one form for one type, so that
// consumers can rely on it.
type form uint8

const (
	formText      form = iota // JSON string of Postgres text
	formBool                  // true, false
	formInt                   // JSON number
	formInt64                 // JSON number, or a string by the mapping
	formInt64Text             // decimal in a string
	formFloat4                // shortest JSON number; "NaN", "Infinity", "-Infinity"
	formFloat8
	formMoney       // decimal in a string, without currency sign and separators
	formTimestamp   // RFC 3339 without an offset
	formTimestampTZ // RFC 3339 in UTC
	formJSON        // embedded verbatim
	formBytes       // base64 in a string
)

// forms has the types that are not written as formText.
var forms = map[uint32]form{
	16:   formBool,
	17:   formBytes,
	20:   formInt64,
	21:   formInt,
	23:   formInt,
	26:   formInt, // oid
	114:  formJSON,
	700:  formFloat4,
	701:  formFloat8,
	790:  formMoney,
	1114: formTimestamp,
	1184: formTimestampTZ,
	3802: formJSON, // jsonb
}

// codec says how the values of a column are written.
type codec struct {
	form      form
	array     bool
	delimiter byte   // of array elements
	inner     *codec // of array elements that are arrays themselves; else nil
}

// codecOf returns the codec of a column. Domains are written as their base type.
func codecOf(c *capture.Column, int64Text bool) codec {
	if c.Elem == 0 {
		return codec{form: formOf(c.Base, int64Text)}
	}
	return arrayCodec(&capture.ArrayType{Elem: c.Elem, Delim: c.Delim, Inner: c.Inner}, int64Text)
}

// arrayCodec returns the codec of an array.
func arrayCodec(a *capture.ArrayType, int64Text bool) codec {
	c := codec{form: formOf(a.Elem, int64Text), array: true, delimiter: ','}
	if a.Delim != 0 {
		c.delimiter = a.Delim
	}
	if a.Inner != nil {
		inner := arrayCodec(a.Inner, int64Text)
		c.inner = &inner
	}
	return c
}

// formOf returns the form of a type that is no domain and no array.
func formOf(oid uint32, int64Text bool) form {
	f := forms[oid]
	if f == formInt64 && int64Text {
		return formInt64Text
	}
	return f
}

// encoder appends values as JSON. Its buffers serve the elements of arrays, one for
// each depth of arrays in arrays.
type encoder struct {
	elements [][]byte
	depth    int
}

// append appends a value that is Null or Text.
func (e *encoder) append(dst []byte, c codec, v capture.Value) ([]byte, error) {
	switch {
	case v.Kind == capture.Null:
		return append(dst, "null"...), nil
	case c.array:
		return e.appendArray(dst, c, v.Data)
	}
	return appendScalar(dst, c.form, v.Data)
}

// appendScalar appends a value that is no array.
func appendScalar(dst []byte, f form, text []byte) ([]byte, error) {
	switch f {
	case formBool:
		return appendBool(dst, text)
	case formInt, formInt64:
		return appendInt(dst, text)
	case formFloat4:
		return appendFloat(dst, text, 32)
	case formFloat8:
		return appendFloat(dst, text, 64)
	case formMoney:
		return appendMoney(dst, text)
	case formTimestamp, formTimestampTZ:
		return appendTimestamp(dst, text, f == formTimestampTZ)
	case formJSON:
		return appendJSON(dst, text)
	case formBytes:
		return appendBytes(dst, text)
	default: // formText, formInt64Text
		return appendString(dst, text)
	}
}

func appendBool(dst, text []byte) ([]byte, error) {
	switch string(text) {
	case "t":
		return append(dst, "true"...), nil
	case "f":
		return append(dst, "false"...), nil
	}
	return dst, errors.New("the value is no boolean: expected t or f")
}

// appendInt copies an integer, having checked that it is one.
func appendInt(dst, text []byte) ([]byte, error) {
	digits := text
	if len(digits) > 0 && digits[0] == '-' {
		digits = digits[1:]
	}
	if len(digits) == 0 || digits[0] == '0' && len(digits) > 1 {
		return dst, errInteger
	}
	for _, c := range digits {
		if c < '0' || c > '9' {
			return dst, errInteger
		}
	}
	return append(dst, text...), nil
}

var errInteger = errors.New("the value is no integer")

// appendMoney writes "$1,234.50" as "1234.50" and "-$0.50" as "-0.50".
func appendMoney(dst, text []byte) ([]byte, error) {
	dst = append(dst, '"')
	digits := 0
	for _, c := range text {
		switch {
		case c >= '0' && c <= '9':
			digits++
			dst = append(dst, c)
		case c == '-', c == '.':
			dst = append(dst, c)
		case c == '$', c == ',':
		default:
			return dst, fmt.Errorf("the value is no amount of money as lc_monetary=C writes it: unexpected %q", c)
		}
	}
	if digits == 0 {
		return dst, errors.New("the value is no amount of money: it has no digits")
	}
	return append(dst, '"'), nil
}

// appendTimestamp writes "2026-01-01 00:00:00.5" with a T in the middle, and for
// timestamptz a Z instead of +00. What RFC 3339 can't say stays as Postgres
// writes it: infinity, years above 9999, years BC.
func appendTimestamp(dst, text []byte, zoned bool) ([]byte, error) {
	const date = len("2026-01-01")
	clock := text
	if zoned {
		var utc bool
		clock, utc = bytes.CutSuffix(bytes.TrimSuffix(text, []byte(" BC")), []byte("+00"))
		if !utc && len(text) > 0 && isDigit(text[0]) {
			return dst, errZone
		}
	}
	if len(clock) < len("2026-01-01 00:00:00") || clock[date] != ' ' || !isDigit(text[len(text)-1]) {
		return appendString(dst, text)
	}
	dst = append(dst, '"')
	dst = append(dst, clock[:date]...)
	dst = append(dst, 'T')
	dst = append(dst, clock[date+1:]...)
	if zoned {
		dst = append(dst, 'Z')
	}
	return append(dst, '"'), nil
}

var errZone = errors.New("the value is not in UTC: the session must have TimeZone=UTC")

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

// appendJSON embeds a JSON value as it is. Postgres has checked its syntax.
func appendJSON(dst, text []byte) ([]byte, error) {
	if len(text) == 0 {
		return dst, errors.New("the value is no JSON: it is empty")
	}
	if !utf8.Valid(text) {
		return dst, errUTF8
	}
	return append(dst, text...), nil
}

// appendBytes turns \x… into base64.
func appendBytes(dst, text []byte) ([]byte, error) {
	if len(text) < 2 || text[0] != '\\' || text[1] != 'x' {
		return dst, errors.New("the value is no bytea in hex: the session must have bytea_output=hex")
	}
	digits := text[2:]
	dst = append(dst, '"')
	var raw [384]byte // a multiple of 3, so that pieces join without padding
	for len(digits) > 0 {
		piece := digits[:min(len(digits), 2*len(raw))]
		n, err := hex.Decode(raw[:], piece)
		if err != nil {
			return dst, errors.New("the value is no bytea in hex")
		}
		dst = base64.StdEncoding.AppendEncode(dst, raw[:n])
		digits = digits[len(piece):]
	}
	return append(dst, '"'), nil
}
