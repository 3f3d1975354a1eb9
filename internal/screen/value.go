package screen

import (
	"bytes"
	"encoding/json"
	"strconv"
	"strings"
	"unicode/utf8"
)

// valueRunes is how much of one value is shown to people, memberRunes how much of
// one among those of a whole row, so that a long one does not hide the rest.
const (
	valueRunes  = 40
	memberRunes = 24
)

// member is one field of a JSON object, in the object's order.
type member struct {
	name  string
	value json.RawMessage
}

// members splits an object; nil if text is none.
func members(text []byte) []member {
	d := json.NewDecoder(bytes.NewReader(text))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil
	}
	var all []member
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return nil
		}
		m := member{name: name.(string)}
		if err := d.Decode(&m.value); err != nil {
			return nil
		}
		all = append(all, m)
	}
	return all
}

func find(all []member, name string) (json.RawMessage, bool) {
	for _, m := range all {
		if m.name == name {
			return m.value, true
		}
	}
	return nil, false
}

// payload is the value of an events record.
type payload struct {
	old, new []member
	reason   json.RawMessage
}

func parsePayload(data []byte) (p payload) {
	for _, m := range members(data) {
		switch m.name {
		case "old":
			p.old = members(m.value)
		case "new":
			p.new = members(m.value)
		case "reason":
			p.reason = m.value
		}
	}
	return p
}

// shown is a JSON value as people read it: text without quotes where that is
// clear, anything long cut.
func shown(value json.RawMessage) string {
	text := string(value)
	var s string
	if len(value) > 0 && value[0] == '"' && json.Unmarshal(value, &s) == nil {
		text = s
		if s == "" || s == "null" || strings.TrimSpace(s) != s || strings.ContainsAny(s, `,"→`) {
			text = strconv.Quote(s)
		}
	}
	return ellipsis(printable(text), valueRunes)
}

// ellipsis cuts what is longer than n runes, and shows that it did.
func ellipsis(text string, n int) string {
	if utf8.RuneCountInString(text) <= n {
		return text
	}
	return cut(text, n-1) + "…"
}
