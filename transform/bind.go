package transform

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"backstory/capture"
)

// Bind fits a mapping to the tables that the database has: it gives tables
// without a key their primary key and checks that every column and field that
// the mapping names is there. It returns a *MappingError with all that does not
// fit.
func (m *Mapping) Bind(tables []capture.TableInfo) error {
	d := &decoder{file: m.file, places: m.places}
	if m.derived == nil {
		m.derived = make(map[*Table]bool)
	}
	for i, t := range m.Tables {
		path := cmp.Or(m.paths[t], fmt.Sprintf("tables[%d]", i))
		at := slices.IndexFunc(tables, func(info capture.TableInfo) bool {
			return info.Schema == t.Schema && info.Name == t.Name
		})
		if at < 0 {
			d.fail(path+".table", "the database has no table %s", t)
			continue
		}
		if len(t.Key) == 0 || m.derived[t] {
			m.derived[t] = true
			d.bindKey(t, &tables[at], path)
		}
		d.bind(t, &tables[at], path)
	}
	return d.err()
}

// bind fits one table.
func (d *decoder) bind(t *Table, info *capture.TableInfo, path string) {
	columns := make([]string, len(info.Relation.Columns))
	for i := range info.Relation.Columns {
		columns[i] = info.Relation.Columns[i].Name
	}
	check := func(path, column string) { d.bindColumn(path, column, columns, info.Generated) }
	for i, column := range t.Key {
		check(fmt.Sprintf("%s.key[%d]", path, i), column)
	}
	for _, column := range slices.Sorted(maps.Keys(t.Fields)) {
		check(path+".fields."+column, column)
	}
	for i, column := range t.Omit {
		if !slices.Contains(info.Generated, column) { // never captured: nothing to object to
			check(fmt.Sprintf("%s.omit[%d]", path, i), column)
		}
	}
	if t.Reason != "" {
		check(path+".reason.column", t.Reason)
	}
	d.bindFields(t, columns, info.Generated, path)
}

// bindKey gives the table its primary key.
func (d *decoder) bindKey(t *Table, info *capture.TableInfo, path string) {
	t.Key = slices.Clone(info.PrimaryKey)
	if len(t.Key) == 0 {
		d.fail(path, "the table has no primary key: name columns that identify a row under key")
	}
	for _, column := range t.Key {
		if i := slices.Index(t.Omit, column); i >= 0 {
			d.fail(fmt.Sprintf("%s.omit[%d]", path, i), "%q is part of the primary key, which can't be left out", column)
		}
		if column == t.Reason {
			d.fail(path+".reason.column", "%q is part of the primary key, which can't be the reason", column)
		}
	}
}

// bindColumn checks that a column is there.
func (d *decoder) bindColumn(path, column string, columns, generated []string) {
	switch {
	case slices.Contains(columns, column):
	case slices.Contains(generated, column):
		d.fail(path, "column %q is generated, and logical replication leaves generated columns out: "+
			"name the columns that it is computed from", column)
	default:
		d.fail(path, "the table has no column %q%s", column, suggest(column, columns, "it has"))
	}
}

// bindFields checks that the columns become different fields and that the rules
// name them.
func (d *decoder) bindFields(t *Table, columns, generated []string, path string) {
	fields := make([]string, 0, len(columns))
	for _, column := range columns {
		field := t.field(column)
		if column == t.Reason || slices.Contains(t.Omit, column) {
			continue
		}
		if slices.Contains(fields, field) {
			d.fail(path+".fields", "column %q would be the field %q, which another column is already: "+
				"name one of them differently, or leave it out with omit", column, field)
			continue
		}
		fields = append(fields, field)
	}
	for i, r := range t.Rules {
		for j, field := range r.When {
			if slices.Contains(fields, field) {
				continue
			}
			at := fmt.Sprintf("%s.events[%d].when[%d]", path, i, j)
			switch {
			case field == t.Reason:
				d.fail(at, "%q holds the reason and is no field", field)
			case slices.Contains(t.Omit, field):
				d.fail(at, "column %q is left out with omit and is no field", field)
			case slices.Contains(generated, field):
				d.fail(at, "column %q is generated, and logical replication leaves generated columns out", field)
			case t.Fields[field] != "":
				d.fail(at, "the table has no field %q: column %q is named %q under fields", field, field, t.Fields[field])
			default:
				d.fail(at, "the table has no field %q%s", field, suggest(field, fields, "it has"))
			}
		}
	}
}
