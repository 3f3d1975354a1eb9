package transform

import (
	"bytes"
	"fmt"
	"net/url"
)

// AppendKey appends the aggregate id of key values, which are Postgres text. A
// key of one column is its plain text. The parts of a composite key are
// path-escaped as url.PathEscape does it, and joined by '/'.
func AppendKey(dst []byte, parts ...[]byte) []byte {
	if len(parts) == 1 {
		return append(dst, parts[0]...)
	}
	for i, part := range parts {
		if i > 0 {
			dst = append(dst, '/')
		}
		dst = appendEscaped(dst, part)
	}
	return dst
}

// SplitKey is the inverse of AppendKey for a key of n columns.
func SplitKey(key []byte, n int) ([]string, error) {
	if n == 1 {
		return []string{string(key)}, nil
	}
	raw := bytes.Split(key, []byte{'/'})
	if len(raw) != n {
		return nil, fmt.Errorf("key %q has %d parts instead of %d", key, len(raw), n)
	}
	parts := make([]string, n)
	for i, r := range raw {
		part, err := url.PathUnescape(string(r))
		if err != nil {
			return nil, fmt.Errorf("key %q: part %d: %w", key, i+1, err)
		}
		parts[i] = part
	}
	return parts, nil
}

// appendEscaped escapes every byte that url.PathEscape escapes.
func appendEscaped(dst, part []byte) []byte {
	for _, c := range part {
		if plainInPath[c] {
			dst = append(dst, c)
		} else {
			dst = append(dst, '%', upperHex[c>>4], upperHex[c&15])
		}
	}
	return dst
}

// plainInPath has the bytes that stand for themselves in an escaped part.
var plainInPath = byteSet("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.~$&+=:@")

func byteSet(bytes string) (set [256]bool) {
	for i := range len(bytes) {
		set[bytes[i]] = true
	}
	return set
}
