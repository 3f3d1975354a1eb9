package bridge

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"backstory/transform"
)

// mapped is what the state remembers of a table's mapping, to say what has
// changed. The fingerprint decides whether anything has.
type mapped struct {
	Fields     map[string]string `json:"fields,omitempty"` // column → field, where they differ
	Omit       []string          `json:"omit,omitempty"`
	Rules      []transform.Rule  `json:"rules,omitempty"`
	Reason     string            `json:"reason,omitempty"`
	TypePrefix string            `json:"type_prefix,omitempty"`
	Int64Text  bool              `json:"int64_text,omitempty"`
}

func mappedOf(t *transform.Table) mapped {
	m := mapped{Rules: t.Rules, Reason: t.Reason, TypePrefix: t.TypePrefix, Int64Text: t.Int64Text,
		Omit: slices.Sorted(slices.Values(t.Omit)), Fields: map[string]string{}}
	for column, field := range t.Fields {
		if field != column {
			m.Fields[column] = field
		}
	}
	return m
}

// changes says, for people, how two mappings of a table differ and what follows.
// None of it needs more than a comparison of the table with the state: a field
// that is not mapped any more becomes null once, a new one appears.
func (m mapped) changes(now mapped) []string {
	var found []string
	say := func(format string, args ...any) { found = append(found, fmt.Sprintf(format, args...)) }
	columns := slices.Sorted(maps.Keys(m.Fields))
	for column := range now.Fields {
		if _, ok := m.Fields[column]; !ok {
			columns = append(columns, column)
		}
	}
	slices.Sort(columns)
	for _, column := range columns {
		was, is := m.field(column), now.field(column)
		if was != is {
			say("column %s: field %s is now %s; the old one becomes null once", column, was, is)
		}
	}
	for _, column := range m.Omit {
		if !slices.Contains(now.Omit, column) {
			say("column %s: captured from now on", column)
		}
	}
	for _, column := range now.Omit {
		if !slices.Contains(m.Omit, column) {
			say("column %s: left out from now on; its field becomes null once", column)
		}
	}
	if !slices.EqualFunc(m.Rules, now.Rules, sameRule) {
		say("events: were %s, are now %s", ruleNames(m.Rules), ruleNames(now.Rules))
	}
	if m.Reason != now.Reason {
		say("reason column: was %q, is now %q", m.Reason, now.Reason)
	}
	if m.TypePrefix != now.TypePrefix {
		say("type_prefix: was %q, is now %q, for new events", m.TypePrefix, now.TypePrefix)
	}
	if m.Int64Text != now.Int64Text {
		say("int64: the form of bigint values has changed; each is published anew once")
	}
	if len(found) == 0 {
		say("this version of backstory prints values in another way")
	}
	return found
}

func (m mapped) field(column string) string {
	if f, ok := m.Fields[column]; ok {
		return f
	}
	return column
}

func sameRule(a, b transform.Rule) bool { return a.Type == b.Type && slices.Equal(a.When, b.When) }

func ruleNames(rules []transform.Rule) string {
	if len(rules) == 0 {
		return "none"
	}
	names := make([]string, len(rules))
	for i, r := range rules {
		names[i] = fmt.Sprintf("%s (%s)", r.Type, strings.Join(r.When, ", "))
	}
	return strings.Join(names, ", ")
}
