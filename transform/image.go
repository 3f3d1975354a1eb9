package transform

import (
	"bytes"
	"errors"
)

// member is a member of a JSON object: both slices are raw, as they stand in the
// object, the name with its quotes.
type member struct {
	name, value []byte
}

// image is a JSON object that this package has written, as a list of members.
// It does not copy: its slices point into the text that was parsed and to the
// values that were set.
type image []member

var (
	errImage = errors.New("the text is no object as the bridge writes it")
	null     = []byte("null")
)

// parse appends the members of an object to im. It takes what this package
// writes: no space outside of values. A value may be any JSON, with the space
// around it that a json column has, and is kept byte for byte.
func (im image) parse(text []byte) (image, error) {
	if len(text) < 2 || text[0] != '{' {
		return im, errImage
	}
	if text[1] == '}' {
		if len(text) > 2 {
			return im, errImage
		}
		return im, nil
	}
	for i := 1; ; {
		nameEnd := skipString(text, i)
		if nameEnd < 0 || nameEnd >= len(text) || text[nameEnd] != ':' {
			return im, errImage
		}
		valueEnd := skipValue(text, nameEnd+1)
		if valueEnd < 0 || valueEnd == nameEnd+1 {
			return im, errImage
		}
		im = append(im, member{name: text[i:nameEnd], value: text[nameEnd+1 : valueEnd]})
		i = valueEnd + 1
		if text[valueEnd] == ',' {
			continue
		}
		if i != len(text) {
			return im, errImage
		}
		return im, nil
	}
}

// skipString returns the index behind the string that begins at i, or −1.
func skipString(text []byte, i int) int {
	if i >= len(text) || text[i] != '"' {
		return -1
	}
	i++
	for {
		n := bytes.IndexByte(text[i:], '"')
		if n < 0 {
			return -1
		}
		end := i + n
		back := end
		for back > i && text[back-1] == '\\' {
			back--
		}
		i = end + 1
		if (end-back)%2 == 0 {
			return i
		}
	}
}

// skipValue returns the index of the ',' or '}' that ends the value which begins
// at i, or −1.
func skipValue(text []byte, i int) int {
	depth := 0
	for i < len(text) {
		switch text[i] {
		case '"':
			if i = skipString(text, i); i < 0 {
				return -1
			}
			continue
		case '{', '[':
			depth++
		case ',':
			if depth == 0 {
				return i
			}
		case '}', ']':
			if depth == 0 {
				if text[i] == ']' {
					return -1
				}
				return i
			}
			depth--
		}
		i++
	}
	return -1
}

// index returns the index of the member of that name, or −1. It looks first
// where hint says.
func (im image) index(name []byte, hint int) int {
	if hint < len(im) && bytes.Equal(im[hint].name, name) {
		return hint
	}
	for i := range im {
		if bytes.Equal(im[i].name, name) {
			return i
		}
	}
	return -1
}

// set replaces the value of member at, or appends a member where at is −1.
func (im image) set(at int, name, value []byte) image {
	if at < 0 {
		return append(im, member{name: name, value: value})
	}
	im[at].value = value
	return im
}

// append appends the object's text.
func (im image) append(dst []byte) []byte {
	dst = append(dst, '{')
	for i := range im {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, im[i].name...)
		dst = append(dst, ':')
		dst = append(dst, im[i].value...)
	}
	return append(dst, '}')
}

// size is the length of what append appends.
func (im image) size() int {
	n := 2 + 2*len(im)
	for i := range im {
		n += len(im[i].name) + len(im[i].value)
	}
	return n
}
