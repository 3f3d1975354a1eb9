package transform

import (
	"fmt"
	"slices"

	"backstory/capture"
)

// plan is what the transformer has worked out for one relation of a mapped
// table: a table as it was while its columns did not change.
type plan struct {
	rel     *capture.Relation
	table   *Table
	names   *names
	columns []column // those that are published, in the order of the relation
	key     []int    // indexes into the relation's columns, in the order of Table.Key
	covered bool     // the replica identity has the key: an update without an old row has kept it
	reason  int      // index into the relation's columns; −1: none
	codec   codec    // of the reason
}

// column is a column that is published.
type column struct {
	at    int    // index into the relation's columns
	name  []byte // field, as a JSON string
	codec codec
	group int         // index of the rule that names the field; len(rules): the …Updated event
	since capture.LSN // capture.Column.Since
}

// names are the event types of a table, and what its event ids have in common.
type names struct {
	created, updated, deleted, imported string
	rules                               []string
	idPrefix                            []byte
}

func newNames(t *Table, id capture.Identity) *names {
	n := &names{
		created:  t.EventType(t.Aggregate + "Created"),
		updated:  t.EventType(t.Aggregate + "Updated"),
		deleted:  t.EventType(t.Aggregate + "Deleted"),
		imported: t.EventType(t.Aggregate + "Imported"),
		idPrefix: idPrefix(id, t.Aggregate),
	}
	for _, r := range t.Rules {
		n.rules = append(n.rules, t.EventType(r.Type))
	}
	return n
}

// changed returns the type of the event for changed fields of a group.
func (n *names) changed(group int) string {
	if group < len(n.rules) {
		return n.rules[group]
	}
	return n.updated
}

// compile works out the plan. A relation that the mapping can't be applied to is
// a mistake of the mapping: the table has changed under it.
func compile(t *Table, n *names, rel *capture.Relation) (*plan, error) {
	p := &plan{rel: rel, table: t, names: n, reason: -1}
	for i := range rel.Columns {
		c := &rel.Columns[i]
		codec := codecOf(c, t.Int64Text)
		if c.Name == t.Reason {
			p.reason, p.codec = i, codec
			continue
		}
		if slices.Contains(t.Omit, c.Name) {
			continue
		}
		field := t.field(c.Name)
		name, err := appendString(nil, []byte(field))
		if err != nil {
			return nil, fmt.Errorf("name of column %q: %w", c.Name, err)
		}
		if p.find(name) >= 0 {
			return nil, p.mistake(fmt.Sprintf("column %q would be the field %q, which another column is already: "+
				"name it differently in fields, or leave it out with omit", c.Name, field))
		}
		p.columns = append(p.columns, column{at: i, name: name, codec: codec, group: t.group(field), since: c.Since})
	}
	if err := p.findKey(rel); err != nil {
		return nil, err
	}
	return p, nil
}

// findKey takes the key that capture has found, or looks for it by name in a
// relation that no stream has described.
func (p *plan) findKey(rel *capture.Relation) error {
	p.key, p.covered = rel.KeyColumns, true
	for _, i := range p.key {
		p.covered = p.covered && rel.Columns[i].Key
	}
	if p.key == nil {
		for _, key := range p.table.Key {
			i := slices.IndexFunc(rel.Columns, func(c capture.Column) bool { return c.Name == key })
			if i < 0 {
				return p.mistake(fmt.Sprintf("the table has lost its key column %q", key))
			}
			p.key = append(p.key, i)
		}
	}
	if len(p.key) == 0 {
		return p.mistake("the key is not known: the mapping is not bound")
	}
	return nil
}

func (p *plan) mistake(problem string) error {
	return &MappingError{Mistakes: []Mistake{{Problem: problem}}}
}

// find returns the index of the column of a field, given as a JSON string, or −1.
func (p *plan) find(name []byte) int {
	return slices.IndexFunc(p.columns, func(c column) bool { return string(c.name) == string(name) })
}
