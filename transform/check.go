package transform

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode"
)

const maxTopicName = 249 // Kafka's bound, in bytes

var (
	typeName   = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_]*$`)
	typePrefix = regexp.MustCompile(`^[A-Za-z0-9._-]*$`)
	topicName  = regexp.MustCompile(`^[A-Za-z0-9._-]+$`)
)

// check finds what is wrong between the parts of a mapping, and gives topics
// that have no name theirs.
func (d *decoder) check(m *Mapping) {
	if !typePrefix.MatchString(m.TypePrefix) {
		d.fail("type_prefix", "may have letters, digits, dots, dashes and underscores")
	}
	tables, aggregates, topics := make(map[string]string), make(map[string]string), make(map[string]string)
	for i, t := range m.Tables {
		path := fmt.Sprintf("tables[%d]", i)
		if t.Name != "" {
			d.once(tables, path+".table", t.String(), t.String(), "the table is mapped already")
		}
		d.checkAggregate(t, path)
		if t.Aggregate != "" {
			d.once(aggregates, path+".aggregate", t.Aggregate, t.Aggregate, "the aggregate type is taken")
		}
		d.checkTopic(topics, path, path+".topics.events", t.Topics.Events)
		d.checkTopic(topics, path, path+".topics.latest", t.Topics.Latest)
		d.checkColumns(t, path)
		d.checkRules(t, path)
	}
}

// once notes a mistake if key was used before, at another path.
func (d *decoder) once(used map[string]string, path, key, name, problem string) {
	if before, ok := used[key]; ok {
		d.fail(path, "%q: %s, by %s", name, problem, before)
		return
	}
	used[key] = path
}

// checkAggregate checks the aggregate type and names the topics after it where
// they have no name.
func (d *decoder) checkAggregate(t *Table, path string) {
	if t.Aggregate == "" {
		return // which is said already
	}
	if !typeName.MatchString(t.Aggregate) {
		d.fail(path+".aggregate", "%q: may have letters, digits and underscores, a letter first", t.Aggregate)
		return
	}
	if t.Topics.Events == "" {
		t.Topics.Events = kebab(t.Aggregate) + ".events"
	}
	if t.Topics.Latest == "" {
		t.Topics.Latest = kebab(t.Aggregate) + ".latest"
	}
}

// kebab turns "OrderLine" into "order-line".
func kebab(name string) string {
	var b strings.Builder
	var before rune
	for _, r := range name {
		if unicode.IsUpper(r) && (unicode.IsLower(before) || unicode.IsDigit(before)) {
			b.WriteByte('-')
		}
		b.WriteRune(unicode.ToLower(r))
		before = r
	}
	return b.String()
}

// checkTopic checks a topic's name and that no other topic has it. Kafka takes a
// dot and an underscore for the same in the names of its metrics, and refuses a
// topic that differs from another in nothing else.
func (d *decoder) checkTopic(used map[string]string, table, path, name string) {
	if name == "" {
		return // the aggregate is wrong, which is said already
	}
	if _, ok := d.places[path]; !ok {
		d.places[path] = d.places[table]
	}
	switch {
	case name == "." || name == ".." || !topicName.MatchString(name):
		d.fail(path, "%q is no name of a topic: it may have letters, digits, dots, dashes and underscores", name)
		return
	case len(name) > maxTopicName:
		d.fail(path, "the name of the topic has %d bytes, Kafka allows %d", len(name), maxTopicName)
		return
	}
	d.once(used, path, strings.ReplaceAll(name, ".", "_"), name,
		"the name is taken (Kafka takes a dot and an underscore for the same)")
}

// checkColumns checks what can be said of columns without the table.
func (d *decoder) checkColumns(t *Table, path string) {
	for i, column := range t.Omit {
		at := fmt.Sprintf("%s.omit[%d]", path, i)
		switch {
		case slices.Contains(t.Key, column):
			d.fail(at, "%q is part of the key, which can't be left out", column)
		case column == t.Reason:
			d.fail(at, "%q holds the reason, so it must be captured; it is no field anyway", column)
		case t.Fields[column] != "":
			d.fail(at, "%q is left out here and named under fields", column)
		}
	}
	if _, ok := t.Fields[t.Reason]; ok && t.Reason != "" {
		d.fail(path+".fields."+t.Reason, "the column holds the reason and is no field")
	}
	if slices.Contains(t.Key, t.Reason) {
		d.fail(path+".reason.column", "%q is part of the key, which can't be the reason", t.Reason)
	}
	d.checkFields(t, path)
}

// checkFields checks that no two columns become the same field.
func (d *decoder) checkFields(t *Table, path string) {
	columns := make([]string, 0, len(t.Fields))
	for column := range t.Fields {
		columns = append(columns, column)
	}
	slices.SortFunc(columns, func(a, b string) int {
		return d.places[path+".fields."+a].before(d.places[path+".fields."+b])
	})
	used := make(map[string]string)
	for _, column := range columns {
		at := path + ".fields." + column
		d.once(used, at, t.Fields[column], t.Fields[column], "the field is another column already")
	}
}

// checkRules checks the events of a table.
func (d *decoder) checkRules(t *Table, path string) {
	if len(t.Rules) > MaxRules {
		d.fail(path+".events", "%d rules are too many: at most %d", len(t.Rules), MaxRules)
	}
	types, fields := make(map[string]string), make(map[string]string)
	for i, r := range t.Rules {
		at := fmt.Sprintf("%s.events[%d]", path, i)
		switch {
		case r.Type == "":
		case !typeName.MatchString(r.Type):
			d.fail(at+".type", "%q: may have letters, digits and underscores, a letter first", r.Type)
		case slices.Contains(standard(t.Aggregate), r.Type):
			d.fail(at+".type", "%q is the name of an event that the table has anyway: choose another", r.Type)
		default:
			d.once(types, at+".type", r.Type, r.Type, "the event has a rule already")
		}
		for j, field := range r.When {
			d.once(fields, fmt.Sprintf("%s.when[%d]", at, j), field, field, "the field is in a rule already")
		}
	}
}
