package audit

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
)

// form says how a column's Postgres text and its JSON in an event compare.
type form int

const (
	plain    form = iota // a JSON number, spelled as Postgres does
	float                // a JSON number; old versions spell it with more digits
	quoted               // a JSON string of the text
	boolean              // true or false
	document             // JSON, compared without white space
	array                // a JSON array, as to_json writes it
	instant              // RFC 3339 in UTC
)

type column struct {
	name string
	form form
}

type rule struct {
	event  string
	fields []string
}

// Row is one row version: the comparable text of each column, nil for NULL.
type Row []*string

// image is the comparable text of its columns.
func (r Row) image() image {
	im := make(image, len(r))
	for i, c := range columns {
		im[c.name] = c.canonical(r[i])
	}
	return im
}

// columnOf finds a column by its name. One that was added has a type whose JSON
// in Postgres and in an event are the same.
func columnOf(name string) column {
	for _, c := range columns {
		if c.name == name {
			return c
		}
	}
	return column{name, document}
}

// canonical brings the audit's text of a column into the form of want.
func (c column) canonical(text *string) string {
	if text == nil {
		return "null"
	}
	switch c.form {
	case quoted:
		j, _ := json.Marshal(*text) // a string always marshals
		return string(j)
	case document, array:
		return compact([]byte(*text))
	case instant:
		return `"` + trimFraction(*text) + `Z"`
	case float:
		return shortest(*text)
	}
	return *text
}

// canonicalJSON brings an event's value of a column into the same form.
func (c column) canonicalJSON(raw json.RawMessage) string {
	if string(raw) == "null" {
		return "null"
	}
	switch c.form {
	case quoted, array:
		var v any
		d := json.NewDecoder(bytes.NewReader(raw))
		d.UseNumber()
		if err := d.Decode(&v); err != nil {
			return "undecodable: " + string(raw)
		}
		j, _ := json.Marshal(v)
		return string(j)
	case document:
		return compact(raw)
	case instant:
		s := strings.TrimSuffix(strings.TrimPrefix(string(raw), `"`), `Z"`)
		return `"` + trimFraction(s) + `Z"`
	}
	if c.form == float {
		return shortest(string(raw))
	}
	return string(raw)
}

func shortest(text string) string {
	f, err := strconv.ParseFloat(text, 64)
	if err != nil {
		return "no number: " + text
	}
	return strconv.FormatFloat(f, 'g', -1, 64)
}

// compact re-encodes JSON so that white space, escapes and member order do not matter.
func compact(raw []byte) string {
	var v any
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		return fmt.Sprintf("undecodable: %s", raw)
	}
	j, _ := json.Marshal(v)
	return string(j)
}

func trimFraction(s string) string {
	if !strings.Contains(s, ".") {
		return s
	}
	return strings.TrimSuffix(strings.TrimRight(s, "0"), ".")
}
