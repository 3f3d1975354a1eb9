package transform

import (
	"errors"
	"fmt"
	"strings"
)

// maxIdentifier is the length of a Postgres identifier, in bytes; the server
// cuts off longer ones.
const maxIdentifier = 63

// parseTableName reads a table's name as SQL writes it: "products",
// "public.products", `"Legacy Shop"."Products"`. Without quotes letters become
// lower case. The schema defaults to public.
func parseTableName(text string) (schema, name string, err error) {
	first, rest, err := parseIdentifier(text)
	if err != nil {
		return "", "", err
	}
	if rest == "" {
		return "public", first, nil
	}
	if rest[0] != '.' {
		return "", "", fmt.Errorf("%q is no table's name: unexpected %q; put names with other characters than letters, "+
			"digits and underscores into double quotes", text, rest)
	}
	second, rest, err := parseIdentifier(rest[1:])
	if err != nil {
		return "", "", err
	}
	if rest != "" {
		return "", "", fmt.Errorf("%q is no table's name: write schema.table", text)
	}
	return first, second, nil
}

// parseIdentifier reads one identifier and returns what follows it.
func parseIdentifier(text string) (name, rest string, err error) {
	if strings.HasPrefix(text, `"`) {
		name, rest, err = parseQuoted(text[1:])
	} else {
		n := 0
		for n < len(text) && identifierByte(text[n], n == 0) {
			n++
		}
		name, rest = lowerASCII(text[:n]), text[n:]
	}
	switch {
	case err != nil:
		return "", "", err
	case name == "":
		return "", "", fmt.Errorf("%q is no identifier: put names with other characters than letters, "+
			"digits and underscores into double quotes", text)
	case len(name) > maxIdentifier:
		return "", "", fmt.Errorf("identifier %q has %d bytes, Postgres allows %d", name, len(name), maxIdentifier)
	}
	return name, rest, nil
}

// parseQuoted reads a quoted identifier behind its first quote.
func parseQuoted(text string) (name, rest string, err error) {
	var b strings.Builder
	for {
		i := strings.IndexByte(text, '"')
		if i < 0 {
			return "", "", errors.New("an identifier's closing double quote is missing")
		}
		b.WriteString(text[:i])
		text = text[i+1:]
		if !strings.HasPrefix(text, `"`) {
			return b.String(), text, nil
		}
		b.WriteByte('"')
		text = text[1:]
	}
}

func identifierByte(c byte, first bool) bool {
	switch {
	case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c == '_', c >= 0x80:
		return true
	}
	return !first && (c >= '0' && c <= '9' || c == '$')
}

// lowerASCII folds as Postgres does in a database of UTF-8: ASCII letters only.
func lowerASCII(s string) string {
	b := []byte(s)
	for i, c := range b {
		if c >= 'A' && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}

// suggest ends a message about an unknown name: with the nearest known one if it
// is near enough, else with the list of them.
func suggest(name string, known []string, list string) string {
	best, distance := "", max(2, len(name)/3)+1
	for _, k := range known {
		if d := editDistance(name, k); d < distance {
			best, distance = k, d
		}
	}
	switch {
	case best != "":
		return fmt.Sprintf("; did you mean %q?", best)
	case len(known) == 0:
		return ""
	}
	return fmt.Sprintf("; %s %s", list, strings.Join(known, ", "))
}

// editDistance counts the bytes to insert, delete or replace to get from a to b,
// letter case apart.
func editDistance(a, b string) int {
	a, b = lowerASCII(a), lowerASCII(b)
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replaced := diagonal
			if a[i] != b[j] {
				replaced++
			}
			diagonal = row[j+1]
			row[j+1] = min(replaced, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}
