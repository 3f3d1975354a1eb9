package transform

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

const (
	defaultPartitions  = 6
	defaultReplication = 1
)

// LoadMapping reads a mapping file. What is wrong in it is a *MappingError.
func LoadMapping(path string) (*Mapping, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, &MappingError{Mistakes: []Mistake{{Problem: "mapping: " + err.Error()}}}
	}
	return ParseMapping(path, data)
}

// ParseMapping decodes a mapping strictly and checks all of it that can be
// checked without the database; the rest is Bind's. The name stands in the
// messages. It returns a *MappingError with every mistake there is.
func ParseMapping(name string, data []byte) (*Mapping, error) {
	d := &decoder{file: name, places: make(map[string]place)}
	m := &Mapping{file: name, places: d.places, paths: make(map[*Table]string)}
	if root := d.document(data); root != nil {
		d.mapping(root, m)
		d.check(m)
	}
	return m, d.err()
}

// place is where something stands in the file, from 1.
type place struct {
	line, column int
}

// before compares places as slices.SortFunc wants it.
func (p place) before(q place) int {
	return cmp.Or(cmp.Compare(p.line, q.line), cmp.Compare(p.column, q.column))
}

// decoder walks the nodes of a mapping file and collects mistakes.
type decoder struct {
	file     string
	places   map[string]place // by path: "tables[0].key[1]"
	mistakes []Mistake
}

// fail notes a mistake about what stands at path.
func (d *decoder) fail(path, format string, args ...any) {
	at := d.places[path]
	d.mistakes = append(d.mistakes, Mistake{
		File: d.file, Line: at.line, Column: at.column, Path: path, Problem: fmt.Sprintf(format, args...),
	})
}

// failOnce notes a mistake unless one was noted since there were said of them.
func (d *decoder) failOnce(said int, path, problem string) {
	if len(d.mistakes) == said {
		d.fail(path, "%s", problem)
	}
}

// err returns the mistakes in the order of their places, or nil.
func (d *decoder) err() error {
	if len(d.mistakes) == 0 {
		return nil
	}
	slices.SortStableFunc(d.mistakes, func(a, b Mistake) int {
		return place{a.Line, a.Column}.before(place{b.Line, b.Column})
	})
	return &MappingError{Mistakes: d.mistakes}
}

// document returns the root of the only document, or nil.
func (d *decoder) document(data []byte) *yaml.Node {
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc, more yaml.Node
	switch err := dec.Decode(&doc); {
	case errors.Is(err, io.EOF):
		d.fail("", "the mapping is empty: it needs at least one table under tables")
		return nil
	case err != nil:
		d.syntax(err)
		return nil
	}
	if err := dec.Decode(&more); !errors.Is(err, io.EOF) {
		d.fail("", "the file has a second document: put all tables into the first")
	}
	return doc.Content[0]
}

// syntax notes an error of the YAML parser, which begins with its line.
func (d *decoder) syntax(err error) {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	line := 0
	if number, rest, ok := strings.Cut(strings.TrimPrefix(text, "line "), ": "); ok {
		if n, err := strconv.Atoi(number); err == nil {
			line, text = n, rest
		}
	}
	d.places[""] = place{line: line}
	d.fail("", "%s", text)
}

// at remembers the place of a node and returns it with aliases resolved.
func (d *decoder) at(n *yaml.Node, path string) *yaml.Node {
	d.places[path] = place{line: n.Line, column: n.Column}
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

// decode reads what stands at path out of a node.
type decode func(n *yaml.Node, path string)

// key is a key that an object may have.
type key struct {
	read    decode
	missing string // what to say where it is missing; empty: it may be
}

// object reads a YAML mapping of which every key must be known.
func (d *decoder) object(n *yaml.Node, path string, known map[string]key) {
	names := slices.Sorted(maps.Keys(known))
	found, ok := d.pairs(n, path, func(name string, value *yaml.Node, path string) {
		if k, ok := known[name]; ok {
			k.read(value, path)
			return
		}
		d.fail(path, "unknown key%s", suggest(name, names, "the keys here are"))
	})
	if !ok {
		return
	}
	for _, name := range names {
		if k := known[name]; k.missing != "" && !found[name] {
			d.fail(path, "%s is missing: %s", name, k.missing)
		}
	}
}

// pairs calls fn for each pair of a YAML mapping, with the place of the key
// remembered. It returns the keys, which must be different, and whether there is
// a mapping at all.
func (d *decoder) pairs(n *yaml.Node, path string, fn func(name string, value *yaml.Node, path string)) (map[string]bool, bool) {
	n = d.at(n, path)
	if n.Kind != yaml.MappingNode {
		d.fail(path, "must be a list of keys with values, one in each line")
		return nil, false
	}
	found := make(map[string]bool)
	for i := 0; i+1 < len(n.Content); i += 2 {
		name := n.Content[i]
		at := strings.TrimPrefix(path+"."+name.Value, ".")
		if name.Kind != yaml.ScalarNode {
			d.places[path+".?"] = place{line: name.Line, column: name.Column}
			d.fail(path+".?", "a key must be text")
			continue
		}
		d.places[at] = place{line: name.Line, column: name.Column}
		if found[name.Value] {
			d.fail(at, "the key stands twice")
			continue
		}
		found[name.Value] = true
		fn(name.Value, n.Content[i+1], at)
	}
	return found, true
}

// list reads a YAML sequence.
func (d *decoder) list(n *yaml.Node, path string, read decode) {
	n = d.at(n, path)
	if n.Kind != yaml.SequenceNode {
		d.fail(path, "must be a list: [a, b], or one element in each line behind a dash")
		return
	}
	for i, element := range n.Content {
		read(element, fmt.Sprintf("%s[%d]", path, i))
	}
}

// text reads a string into to.
func (d *decoder) text(to *string) decode {
	return func(n *yaml.Node, path string) {
		n = d.at(n, path)
		if n.Kind != yaml.ScalarNode || n.Tag != "!!str" {
			d.fail(path, "must be text; put it into quotes if it looks like something else")
			return
		}
		*to = n.Value
	}
}

// name reads a string that is not empty into to.
func (d *decoder) name(to *string) decode {
	return func(n *yaml.Node, path string) {
		said := len(d.mistakes)
		d.text(to)(n, path)
		if *to == "" {
			d.failOnce(said, path, "must not be empty")
		}
	}
}

// names reads a list of different strings, none of them empty, into to.
func (d *decoder) names(to *[]string) decode {
	return func(n *yaml.Node, path string) {
		d.list(n, path, func(n *yaml.Node, path string) {
			var s string
			d.name(&s)(n, path)
			switch {
			case s == "":
			case slices.Contains(*to, s):
				d.fail(path, "%q stands twice", s)
			default:
				*to = append(*to, s)
			}
		})
	}
}

// integer reads a number between 1 and most into to.
func (d *decoder) integer(most int64, to func(int64)) decode {
	return func(n *yaml.Node, path string) {
		n = d.at(n, path)
		v, err := strconv.ParseInt(n.Value, 10, 64)
		if n.Kind != yaml.ScalarNode || n.Tag != "!!int" || err != nil || v < 1 || v > most {
			d.fail(path, "must be a number from 1 to %d", most)
			return
		}
		to(v)
	}
}

// mapping reads the whole file.
func (d *decoder) mapping(n *yaml.Node, m *Mapping) {
	int64Text := false
	d.object(n, "", map[string]key{
		"type_prefix": {read: d.text(&m.TypePrefix)},
		"int64":       {read: d.either("number", "string", &int64Text)},
		"tables": {missing: "at least one table is needed", read: func(n *yaml.Node, path string) {
			d.list(n, path, func(n *yaml.Node, path string) {
				t := d.table(n, path)
				m.Tables, m.paths[t] = append(m.Tables, t), path
			})
			if n.Kind == yaml.SequenceNode && len(n.Content) == 0 {
				d.fail(path, "at least one table is needed")
			}
		}},
	})
	for _, t := range m.Tables {
		t.TypePrefix, t.Int64Text = m.TypePrefix, int64Text
	}
}

// either reads one of two words; to says that it is the second.
func (d *decoder) either(first, second string, to *bool) decode {
	return func(n *yaml.Node, path string) {
		var s string
		said := len(d.mistakes)
		d.text(&s)(n, path)
		switch s {
		case first:
		case second:
			*to = true
		default:
			d.failOnce(said, path, "must be "+first+" or "+second)
		}
	}
}

// table reads one element of tables.
func (d *decoder) table(n *yaml.Node, path string) *Table {
	t := &Table{Slot: 1, Topics: Topics{Partitions: defaultPartitions, Replication: defaultReplication}}
	var name string
	d.object(n, path, map[string]key{
		"table":       {read: d.name(&name), missing: "name the table as SQL does, such as public.products"},
		"aggregate":   {read: d.name(&t.Aggregate), missing: "name what a row is, such as Product"},
		"key":         {read: d.names(&t.Key)},
		"slot":        {read: d.integer(MaxSlots, func(v int64) { t.Slot = int(v) })},
		"topics":      {read: func(n *yaml.Node, path string) { d.topics(n, path, &t.Topics) }},
		"fields":      {read: func(n *yaml.Node, path string) { d.fields(n, path, t) }},
		"omit":        {read: d.names(&t.Omit)},
		"undecodable": {read: d.either("refuse", "replace", &t.Replace)},
		"events": {read: func(n *yaml.Node, path string) {
			d.list(n, path, func(n *yaml.Node, path string) { t.Rules = append(t.Rules, d.rule(n, path)) })
		}},
		"reason": {read: func(n *yaml.Node, path string) {
			d.object(n, path, map[string]key{"column": {
				read: d.name(&t.Reason), missing: "name the column that holds the reason, or leave reason out",
			}})
		}},
	})
	if name == "" {
		return t
	}
	var err error
	if t.Schema, t.Name, err = parseTableName(name); err != nil {
		d.fail(path+".table", "%s", err)
	}
	return t
}

func (d *decoder) topics(n *yaml.Node, path string, to *Topics) {
	d.object(n, path, map[string]key{
		"events":      {read: d.name(&to.Events)},
		"latest":      {read: d.name(&to.Latest)},
		"partitions":  {read: d.integer(100_000, func(v int64) { to.Partitions = int32(v) })},
		"replication": {read: d.integer(1000, func(v int64) { to.Replication = int16(v) })},
		"retention":   {read: d.retention(&to.Retention)},
	})
}

// retention reads "forever", or a duration that may have days: "90d", "36h".
func (d *decoder) retention(to *time.Duration) decode {
	return func(n *yaml.Node, path string) {
		var s string
		said := len(d.mistakes)
		d.text(&s)(n, path)
		if s == "forever" {
			return
		}
		value, err := time.ParseDuration(s)
		if days, ok := strings.CutSuffix(s, "d"); ok {
			var count uint64
			count, err = strconv.ParseUint(days, 10, 16)
			value = time.Duration(count) * 24 * time.Hour
		}
		if err != nil || value < time.Second {
			d.failOnce(said, path, "must be forever, or a time of at least a second such as 90d or 36h")
			return
		}
		*to = value
	}
}

func (d *decoder) fields(n *yaml.Node, path string, t *Table) {
	t.Fields = make(map[string]string)
	d.pairs(n, path, func(column string, n *yaml.Node, path string) {
		var field string
		said := len(d.mistakes)
		d.text(&field)(n, path)
		if field == "" {
			d.failOnce(said, path, "must name a field; to leave the column out, put it under omit")
			return
		}
		t.Fields[column] = field
	})
}

func (d *decoder) rule(n *yaml.Node, path string) Rule {
	var r Rule
	d.object(n, path, map[string]key{
		"type": {read: d.name(&r.Type), missing: "name the event, such as PriceChanged"},
		"when": {missing: "name the fields whose change makes the event", read: func(n *yaml.Node, path string) {
			said := len(d.mistakes)
			d.names(&r.When)(n, path)
			if len(r.When) == 0 {
				d.failOnce(said, path, "must name at least one field")
			}
		}},
	})
	return r
}
