package transform

import (
	"errors"
	"strconv"
	"unsafe"
)

// plainDigits bounds the text of a float that needs no second look: up to that
// many significant digits, and before the point, Postgres of every version
// writes the same shortest text.
func plainDigits(bits int) int {
	if bits == 32 {
		return 6
	}
	return 15
}

// appendFloat appends a float in its shortest exact form, written as Postgres 12
// and later write it. Earlier ones print 17 digits (9 of a float4) instead of
// the shortest, and 1e15 as a row of zeros; those are rewritten, so that an
// upgrade of the server changes no value.
func appendFloat(dst, text []byte, bits int) ([]byte, error) {
	switch string(text) {
	case "NaN", "Infinity", "-Infinity":
		dst = append(dst, '"')
		dst = append(dst, text...)
		return append(dst, '"'), nil
	}
	significant, before, ok := countDigits(text)
	if !ok {
		return dst, errFloat
	}
	if plain := plainDigits(bits); significant <= plain && before <= plain {
		return append(dst, text...), nil
	}
	return appendShortest(dst, text, bits)
}

var errFloat = errors.New("the value is no floating-point number")

// countDigits checks that text is a JSON number and counts its significant
// digits and those before the point. Zeros at the end of an integer count.
func countDigits(text []byte) (significant, before int, ok bool) {
	i := 0
	if i < len(text) && text[i] == '-' {
		i++
	}
	start := i
	leading := true
	for i < len(text) && isDigit(text[i]) {
		leading = leading && text[i] == '0'
		if !leading {
			significant++
		}
		i++
	}
	before = i - start
	if before == 0 || text[start] == '0' && before > 1 {
		return 0, 0, false
	}
	if i < len(text) && text[i] == '.' {
		point := i
		for i++; i < len(text) && isDigit(text[i]); i++ {
			leading = leading && text[i] == '0'
			if !leading {
				significant++
			}
		}
		if i == point+1 {
			return 0, 0, false
		}
	}
	return significant, before, exponent(text[i:])
}

// exponent reports whether text is empty or an exponent: "e-07", "e+15".
func exponent(text []byte) bool {
	if len(text) == 0 {
		return true
	}
	if text[0] != 'e' || len(text) < 2 {
		return false
	}
	digits := text[1:]
	if digits[0] == '+' || digits[0] == '-' {
		digits = digits[1:]
	}
	_, ok := parseDigits(digits)
	return ok
}

// appendShortest parses and prints anew: in plain notation from 1e-04 to below
// 1e+15 (1e+06 of a float4), else with an exponent of at least two digits.
func appendShortest(dst, text []byte, bits int) ([]byte, error) {
	v, err := strconv.ParseFloat(unsafe.String(unsafe.SliceData(text), len(text)), bits)
	if err != nil {
		return dst, errFloat
	}
	start := len(dst)
	dst = strconv.AppendFloat(dst, v, 'e', -1, bits)
	printed := dst[start:]
	mark := len(printed) - 1
	for mark > 0 && printed[mark] != 'e' {
		mark--
	}
	exp, ok := parseDigits(printed[mark+2:])
	if !ok {
		return dst, errFloat
	}
	negative := printed[mark+1] == '-'
	if negative && exp <= 4 || !negative && int(exp) < plainDigits(bits) {
		dst = strconv.AppendFloat(dst[:start], v, 'f', -1, bits)
	}
	return dst, nil
}
