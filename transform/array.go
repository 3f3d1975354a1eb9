package transform

import (
	"bytes"
	"errors"
)

// maxDimensions is Postgres's own bound (MAXDIM).
const maxDimensions = 6

var errArray = errors.New("the value is no array as Postgres writes it")

// appendArray turns a Postgres array, "{1,NULL}" or "[0:1]={…}", into a JSON
// array of its elements' form, nested as the array is. Lower bounds are dropped. An
// element that is an array itself, which only a domain can be, is one at any depth.
func (e *encoder) appendArray(dst []byte, c codec, text []byte) ([]byte, error) {
	if len(text) > 0 && text[0] == '[' {
		at := bytes.IndexByte(text, '=')
		if at < 0 {
			return dst, errArray
		}
		text = text[at+1:]
	}
	depth, wantElement := 0, true // an opening brace, or an element, may come
	for i := 0; i < len(text); {
		switch b := text[i]; {
		case b == '{' && wantElement && depth < maxDimensions && (depth > 0 || i == 0):
			dst = append(dst, '[')
			depth++
			i++
			if i < len(text) && text[i] == '}' && depth == 1 { // only the empty array has empty braces
				wantElement = false
			}
		case b == '}' && !wantElement && depth > 0:
			dst = append(dst, ']')
			depth--
			i++
			if depth == 0 {
				if i != len(text) {
					return dst, errArray
				}
				return dst, nil
			}
		case b == c.delimiter && !wantElement && depth > 0:
			dst = append(dst, ',')
			wantElement = true
			i++
		case wantElement && depth > 0:
			longer, n, err := e.appendElement(dst, c, text[i:])
			if err != nil {
				return dst, err
			}
			dst = longer
			i += n
			wantElement = false
		default:
			return dst, errArray
		}
	}
	return dst, errArray
}

// appendElement appends the element at the beginning of text and returns its
// length there.
func (e *encoder) appendElement(dst []byte, c codec, text []byte) ([]byte, int, error) {
	if text[0] == '"' {
		n := e.unquote(text)
		if n == 0 {
			return dst, 0, errArray
		}
		dst, err := e.appendQuoted(dst, c)
		return dst, n, err
	}
	n, escaped := 0, false
	for n < len(text) && text[n] != c.delimiter && text[n] != '}' {
		switch text[n] {
		case '{', '"':
			return dst, 0, errArray
		case '\\':
			escaped = true
		}
		n++
	}
	element := text[:n]
	if n == 0 || escaped {
		return dst, 0, errArray
	}
	if string(element) == "NULL" {
		return append(dst, "null"...), n, nil
	}
	if c.inner != nil {
		return dst, 0, errArray // its braces would be quoted
	}
	dst, err := appendScalar(dst, c.form, element)
	return dst, n, err
}

// appendQuoted appends the element that unquote has taken.
func (e *encoder) appendQuoted(dst []byte, c codec) ([]byte, error) {
	element := e.elements[e.depth]
	if c.inner == nil {
		return appendScalar(dst, c.form, element)
	}
	e.depth++
	dst, err := e.appendArray(dst, *c.inner, element)
	e.depth--
	return dst, err
}

// unquote puts the quoted element at the beginning of text, without its quotes
// and escapes, into the buffer of its depth, and returns its length in text; 0 if its
// end is missing.
func (e *encoder) unquote(text []byte) int {
	if e.depth == len(e.elements) {
		e.elements = append(e.elements, nil)
	}
	element := e.elements[e.depth][:0]
	defer func() { e.elements[e.depth] = element }()
	for i := 1; i < len(text); i++ {
		switch text[i] {
		case '"':
			return i + 1
		case '\\':
			if i++; i == len(text) {
				return 0
			}
		}
		element = append(element, text[i])
	}
	return 0
}
