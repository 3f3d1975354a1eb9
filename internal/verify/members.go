package verify

import (
	"bytes"
	"strconv"

	"backstory/transform"
)

// field is a member in which two images differ; a nil value means that the image
// does not have it.
type field struct {
	name        string
	left, right []byte
}

var null = []byte("null")

// unequal compares two images of the same aggregate by their members. With
// loose, the order of the members does not count, and a member that is null is as
// good as none: a column that was added or dropped since the row's last change is
// in one image only.
func unequal(left, right []byte, loose bool) ([]field, error) {
	if bytes.Equal(left, right) {
		return nil, nil
	}
	l, err := transform.Members(nil, left)
	if err != nil {
		return nil, err
	}
	r, err := transform.Members(nil, right)
	if err != nil {
		return nil, err
	}
	var fields []field
	for _, m := range l {
		fields = appendUnequal(fields, m.Name, m.Value, member(r, m.Name), loose)
	}
	for _, m := range r {
		if member(l, m.Name) == nil {
			fields = appendUnequal(fields, m.Name, nil, m.Value, loose)
		}
	}
	if len(fields) == 0 && !loose {
		return []field{{name: "", left: left, right: right}}, nil // the order, or a member twice
	}
	return fields, nil
}

// unlike compares an image with the members that are known of it.
func unlike(image, known []byte, loose bool) ([]field, error) {
	all, err := transform.Members(nil, image)
	if err != nil {
		return nil, err
	}
	some, err := transform.Members(nil, known)
	if err != nil {
		return nil, err
	}
	var fields []field
	for _, m := range some {
		fields = appendUnequal(fields, m.Name, member(all, m.Name), m.Value, loose)
	}
	return fields, nil
}

func appendUnequal(fields []field, name, left, right []byte, loose bool) []field {
	l, r := left, right
	if loose {
		if l == nil {
			l = null
		}
		if r == nil {
			r = null
		}
	}
	if bytes.Equal(l, r) && (l == nil) == (r == nil) {
		return fields
	}
	return append(fields, field{name: unquote(name), left: left, right: right})
}

func member(members []transform.Member, name []byte) []byte {
	for i := range members {
		if bytes.Equal(members[i].Name, name) {
			return members[i].Value
		}
	}
	return nil
}

func unquote(name []byte) string {
	if text, err := strconv.Unquote(string(name)); err == nil {
		return text
	}
	return string(name)
}
